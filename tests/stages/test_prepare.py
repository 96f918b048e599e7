"""prepare and source on folders and archives: what decides the bytes and what does not, kills, mistakes."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scan_core.data import ingest
from tests.project import OUTPUTS, SOURCE_OUTPUTS, environment, files, make_project, run, run_stage, set_params

pytestmark = pytest.mark.slow

FOLDER = {"name": "folder", "path": "images", "size": 8, "val_fraction": 0.25}
COUNT = 40


def picture(seed, size=12, gray=False):
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values[..., 0].copy() if gray else values)


def save(folder, names, **values):
    """PNG files, each name's picture that of its position."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, **values).save(path)


def in_classes(count=COUNT, classes=("ant", "bee", "cow")):
    return [f"{classes[number % len(classes)]}/{number:03d}.png" for number in range(count)]


def prepare(project, **extra):
    """The files that source and prepare make; their text."""
    run_stage(project, "source")
    done = run_stage(project, "prepare", **extra)
    return outputs(project), done.stderr


def outputs(project):
    return {path: (project / path).read_bytes() for path in sorted(files(project))}


def images_of(made):
    """What training reads."""
    return {path: data for path, data in made.items() if path.startswith("data/images/")}


def changed(before, after):
    return {path.rsplit("/", 1)[0] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def findings(project):
    with (project / "data" / "items" / "findings.csv").open() as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def labels(project):
    """The class, or None, of each file."""
    classes = json.loads((project / "data" / "labels" / "classes.json").read_text())
    numbers = np.load(project / "data" / "labels" / "labels.npy")
    names = pq.read_table(project / "data" / "items" / "items.parquet")["source"].to_pylist()
    return {name: classes[number] if number >= 0 else None for name, number in zip(names, numbers, strict=True)}


def failure(project, stage, **extra):
    """The one line in which a stage ends."""
    done = run_stage(project, stage, check=False, **extra)
    assert done.exit_code == 1 and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if "error" in line]) == 1 and lines[-1].startswith(f"{stage}: error: "), lines
    return lines[-1]


@pytest.fixture
def project(tmp_path):
    """A project whose images lie in three class folders."""
    made = make_project(tmp_path / "project", {"data": FOLDER})
    save(made / "images", in_classes())
    return made


# --- what comes out


def test_the_outputs_are_whole_and_nothing_else_is_left(project):
    made, said = prepare(project)
    assert set(made) == SOURCE_OUTPUTS | {
        path for path in OUTPUTS if path.startswith(("data/images/", "data/items/", "data/labels/"))
    }
    assert not [path for path in (project / ".scan" / "resume").rglob("*") if path.suffix != ".lock"]
    assert not list((project / ".scan" / "outputs").rglob("*"))
    items = pq.read_table(project / "data" / "items" / "items.parquet").to_pydict()
    assert list(items) == ["id", "source", "split"] and items["id"] == list(range(COUNT))
    pixels = np.load(project / "data" / "images" / "pixels-00000.npy")
    for row, name in zip(pixels, items["source"], strict=True):
        wanted = picture(int(name[-7:-4])).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(row, np.asarray(wanted)), name
    hashed = [hashlib.sha256(row.tobytes()).digest() for row in pixels]
    draws = [int.from_bytes(hashlib.sha256(each + bytes(8)).digest()[:8], "big") / 2**64 for each in hashed]
    assert items["split"] == ["val" if draw < 0.25 else "train" for draw in draws]
    for split in ("train", "val"):
        rows = np.load(project / "data" / "images" / f"{split}.npy")
        assert [row for row in items["id"] if items["split"][row] == split] == rows.tolist()
    train, val = (items["split"].count(split) for split in ("train", "val"))
    counted = f"{train} train, {val} val; 0 rejected, 0 ignored, 0 exact and 0 near duplicates"
    assert f"prepare   40 images: {counted}\n" in said
    assert labels(project) == {name: name.split("/")[0] for name in in_classes()}


def test_a_second_run_and_any_number_of_processes_give_the_same_bytes(project):
    first, _ = prepare(project, SCAN_WORKERS="1")
    assert prepare(project, SCAN_WORKERS="2")[0] == first
    assert prepare(project, SCAN_WORKERS="3")[0] == first


def other_names(folder):
    save(folder, [f"x/y/{(number * 7) % 41:02d}.png" for number in range(COUNT)])


def other_classes(folder):
    save(folder, in_classes(classes=("z", "y")))


def copied_backwards(folder):
    save(folder.parent / "first", in_classes())
    folder.mkdir()
    for name in reversed(in_classes()):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder.parent / "first" / name, folder / name)


def zipped(folder, name="images", members=None):
    save(folder.parent / "loose", in_classes())
    with zipfile.ZipFile(folder.parent / name, "w") as archive:
        for member in members or in_classes():
            archive.write(folder.parent / "loose" / member, member)


def zipped_backwards(folder):
    zipped(folder, members=in_classes()[::-1])


def tarred(folder):
    save(folder.parent / "loose", in_classes())
    with tarfile.open(folder, "w:gz") as archive:
        for member in np.random.default_rng(0).permutation(in_classes()):
            archive.add(folder.parent / "loose" / member, f"./deep/{member}")


VARIANTS = [
    ("folder", other_names),
    ("folder", other_classes),
    ("folder", copied_backwards),
    ("archive", zipped),
    ("archive", zipped_backwards),
    ("archive", tarred),
]


@pytest.mark.parametrize(("name", "write"), VARIANTS, ids=[write.__name__ for _, write in VARIANTS])
@pytest.mark.parametrize("store", ["array", "jpeg"])
def test_how_the_same_images_lie_there_changes_nothing_that_training_reads(project, tmp_path, name, write, store):
    set_params(project, {"data": {"store": store}})
    before, _ = prepare(project)
    other = make_project(tmp_path / "other", {"data": {**FOLDER, "store": store, "name": name}})
    write(other / "images")
    assert images_of(prepare(other)[0]) == images_of(before)


def rename_a_class(project):
    (project / "images" / "ant").rename(project / "images" / "zebra")


def move_to_another_class(project):
    for name in in_classes()[:9:3]:
        (project / "images" / name).rename(project / "images" / "cow" / os.path.basename(name))


@pytest.mark.parametrize("change", [rename_a_class, move_to_another_class])
def test_other_classes_change_only_names_and_labels(project, change):
    before, _ = prepare(project)
    change(project)
    assert changed(before, prepare(project)[0]) == {"data", "data/items", "data/labels"}  # data: source.json
    assert all(label == name.split("/")[0] for name, label in labels(project).items())


def test_labels_from_anywhere_or_nowhere_change_only_labels(project):
    before, _ = prepare(project)
    rows = "".join(
        f"{name},{'even' if number % 2 else 'odd'}\n" for number, name in enumerate(in_classes()) if number > 9
    )
    (project / "mine.csv").write_text(f"source,label\n{rows}")
    set_params(project, {"data": {"labels": "mine.csv"}})
    partial, _ = prepare(project)
    assert changed(before, partial) == {"data", "data/labels"}
    assert list(labels(project).values()).count(None) == 10 and set(labels(project).values()) == {None, "even", "odd"}
    (project / "mine.csv").write_text(f"source,label\n{rows}{in_classes()[0]},third\n")
    assert changed(partial, prepare(project)[0]) == {"data", "data/labels"}
    set_params(project, {"data": {"labels": "none"}})
    without, _ = prepare(project)
    assert changed(before, without) == {"data/labels"}
    assert without["data/labels/classes.json"].strip() == b"[]" and set(labels(project).values()) == {None}


def test_rows_of_a_file_of_labels_that_name_no_image_are_said(project):
    rows = [f"{name if number < 3 else name.replace('/', chr(92))},x\n" for number, name in enumerate(in_classes())]
    (project / "mine.csv").write_text("source,label\n" + "".join(rows))
    set_params(project, {"data": {"labels": "mine.csv"}})
    _, said = prepare(project)
    names = "such as 'ant\\\\003.png'; the source has 'ant/000.png'"
    assert f"prepare   warning: 37 of 40 rows of mine.csv name no image, {names}" in said.splitlines()
    assert list(labels(project).values()).count("x") == 3
    (project / "mine.csv").write_text("source,label\n" + "".join(rows[:3]))
    assert "warning" not in prepare(project)[1]


def test_an_official_split_is_kept_and_what_crosses_it_is_said(tmp_path):
    project = make_project(tmp_path / "project", {"data": {**FOLDER, "duplicates": "drop"}})
    save(
        project / "images", [f"{'train' if number < 20 else 'test'}/{number % 2}/{number}.png" for number in range(30)]
    )
    shutil.copy(project / "images" / "train" / "0" / "4.png", project / "images" / "test" / "0" / "copy.png")
    _, said = prepare(project)
    items = pq.read_table(project / "data" / "items" / "items.parquet").to_pydict()
    assert {(name.split("/")[0], split) for name, split in zip(items["source"], items["split"], strict=True)} == {
        ("train", "train"), ("test", "val"),
    }  # fmt: skip
    assert "31 images: 20 train, 11 val; " in said
    assert "1 exact and 0 near duplicates; 1 of val with a copy or near copy in train\n" in said


@pytest.mark.parametrize(("duplicates", "count"), [("keep", 44), ("drop", 40)])
def test_duplicates_are_listed_and_dropped_where_that_is_set(project, duplicates, count):
    for number in range(3):
        name = in_classes()[number]
        shutil.copy(project / "images" / name, project / "images" / f"copy-{number}.png")
    near = Image.fromarray(np.minimum(np.asarray(picture(7)), 250) + 3)
    near.save(project / "images" / "near.png")
    set_params(project, {"data": {"duplicates": duplicates}})
    _, said = prepare(project)
    found = findings(project)
    assert f"{count} images: " in said and "3 exact and 1 near duplicates" in said
    assert [kind for _, kind, _ in found].count("duplicate") == 3 and len(found) == 4
    assert {"near.png", in_classes()[7]} & {name for name, kind, _ in found if kind == "near_duplicate"}
    assert found == sorted(found)


def test_what_is_no_image_is_listed(project):
    (project / "images" / "ant" / "notes.txt").write_text("notes")
    (project / "images" / ".hidden").write_text("")
    (project / "images" / "ant" / "cut.png").write_bytes((project / "images" / in_classes()[0]).read_bytes()[:100])
    set_params(project, {"data": {"max_rejected": 0.5}})
    before = images_of(prepare(project)[0])
    assert [row[:2] for row in findings(project)] == [
        (".hidden", "ignored"), ("ant/cut.png", "rejected"), ("ant/notes.txt", "ignored"),
    ]  # fmt: skip
    for name in (".hidden", "ant/cut.png", "ant/notes.txt"):
        (project / "images" / name).unlink()
    assert images_of(prepare(project)[0]) == before


def test_under_protocol_all_everything_is_train(project):
    set_params(project, {"data": {"protocol": "all"}})
    prepare(project)
    items = pq.read_table(project / "data" / "items" / "items.parquet").to_pydict()
    assert set(items["split"]) == {"train"}
    rows = {split: np.load(project / "data" / "images" / f"{split}.npy") for split in ("pretext", "train", "val")}
    assert rows["train"].tolist() == rows["pretext"].tolist() == list(range(COUNT)) and 2 <= len(rows["val"]) < 20


# --- source


def test_source_tells_every_change_and_nothing_else(project):
    def now():
        run_stage(project, "source")
        return (project / "data" / "source.json").read_bytes()

    first = now()
    assert now() == first
    assert json.loads(first)["content"]["source"]["files"] == COUNT
    seen = {first}
    picture(99).save(project / "images" / "new.png")
    seen.add(now())
    (project / "images" / "new.png").rename(project / "images" / "newer.png")
    seen.add(now())
    picture(98).save(project / "images" / "newer.png")
    seen.add(now())
    (project / "images" / in_classes()[0]).unlink()
    seen.add(now())
    (project / "mine.csv").write_text("source,label\n")
    set_params(project, {"data": {"labels": "mine.csv"}})
    seen.add(now())
    (project / "mine.csv").write_text("source,label\na,b\n")
    seen.add(now())
    assert len(seen) == 7


def test_source_looks_at_imagenet_where_it_lies(project, tmp_path):
    def now(**extra):
        run_stage(project, "source", **extra)
        return (project / "data" / "source.json").read_bytes()

    set_params(project, {"data": {"name": "imagenet"}})
    seen = {now()}
    (project / "datasets" / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    seen.add(now())
    (tmp_path / "elsewhere" / "imagenet" / "val" / "n01440764").mkdir(parents=True)
    there = now(SCAN_DATA=str(tmp_path / "elsewhere"))
    seen.add(there)
    assert len(seen) == 3
    assert there == now(SCAN_DATA="../elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "nowhere"}, "data.path is nowhere; there is nothing at "),
        ({"labels": "nowhere.csv"}, "data.labels is nowhere.csv; there is no file "),
        ({"path": None}, "path is null; data.name folder reads from a path"),
    ],
)
def test_source_says_what_is_missing_in_one_line(project, change, said):
    set_params(project, {"data": change})
    assert said in failure(project, "source")


# --- mistakes


def rejected(project):
    with (project / ".scan" / "rejected.csv").open() as file:
        return [row["source"] for row in csv.DictReader(file)]


def test_too_many_that_cannot_be_used_end_the_run_with_their_list(project):
    bad = [f"bad-{number}.png" for number in range(5)]
    for name in bad:
        (project / "images" / name).write_bytes(b"no image")
    run_stage(project, "source")
    said = failure(project, "prepare")
    assert "data.max_rejected is 0.05, but 5 of 45 images (11.1 %) cannot be used; repair or remove them" in said
    assert said.endswith("; .scan/rejected.csv lists them") and rejected(project) == bad
    assert files(project) == SOURCE_OUTPUTS
    for name in bad:
        (project / "images" / name).unlink()
    prepare(project)
    assert not (project / ".scan" / "rejected.csv").exists(), "a list of what has been repaired"


@pytest.mark.parametrize("content", [[], ["a.txt", "b/c.txt"]])
def test_a_folder_without_images_is_an_error(project, content):
    shutil.rmtree(project / "images")
    (project / "images" / "b").mkdir(parents=True)
    for name in content:
        (project / "images" / name).write_text("text")
    run_stage(project, "source")
    wanted = f"data.path is images: none of the {len(content)} files there is an image that can be read; .scan/rejected"
    assert wanted in failure(project, "prepare") and rejected(project) == content


@pytest.mark.parametrize("workers", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_processes_is_an_error(project, workers):
    run_stage(project, "source")
    said = failure(project, "prepare", SCAN_WORKERS=workers)
    assert f"SCAN_WORKERS is {workers}; a whole number of at least 1 is allowed" in said


def test_a_missing_source_is_an_error(project):
    assert "data/code/prepare.json is missing" in failure(project, "prepare")
    run_stage(project, "source")
    shutil.rmtree(project / "images")
    assert "data.path is images; there is nothing at " in failure(project, "prepare")


def test_a_mistake_in_the_labels_is_found_before_anything_is_decoded(project, monkeypatch):
    (project / "mine.csv").write_text("name,label\n")
    set_params(project, {"data": {"labels": "mine.csv"}})
    run_stage(project, "source")
    monkeypatch.setattr(ingest, "decode_chunk", None)
    assert 'has 0 columns named "source"' in failure(project, "prepare")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [0.5]}, "data.mean has 1 values; one per channel, 3, is allowed, or null"),
        ({"name": "archive"}, "data.path is images, which is a folder; set data.name: folder"),
    ],
)
def test_bad_settings_end_in_one_line_and_leave_earlier_outputs(project, change, said):
    before = images_of(prepare(project)[0])
    set_params(project, {"data": change})
    run_stage(project, "source")
    assert said in failure(project, "prepare")
    assert images_of(outputs(project)) == before


# --- kills


@pytest.fixture
def long_project(tmp_path):
    """A project of many small chunks that take a while."""
    project = make_project(tmp_path / "project", {"data": {**FOLDER, "size": 32}})
    code = (project / "scan_core" / "data" / "ingest.py").read_text()
    slowed = "def _decode(piece: Piece, target: Target, folder: Path) -> Counts:\n"
    assert "CHUNK_ITEMS = 512" in code and slowed in code
    code = code.replace(slowed, slowed + "    __import__('time').sleep(0.15)\n")  # so that there is a middle
    (project / "scan_core" / "data" / "ingest.py").write_text(code.replace("CHUNK_ITEMS = 512", "CHUNK_ITEMS = 8"))
    save(project / "images", in_classes(160), size=200)
    run_stage(project, "source")
    return project


def started(project):
    """prepare, in a process group of its own, with a few chunks done; and the folder of those."""
    env = environment(SCAN_TRACKING="spool", SCAN_WORKERS="2")
    command = [sys.executable, "-m", "stages.prepare"]
    # A signal that is ignored, as in a background job, would stay so in what is started there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while len(list((project / ".scan" / "resume").rglob("*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "no chunks were seen before the end"
        time.sleep(0.002)
    return process


def made_by_hand(project, log, monkeypatch):
    """prepare in this process, with the chunks of the project's code; the numbers of the chunks that it decodes."""
    original = ingest.decode_chunk

    def noted(items, refused, target, folder, number):
        with log.open("a") as file:
            file.write(f"{number}\n")
        return original(items, refused, target, folder, number)

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "CHUNK_ITEMS", 8)
        patch.setattr(ingest, "decode_chunk", noted)
        run_stage(project, "prepare", SCAN_WORKERS="2")
    return sorted(map(int, log.read_text().split()))


@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(long_project, tmp_path, monkeypatch, whole_group):
    assert made_by_hand(long_project, tmp_path / "log", monkeypatch) == list(range(20))
    whole = outputs(long_project)
    for folder in ("images", "items", "labels"):
        shutil.rmtree(long_project / "data" / folder)

    process = started(long_project)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)  # workers that outlive their parent would keep its standard error open
    assert files(long_project) == SOURCE_OUTPUTS, "it had finished before the kill"
    left = {int(path.stem) for path in (long_project / ".scan" / "resume").rglob("*.npz")}
    assert 3 <= len(left) < 20

    again = made_by_hand(long_project, tmp_path / "again", monkeypatch)
    assert again == sorted(set(range(20)) - left)
    assert outputs(long_project) == whole


def test_interrupted_it_says_so_in_one_line_and_goes_on_from_there(long_project):
    process = started(long_project)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.splitlines() == ["prepare: error: interrupted; the next run resumes from what is saved"]
    assert len(list((long_project / ".scan" / "resume").rglob("*.npz"))) >= 3
    run(long_project, sys.executable, "-m", "stages.prepare", SCAN_TRACKING="spool")
    assert "data/images/stats.json" in files(long_project)
