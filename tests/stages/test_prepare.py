"""prepare and source on folders and archives: what decides the bytes and what does not, kills, mistakes."""

import csv
import hashlib
import json
import os
import shutil
import signal
import sys
import tarfile
import zipfile
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scan_core.data import ingest
from scan_core.errors import ScanError
from stages import prepare as prepare_stage
from tests.project import OUTPUTS, SOURCE_OUTPUTS, error_of, files, half_done, make_project, run, run_stage, set_params

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


def array(project, path):
    return np.load(project / "data" / f"{path}.npy")


def items(project):
    return pq.read_table(project / "data" / "items" / "items.parquet").to_pydict()


def outputs(project):
    return {path: (project / path).read_bytes() for path in sorted(files(project))}


def prepare(project, **extra):
    """The files that source and prepare make; their text."""
    run_stage(project, "source")
    done = run_stage(project, "prepare", **extra)
    return outputs(project), done.stderr


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
    pairs = zip(items(project)["source"], array(project, "labels/labels"), strict=True)
    return {name: classes[number] if number >= 0 else None for name, number in pairs}


@pytest.fixture
def project(tmp_path):
    """A project whose images lie in three class folders."""
    made = make_project(tmp_path / "project", {"data": FOLDER})
    save(made / "images", in_classes())
    return made


# --- what comes out


def test_the_outputs_are_whole_and_nothing_else_is_left(project):
    made, said = prepare(project)
    prepared = {path for path in OUTPUTS if path.startswith(("data/images/", "data/items/", "data/labels/"))}
    assert set(made) == SOURCE_OUTPUTS | prepared
    assert not [path for path in (project / ".scan" / "resume").rglob("*") if path.suffix != ".lock"]
    assert not list((project / ".scan" / "outputs").rglob("*"))
    table, pixels = items(project), array(project, "images/pixels-00000")
    assert list(table) == ["id", "source", "split", "content"] and table["id"] == list(range(COUNT))
    for row, name in zip(pixels, table["source"], strict=True):
        wanted = picture(int(name[-7:-4])).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(row, np.asarray(wanted)), name
    hashed = [hashlib.sha256(row.tobytes()).digest() for row in pixels]
    draws = [int.from_bytes(hashlib.sha256(each + bytes(8)).digest()[:8], "big") / 2**64 for each in hashed]
    assert table["split"] == ["val" if draw < 0.25 else "train" for draw in draws]
    for split in ("train", "val"):
        rows = [row for row in table["id"] if table["split"][row] == split]
        assert array(project, f"images/{split}").tolist() == rows
    train, val = (table["split"].count(split) for split in ("train", "val"))
    counted = f"{train} train, {val} val; 0 rejected, 0 ignored, 0 exact and 0 near duplicates"
    assert f"prepare   40 images: {counted}\n" in said
    assert labels(project) == {name: name.split("/")[0] for name in in_classes()}


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


def zipped(folder, members=None):
    save(folder.parent / "loose", in_classes())
    with zipfile.ZipFile(folder, "w") as archive:
        for member in members or in_classes():
            archive.write(folder.parent / "loose" / member, member)


def zipped_backwards(folder):
    zipped(folder, members=in_classes()[::-1])


def tarred(folder):
    save(folder.parent / "loose", in_classes())
    with tarfile.open(folder, "w:gz") as archive:
        for member in np.random.default_rng(0).permutation(in_classes()):
            archive.add(folder.parent / "loose" / member, f"./deep/{member}")


@pytest.mark.parametrize("write", [other_names, other_classes, copied_backwards, zipped, zipped_backwards, tarred])
@pytest.mark.parametrize("store", ["array", "jpeg"])
def test_how_the_same_images_lie_there_changes_nothing_that_training_reads(project, tmp_path, write, store):
    set_params(project, {"data": {"store": store}})
    before, _ = prepare(project)
    name = "archive" if write in (zipped, zipped_backwards, tarred) else "folder"
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
    rows = "".join(f"{name},{('odd', 'even')[n % 2]}\n" for n, name in enumerate(in_classes()) if n > 9)
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
    rows = [f"{name if number < 3 else name.replace('/', '-')},x\n" for number, name in enumerate(in_classes())]
    (project / "mine.csv").write_text("source,label\n" + "".join(rows))
    set_params(project, {"data": {"labels": "mine.csv"}})
    _, said = prepare(project)
    names = "such as 'ant-003.png'; the source has 'ant/000.png'"
    assert f"prepare   warning: 37 of 40 rows of mine.csv name no image, {names}" in said.splitlines()
    assert list(labels(project).values()).count("x") == 3
    (project / "mine.csv").write_text("source,label\n" + "".join(rows[:3]))
    assert "warning" not in prepare(project)[1]


def test_an_official_split_is_kept_and_what_crosses_it_is_said(tmp_path):
    project = make_project(tmp_path / "project", {"data": {**FOLDER, "duplicates": "drop"}})
    save(project / "images", [f"{'train' if row < 20 else 'test'}/{row % 2}/{row}.png" for row in range(30)])
    shutil.copy(project / "images" / "train" / "0" / "4.png", project / "images" / "test" / "0" / "copy.png")
    _, said = prepare(project)
    pairs = {(name.split("/")[0], split) for _, name, split, _ in zip(*items(project).values(), strict=True)}
    assert pairs == {("train", "train"), ("test", "val")}
    assert "31 images: 20 train, 11 val; " in said
    assert "1 exact and 0 near duplicates; 1 of val with a copy or near copy in train\n" in said


@pytest.mark.parametrize(("duplicates", "count"), [("keep", 44), ("together", 44), ("drop", 41)])
def test_duplicates_are_listed_and_dropped_where_that_is_set(project, duplicates, count):
    for number in range(3):
        name = in_classes()[number]
        shutil.copy(project / "images" / name, project / "images" / f"copy-{number}.png")
    near = Image.fromarray(np.minimum(np.asarray(picture(7)), 250) + 3)
    near.save(project / "images" / "near.png")
    set_params(project, {"data": {"duplicates": duplicates, "size": 32}})
    _, said = prepare(project)
    found = findings(project)
    assert f"{count} images: " in said and "3 exact and 1 near duplicates" in said
    assert [kind for _, kind, _ in found].count("duplicate") == 3 and len(found) == 4
    assert {"near.png", in_classes()[7]} & {name for name, kind, _ in found if kind == "near_duplicate"}
    assert found == sorted(found)


def test_what_is_no_image_is_listed(project):
    before = images_of(prepare(project)[0])
    (project / "images" / "ant" / "notes.txt").write_text("notes")
    (project / "images" / ".hidden").write_text("")
    (project / "images" / "ant" / "cut.png").write_bytes((project / "images" / in_classes()[0]).read_bytes()[:100])
    set_params(project, {"data": {"max_rejected": 0.5}})
    assert images_of(prepare(project)[0]) == before
    listed = [(".hidden", "ignored"), ("ant/cut.png", "rejected"), ("ant/notes.txt", "ignored")]
    assert [row[:2] for row in findings(project)] == listed


# --- source


def listing(project, **extra):
    run_stage(project, "source", **extra)
    return (project / "data" / "source.json").read_bytes()


def test_source_tells_every_change_and_nothing_else(project):
    first = listing(project)
    assert listing(project) == first and json.loads(first)["content"]["source"]["files"] == COUNT
    new, newer = project / "images" / "new.png", project / "images" / "newer.png"
    (project / "mine.csv").write_text("source,label\n")
    seen = {first}
    for change in (
        lambda: picture(99).save(new),
        lambda: new.rename(newer),
        lambda: picture(98).save(newer),
        (project / "images" / in_classes()[0]).unlink,
        lambda: set_params(project, {"data": {"labels": "mine.csv"}}),
        lambda: (project / "mine.csv").write_text("source,label\na,b\n"),
    ):
        change()
        seen.add(listing(project))
    assert len(seen) == 7


def test_source_looks_at_imagenet_where_it_lies(project, tmp_path):
    set_params(project, {"data": {"name": "imagenet"}})
    seen = {listing(project)}
    (project / "datasets" / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    seen.add(listing(project))
    (tmp_path / "elsewhere" / "imagenet" / "val" / "n01440764").mkdir(parents=True)
    there = listing(project, SCAN_DATA=str(tmp_path / "elsewhere"))
    assert len(seen | {there}) == 3 and there == listing(project, SCAN_DATA="../elsewhere")


# --- mistakes


def rejected(project):
    with (project / ".scan" / "rejected.csv").open() as file:
        return [row["source"] for row in csv.DictReader(file)]


def test_too_many_that_cannot_be_used_end_the_run_with_their_list(project):
    bad = [f"bad-{number}.png" for number in range(5)]
    for name in bad:
        (project / "images" / name).write_bytes(b"no image")
    run_stage(project, "source")
    said = error_of(project, "prepare")
    assert "data.max_rejected is 0.05, but 5 of 45 images (11.1 %) cannot be used; repair or remove them" in said
    assert said.endswith("; .scan/rejected.csv lists them") and rejected(project) == bad
    assert files(project) == SOURCE_OUTPUTS
    for name in bad:
        (project / "images" / name).unlink()
    prepare(project)
    assert not (project / ".scan" / "rejected.csv").exists(), "a list of what has been repaired"


@pytest.mark.parametrize(("stage", "change", "said"), [
    ("source", {"path": "nowhere"}, "data.path is nowhere; there is nothing at "),
    ("source", {"labels": "nowhere.csv"}, "data.labels is nowhere.csv; there is no file "),
    ("source", {"path": None}, "path is null; data.name folder reads from a path"),
    ("prepare", {"mean": [0.5]}, "data.mean has 1 values; one per channel, 3, is allowed, or null"),
    ("prepare", {"name": "archive"}, "data.path is images, which is a folder; set data.name: folder"),
])  # fmt: skip
def test_bad_settings_end_in_one_line_and_leave_earlier_outputs(project, stage, change, said):
    before = images_of(prepare(project)[0])
    set_params(project, {"data": change})
    if stage == "prepare":
        run_stage(project, "source")
    assert said in error_of(project, stage)
    assert images_of(outputs(project)) == before


def test_what_prepare_needs_is_looked_for_before_it_decodes(project, monkeypatch):
    monkeypatch.setattr(ingest, "decode_chunk", None)
    assert "data/code/prepare.json is missing" in error_of(project, "prepare")
    (project / "mine.csv").write_text("name,label\n")
    set_params(project, {"data": {"labels": "mine.csv"}})
    run_stage(project, "source")
    assert 'has 0 columns named "source"' in error_of(project, "prepare")
    (project / "mine.csv").write_text("source,label\n")
    said = error_of(project, "prepare", SCAN_WORKERS="0")
    assert "SCAN_WORKERS is 0; a whole number of at least 1 is allowed" in said
    shutil.rmtree(project / "images")
    assert "data.path is images; there is nothing at " in error_of(project, "prepare")


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
    """prepare, with the first chunks done."""
    return half_done(project, "python -m stages.prepare", saved="000003.npz", SCAN_WORKERS="2")


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


# --- boxes


BOXES = [f"{name},{left},{top},6,7" for name in in_classes() for left, top in ((0, 0), (5, 4))]


def write_boxes(project, rows=BOXES):
    (project / "boxes.csv").write_text("\n".join(["source,left,top,width,height", *rows]))


@pytest.fixture
def boxes_project(project):
    set_params(project, {"data": {"boxes": "boxes.csv", "fit": "stretch"}})
    write_boxes(project)
    return project


def test_boxes_are_the_images_and_their_own_content_decides_their_side(boxes_project):
    _, said = prepare(boxes_project)
    table, pixels = items(boxes_project), array(boxes_project, "images/pixels-00000")
    assert sorted(table["source"]) == sorted(f"{name}#{number}" for name in in_classes() for number in (1, 2))
    for row, name in zip(pixels, table["source"], strict=True):
        left, top = (0, 0) if name.endswith("#1") else (5, 4)
        part = picture(int(name[-9:-6])).crop((left, top, left + 6, top + 7))
        assert np.array_equal(row, np.asarray(part.resize((8, 8), Image.Resampling.BICUBIC))), name
    assert labels(boxes_project) == {name: name.split("/")[0] for name in table["source"]}
    sides = dict(zip(table["source"], table["split"], strict=True))
    assert {sides[f"{name}#1"] == sides[f"{name}#2"] for name in in_classes()} == {True, False}
    assert "prepare   80 images: " in said


def test_images_without_a_box_are_listed_and_do_not_count_as_rejected(boxes_project):
    write_boxes(boxes_project, [*BOXES[40:], f"{in_classes()[-1]},11,0,9,9"])
    _, said = prepare(boxes_project)
    assert "40 images: " in said and "; 1 rejected, 20 ignored, " in said
    listed = {name: (kind, reason) for name, kind, reason in findings(boxes_project)}
    assert listed.pop(f"{in_classes()[-1]}#3")[0] == "rejected"
    assert listed == dict.fromkeys(in_classes()[:20], ("ignored", "no box in boxes.csv"))


def test_a_run_that_was_cut_off_goes_on_unless_the_boxes_have_changed(boxes_project, tmp_path, monkeypatch):
    write_boxes(boxes_project, BOXES[2:])
    run_stage(boxes_project, "source")
    assert made_by_hand(boxes_project, tmp_path / "log", monkeypatch) == list(range(10))
    whole = outputs(boxes_project)

    def cut_off():
        with monkeypatch.context() as patch:
            patch.setattr(prepare_stage, "check_rejected", mock.Mock(side_effect=ScanError("cut off")))
            patch.setattr(ingest, "CHUNK_ITEMS", 8)
            assert "cut off" in error_of(boxes_project, "prepare")
        chunks = sorted((boxes_project / ".scan" / "resume").rglob("*.npz"))
        chunks[3].unlink()

    cut_off()
    assert made_by_hand(boxes_project, tmp_path / "again", monkeypatch) == [3]
    assert outputs(boxes_project) == whole
    cut_off()
    write_boxes(boxes_project, [row.replace(",6,7", ",7,6") for row in BOXES[2:]])  # the same names
    run_stage(boxes_project, "source")
    assert made_by_hand(boxes_project, tmp_path / "anew", monkeypatch) == list(range(10))
    assert images_of(outputs(boxes_project)) != images_of(whole)


def test_source_tells_other_boxes(boxes_project):
    seen = {listing(boxes_project)}
    write_boxes(boxes_project, BOXES[1:])
    seen.add(listing(boxes_project))
    set_params(boxes_project, {"data": {"boxes": None}})
    assert len(seen | {listing(boxes_project)}) == 3


@pytest.mark.parametrize(("change", "rows", "said"), [
    ({"boxes": "nowhere.csv"}, [], "data.boxes is nowhere.csv; there is no file "),
    ({"boxes": "boxes.txt"}, [], 'data.boxes is "boxes.txt"; null or the path of a .csv or .json file is allowed'),
    ({"name": "npy"}, [], "data.boxes is boxes.csv; data.name npy has no image files"),
    ({}, ["ant/000.png,1,2,-3,4"], 'boxes.csv, line 2: width is "-3"; a number of pixels of at least 0 is allowed'),
    ({}, ["nowhere.png,1,2,3,4"], "boxes.csv, line 2: nowhere.png is not in the source, which has ant/000.png"),
])  # fmt: skip
def test_wrong_boxes_end_in_one_line_before_anything_is_decoded(boxes_project, monkeypatch, change, rows, said):
    monkeypatch.setattr(ingest, "decode_chunk", None)
    run_stage(boxes_project, "source")
    set_params(boxes_project, {"data": change})
    write_boxes(boxes_project, rows)
    assert said in error_of(boxes_project, "source" if change else "prepare")
