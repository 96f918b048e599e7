"""``scan data PATH``: it counts what is there, shows it, and what it suggests are settings."""

import contextlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline import look
from pipeline.cli import app
from pipeline.params import Params, read_params, read_yaml
from scan_core.errors import ScanError
from tests.project import ROOT, make_project, merge, run_stage, set_params


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def base():
    return read_params(ROOT / "presets" / "digits.yaml").data


def picture(seed, width=40, height=30, mode="RGB"):
    """Smooth, so that a copy saved again is nearly the same."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten, one image in no class, a copy, a grey one, one cut off, a text and a hidden file."""
    folder = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
    for seed in range(20):
        picture(seed).save(folder / ("cats" if seed % 2 else "dogs") / f"{seed}.png")
    picture(0).save(folder / "copy.jpg", quality=90)
    picture(21, 50, 60, "L").save(folder / "dogs" / "grey.jpg")
    (folder / "cats" / "cut.png").write_bytes((folder / "cats" / "1.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("cats are harder")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def looked(path, base, tmp_path, workers=1):
    return look.look(str(path), base, tmp_path, tmp_path / "scratch", workers)


def test_everything_in_a_folder_is_counted(photos, base, tmp_path):
    found = looked(photos, base, tmp_path)
    assert (found.images, found.labelled, found.classes, found.copies) == (22, 21, ["cats", "dogs"], 1)
    assert {finding.name: finding.kind for finding in found.findings} == {
        ".DS_Store": "ignored",
        "cats/cut.png": "rejected",
        "notes.txt": "ignored",
    }
    assert found.formats == {"PNG": 21, "JPEG": 2} and found.modes == {"RGB": 22, "L": 1}  # headers of all that has one
    assert (min(found.widths), max(found.widths), max(found.heights)) == (40, 50, 60)
    assert found.splits == {"no split of its own": 22}
    assert list((tmp_path / "scratch").iterdir()) == [], "it leaves nothing behind"


def test_an_archive_shows_the_same_as_the_folder(photos, base, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, file.relative_to(photos))
    folder, packed = looked(photos, base, tmp_path), looked(tmp_path / "photos.zip", base, tmp_path, 2)
    for name in ("images", "labelled", "classes", "copies", "formats", "modes", "splits"):
        assert getattr(folder, name) == getattr(packed, name), name
    assert packed.settings.name == "archive"


def test_what_is_suggested_are_valid_settings(photos, base, tmp_path):
    suggested = look.suggest(looked(photos, base, tmp_path))
    assert suggested["data"] | {"path": None} == {
        "name": "folder", "path": None, "labels": "folders", "size": 32, "view": None, "fit": "crop",
        "duplicates": "drop", "protocol": "split",
    }  # fmt: skip
    assert suggested["cluster"]["num_clusters"] == 2
    # 21 images without the copy, a fifth of them held out: three others each has there.
    assert suggested["neighbors"] == {"k": 3} and suggested["cluster"]["val_neighbors"] == 3
    settings = merge(read_yaml(ROOT / "presets" / "digits.yaml"), suggested)
    assert settings["pretext"]["augmentation"]["flip"] == 0.5 and settings["pretext"]["augmentation"]["hue"] == 0.1
    assert settings["selflabel"]["augmentation"]["cutout"] == 10


def test_grey_images_keep_the_views_that_are_there(base, tmp_path):
    """They may be digits, which a flip makes into something else."""
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    suggested = look.suggest(looked(tmp_path / "grey.npy", base, tmp_path))
    assert not any("augmentation" in group for group in suggested.values())


@pytest.mark.parametrize(("size", "stem", "batch"), [(32, "small", 512), (64, "stl", 512), (96, "stl", 256)])
def test_the_network_and_its_batch_fit_the_size(base, size, stem, batch):
    found = look.Look("photos", base, heights=[size] * 3000, widths=[size] * 3000, images=3000)
    found.splits["no split of its own"] = 3000
    suggested = look.suggest(found)
    assert (suggested["backbone"]["stem"], suggested["pretext"]["batch_size"]) == (stem, batch)
    assert suggested["cluster"]["augmentation"]["cutout"] == suggested["data"]["size"] // 3
    settings = merge(read_yaml(ROOT / "presets" / "cifar10_cpu.yaml"), suggested)  # whatever stood there before
    for name in ("pretext", "cluster", "selflabel"):
        settings[name]["augmentation"] = suggested[name]["augmentation"]
    Params.model_validate(settings, strict=False)


def test_without_labels_everything_is_grouped(base, tmp_path):
    for seed in range(8):
        picture(seed, 300, 80).save(tmp_path / f"{seed}.png")
    suggested = look.suggest(looked(tmp_path, base, tmp_path / "elsewhere"))
    assert suggested["data"]["labels"] == "none" and suggested["data"]["protocol"] == "all"
    assert suggested["data"]["fit"] == "pad", "most images are long"
    assert suggested["data"]["size"] == 96 and suggested["data"]["duplicates"] == "keep"


def test_many_images_get_the_usual_number_of_neighbours(base, tmp_path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).integers(0, 256, (600, 8, 8), dtype=np.uint8))
    suggested = look.suggest(looked(tmp_path / "many.npy", base, tmp_path))
    assert suggested["neighbors"] == {"k": 50} and suggested["cluster"]["neighbors"] == 20


def test_what_is_suggested_runs(tmp_path):
    """Put into params.yaml, whose other settings and comments stay: the stages up to the clustering take it."""
    photos = tmp_path / "a long name # with what YAML takes for a comment, and [brackets] that rich takes for a style"
    photos.mkdir()
    for seed in range(60):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            photos / f"{seed}.png"
        )
    project = make_project(tmp_path / "project")
    shutil.copytree(ROOT / "presets", project / "presets")
    with (project / "params.yaml").open("a") as file:
        file.write("# mine\n")
    before = (project / "params.yaml").read_bytes()
    with contextlib.chdir(project):
        printed = CliRunner().invoke(app, ["data", str(photos), "--use"]).stdout
    assert "[brackets]" in printed
    suggested = YAML(typ="safe", pure=True).load(printed.partition("puts them there):")[2].partition("params.yaml")[0])
    assert suggested["data"]["path"] == str(photos) and suggested["neighbors"] == {"k": 5}
    now = read_yaml(project / "params.yaml")
    for group, values in suggested.items():
        assert now[group] | values == now[group], group
    kept = printed.partition("kept as ")[2].split()[0]
    assert (project / kept).read_bytes() == before and (project / "params.yaml").read_text().endswith("# mine\n")
    assert now["seed"] == read_yaml(project / kept)["seed"] and now["embed"] == read_yaml(project / kept)["embed"]
    for stage in ("source", "prepare"):
        run_stage(project, stage)
    set_params(project, {"backbone": {"name": "convnet", "width": 4, "stem": "small"}})  # it need not learn
    for stage in ("pretext", "embed", "neighbors", "cluster"):
        run_stage(project, stage)


def test_settings_that_do_not_go_with_those_that_stay_are_refused(photos, tmp_path):
    """MoCo's keys are computed in equal parts of the batch, and there are few images."""
    project = make_project(tmp_path / "project")
    shutil.copytree(ROOT / "presets", project / "presets")
    shutil.copy(project / "presets" / "imagenet_50.yaml", project / "params.yaml")
    before = (project / "params.yaml").read_bytes()
    with contextlib.chdir(project):
        done = CliRunner().invoke(app, ["data", str(photos), "--use"])
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == (
        "scan: error: params.yaml stays as it is, for with these settings pretext.key_groups is 8; a divisor of "
        "batch_size, 4, is allowed; scan use digits first"
    )
    assert (project / "params.yaml").read_bytes() == before
    assert [path.name for path in (project / ".scan").iterdir()] == ["contact_sheet.png"]


def test_a_photo_of_a_phone_has_a_size(base, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture(0, 200, 120).save(tmp_path / "photo.heic")
    found = looked(tmp_path, base, tmp_path / "elsewhere")
    assert (found.images, found.widths, found.heights, found.formats) == (1, [200], [120], {"HEIF": 1})


def test_a_hidden_table_makes_no_data_set_of_tables(photos):
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.parquet").write_bytes(b"")
    assert look.kind_of(photos) == "folder"
    (photos / "x.parquet").write_bytes(b"")
    assert look.kind_of(photos) == "parquet"


def test_the_contact_sheet_shows_the_images_it_can(photos, base, tmp_path):
    found = looked(photos, base, tmp_path)
    assert look.contact_sheet(found, tmp_path / "sheets" / "sheet.png") == 22
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        assert sheet.size == (12 * 102 + 6, 2 * 102 + 6)
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_a_sample_is_drawn_from_everything(base, tmp_path):
    np.save(
        tmp_path / "many.npy", np.arange(500, dtype=np.uint16)[:, None, None].repeat(8, 1).repeat(8, 2).astype(np.uint8)
    )
    found = looked(tmp_path / "many.npy", base, tmp_path)
    rows = [int(item.name.rpartition("/")[2]) for item in found.sample]
    assert len(set(rows)) == 96 and min(rows) < 100 and max(rows) > 400


@pytest.mark.parametrize("content", [None, b"not an archive"])
def test_what_cannot_be_read_is_one_line(base, tmp_path, content):
    path = tmp_path / "photos.zip"
    if content:
        path.write_bytes(content)
    with pytest.raises(ScanError) as caught:
        looked(path, base, tmp_path)
    assert "\n" not in str(caught.value) and "photos.zip" in str(caught.value)


def test_the_command_prints_it_all(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sheet = tmp_path / "sheet.png"
    done = CliRunner().invoke(app, ["data", str(photos), "--sheet", str(sheet)], env={"SCAN_WORKERS": "1"})
    assert done.exit_code == 0, done.output
    for part in ("22", "21 PNG", "1 L", "2 classes, 21 of 22", "1 truncated", "cats/cut.png", "num_clusters: 2"):
        assert part in done.output, part
    assert sheet.exists()
    failed = CliRunner().invoke(app, ["data", str(tmp_path / "nothing")])
    assert failed.exit_code == 1 and "scan: error: there is nothing at" in failed.output


def test_no_image_at_all_is_said_without_a_suggestion(tmp_path, base):
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "empty" / "notes" / "a.txt").write_text("x")
    found = looked(tmp_path / "empty", base, tmp_path)
    assert found.images == 0 and [finding.kind for finding in found.findings] == ["ignored"]
    look.show(found, tmp_path / "sheet.png", look.contact_sheet(found, tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.png").stat().st_size
