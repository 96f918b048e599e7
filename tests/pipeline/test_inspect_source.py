"""``scan data PATH``: it counts what a source holds, shows it, and suggests valid settings."""

import contextlib
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline import inspect_source as look
from pipeline.cli import app
from pipeline.params import Params, read_yaml
from pipeline.presets import list_presets, preset_values, read_preset
from pipeline.suggest import suggest_frozen, suggest_training
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from tests.project import ROOT, completed, make_project, merge, run_stages, set_params


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def present():
    return read_preset(ROOT / "presets" / "digits.yaml")


@pytest.fixture(scope="module")
def base(present):
    return present.data


def picture(seed, width=40, height=30, mode="RGB"):
    """Smooth, so that a copy saved again is nearly the same."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten, an image without a class, a copy, a gray image, a truncated one, a text and a hidden file."""
    folder = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
    for seed in range(20):
        picture(seed).save(folder / ("cats" if seed % 2 else "dogs") / f"{seed}.png")
    picture(0).save(folder / "copy.jpg", quality=90)
    picture(21, 50, 60, "L").save(folder / "dogs" / "gray.jpg")
    (folder / "cats" / "cut.png").write_bytes((folder / "cats" / "1.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("cats are harder")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def inspect(path, base, tmp_path, workers=1):
    return look.inspect_source(str(path), base, tmp_path, tmp_path / "scratch", workers)


@pytest.mark.parametrize(("kind", "workers"), [("folder", 1), ("archive", 2)])
def test_everything_in_a_folder_or_an_archive_is_counted(photos, base, tmp_path, kind, workers):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, file.relative_to(photos))
    found = inspect(photos if kind == "folder" else tmp_path / "photos.zip", base, tmp_path, workers)
    assert (found.images, found.labeled, found.classes, found.copies) == (22, 21, ["cats", "dogs"], 1)
    kinds = {".DS_Store": "ignored", "cats/cut.png": "rejected", "notes.txt": "ignored"}
    assert {finding.name: finding.kind for finding in found.findings} == kinds
    assert found.formats == {"PNG": 21, "JPEG": 2} and found.modes == {"RGB": 22, "L": 1}  # the truncated one too
    assert set(found.sizes) == {(40, 30), (50, 60)} and found.all_gray is False
    assert found.splits == {"no split of its own": 22} and found.settings.name == kind
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_suggested_settings_are_valid(photos, present, tmp_path):
    suggested = suggest_training(inspect(photos, present.data, tmp_path), present, "folders")
    wanted = {"name": "folder", "path": str(photos), "labels": "folders", "size": 32, "view": None, "fit": "crop"}
    wanted |= {"store": "auto", "duplicates": "drop", "protocol": "split", "mean": None, "std": None}
    assert suggested["data"] == wanted
    assert suggested["cluster"]["num_clusters"] == 2
    # Of 21 images without the copy, each is in val with probability a fifth: only two are sure to be there.
    assert suggested["neighbors"]["k"] == 1 and suggested["cluster"]["val_neighbors"] == 1
    settings = merge(preset_values(ROOT / "presets" / "digits.yaml"), suggested)
    assert settings["pretext"]["augmentation"]["flip"] == 0.5 and settings["pretext"]["augmentation"]["hue"] == 0.1
    assert settings["selflabel"]["augmentation"]["cutout"] == 10


def test_gray_images_keep_the_current_augmentations(present, tmp_path):
    """They may be digits, which must not be flipped."""
    np.save(tmp_path / "gray.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    suggested = suggest_training(inspect(tmp_path / "gray.npy", present.data, tmp_path), present, "none")
    assert not any("augmentation" in group for group in suggested.values())


def changed(values, suggested):
    """Settings after ``--use``: each that is suggested takes the place of the one there."""
    return completed(
        {key: value | suggested.get(key, {}) if isinstance(value, dict) else value for key, value in values.items()}
    )


FROZEN = {  # as scan weights import prints them
    "data": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 224, "view": 160},
    "backbone": {"name": "timm", "model": "vit_small_patch14_dinov2", "stem": "imagenet", "weights": "w.safetensors"},
    "pretext": {"method": "none"},
    "embed": {"features": "backbone"},
    "cluster": {"train": "head", "augmentation": {"kind": "none"}, "num_clusters": 10, "prior": [0.1] * 10},
    "selflabel": {"train": "head"},
}


def seen(base, gray, count):
    return look.Inspection("photos", base, sizes=[(40, 40)] * count, images=count, all_gray=gray)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("preset", sorted(list_presets(ROOT / "presets")))
@pytest.mark.slow
def test_any_settings_become_those_of_a_network_trained_from_scratch(preset, gray):
    own = preset_values(ROOT / "presets" / f"{preset}.yaml")
    others = [] if own["embed"]["spaces"] else [FROZEN, {"data": {"store": "jpeg"}, "neighbors": {"smoothing": 50}}]
    methods = variants(Pretext)
    others += [{"pretext": {"method": method}, "embed": {"features": "backbone"}} for method in methods if others]
    for values in (own, *(changed(own, other) for other in others)):
        before = Params.model_validate_json(json.dumps(values))
        for count in (8, 500, 3000):
            suggested = suggest_training(seen(before.data, gray, count), before, "none")
            after = Params.model_validate_json(json.dumps(changed(values, suggested)))
            assert (after.data.mean, after.data.std, after.data.stored) == (None, None, "array")
            assert (after.backbone.name, after.backbone.model, after.backbone.weights) == ("resnet18", None, None)
            assert (after.cluster.train, after.selflabel.train, after.cluster.prior) == ("all", "all", None)
            assert after.cluster.augmentation.kind != "none"
            kept = before.pretext.method not in ("none", "moco") or (before.pretext.method == "moco" and count == 3000)
            assert after.pretext.method == (before.pretext.method if kept else "simclr")
            assert after.neighbors.smoothing == min(before.neighbors.smoothing, after.neighbors.k)


@pytest.mark.parametrize(("size", "stem", "batch"), [(32, "small", 512), (64, "stl", 512), (96, "stl", 256)])
def test_the_network_and_its_batch_fit_the_size(present, size, stem, batch):
    many = look.Inspection("photos", present.data, sizes=[(size, size)] * 3000, images=3000)
    suggested = suggest_training(many, present, "none")
    assert (suggested["backbone"]["stem"], suggested["pretext"]["batch_size"]) == (stem, batch)
    assert suggested["cluster"]["augmentation"]["cutout"] == suggested["data"]["size"] // 3
    assert (suggested["neighbors"]["k"], suggested["cluster"]["neighbors"]) == (50, 20)


@pytest.mark.parametrize("preset", ["digits", "imagenet_50", "photos"])
@pytest.mark.parametrize(("count", "short", "stored", "side"), [
    (8, 32, 32, 128), (3000, 100, 128, 128), (3000, 130, 160, 224), (3000, 3000, 224, 224), (30_000, 3000, 128, 128),
])  # fmt: skip
def test_a_frozen_network_is_suggested_and_no_more_pixels_are_stored_than_there_are(preset, count, short, stored, side):
    values = preset_values(ROOT / "presets" / f"{preset}.yaml")
    before = Params.model_validate_json(json.dumps(values))
    many = look.Inspection("photos", before.data, sizes=[(short, 2 * short)] * count, images=count)
    after = Params.model_validate_json(json.dumps(changed(values, suggest_frozen(many, "none"))))
    assert (after.data.labels, after.data.protocol, after.data.duplicates) == ("none", "all", "keep")
    assert (after.data.size, after.embed.spaces[0].side) == (stored, side)
    assert (after.pretext.method, after.cluster.method, after.selflabel.epochs) == ("none", "frozen", 0)
    photos = read_preset(ROOT / "presets" / "photos.yaml").cluster  # not what an earlier method left
    few = {key: getattr(after.cluster, key) for key in ("neighbors", "val_neighbors")}
    assert after.cluster == photos.model_copy(update=few)
    assert suggest_frozen(many, "folders")["data"]["protocol"] == "split"


def test_without_labels_every_image_is_clustered(present, tmp_path):
    for seed in range(8):
        picture(seed, 300, 80).save(tmp_path / f"{seed}.png")
    suggested = suggest_training(inspect(tmp_path, present.data, tmp_path / "elsewhere"), present, "none")
    assert suggested["data"]["labels"] == "none" and suggested["data"]["protocol"] == "all"
    assert suggested["data"]["fit"] == "pad", "most images are long"
    assert suggested["data"]["size"] == 96 and suggested["data"]["duplicates"] == "keep"


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.slow
def test_the_suggested_settings_run(tmp_path, channels):
    """``--use`` keeps the other settings and comments of params.yaml, and every stage up to cluster runs."""
    photos = tmp_path / "a long name # with what YAML takes for a comment, and [brackets] that rich takes for a style"
    photos.mkdir()
    for seed in range(60):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, *channels), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{seed}.png")
    cifar = preset_values(ROOT / "presets" / "cifar10.yaml")
    data = {key: cifar["data"][key] for key in ("size", "mean", "std")}
    views = {name: {"augmentation": cifar[name]["augmentation"]} for name in ("pretext", "selflabel")}
    project = make_project(tmp_path / "project", {"data": data, **views})
    shutil.copytree(ROOT / "presets", project / "presets")
    with (project / "params.yaml").open("a") as file:
        file.write("# mine\n")
    before = (project / "params.yaml").read_bytes()
    with contextlib.chdir(project):
        printed = CliRunner().invoke(app, ["data", str(photos), "--use", "--train"]).stdout
    assert "[brackets]" in printed
    suggested = YAML(typ="safe", pure=True).load(printed.partition("puts them there):")[2].partition("params.yaml")[0])
    assert suggested["data"]["path"] == str(photos) and suggested["neighbors"]["k"] == 1
    now = read_yaml(project / "params.yaml")
    for group, values in suggested.items():
        assert now[group] | values == now[group], group
    kept = printed.partition("old settings is ")[2].split()[0]
    assert (project / kept).read_bytes() == before and (project / "params.yaml").read_text().endswith("# mine\n")
    assert now["seed"] == read_yaml(project / kept)["seed"] and now["embed"] == read_yaml(project / kept)["embed"]
    run_stages(project, "source", "prepare")
    set_params(project, {"backbone": {"name": "convnet", "width": 4, "stem": "small"}})  # it need not learn
    run_stages(project, "pretext", "embed", "neighbors", "cluster")


def test_settings_that_are_not_valid_are_not_used(photos, tmp_path, monkeypatch):
    project = make_project(tmp_path / "project")
    shutil.copytree(ROOT / "presets", project / "presets")
    before = (project / "params.yaml").read_bytes()
    monkeypatch.setattr("pipeline.suggest.suggest_frozen", lambda *_: {"data": {"size": 4}})
    with contextlib.chdir(project):
        done = CliRunner().invoke(app, ["data", str(photos), "--use"])
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == (
        "scan: error: params.yaml stays as it is, because with these settings data.size is 4; input should be "
        "greater than or equal to 8; change that first"
    )
    assert (project / "params.yaml").read_bytes() == before
    assert [path.name for path in (project / ".scan").iterdir()] == ["contact_sheet.png"]


def test_a_phone_s_photo_has_a_size(base, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture(0, 200, 120).save(tmp_path / "photo.heic")
    found = inspect(tmp_path, base, tmp_path / "elsewhere")
    assert (found.images, found.sizes, found.formats) == (1, [(200, 120)], {"HEIF": 1})


def test_a_hidden_table_makes_no_data_set_of_tables(photos):
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.parquet").write_bytes(b"")
    assert look.kind_of(photos) == "folder"
    (photos / "x.parquet").write_bytes(b"")
    assert look.kind_of(photos) == "parquet"


def test_a_sample_is_drawn_from_everything(base, tmp_path):
    pixels = np.broadcast_to((np.arange(500) % 256).astype(np.uint8)[:, None, None], (500, 8, 8))
    np.save(tmp_path / "many.npy", pixels)
    found = inspect(tmp_path / "many.npy", base, tmp_path)
    rows = [int(item.name.rpartition("/")[2]) for item in found.sample]
    assert len(set(rows)) == 96 and min(rows) < 100 and max(rows) > 400


def scan_data(path, *options):
    return CliRunner().invoke(app, ["data", str(path), *options], env={"SCAN_WORKERS": "1"})


def test_the_command_prints_everything_and_writes_a_contact_sheet(photos, tmp_path, monkeypatch):
    sheet = tmp_path / "sheets" / "sheet.png"
    done = scan_data(photos, "--sheet", str(sheet))
    assert done.exit_code == 0, done.output
    for part in (
        "22", "40 to 50 pixels, median 40", "21 PNG", "1 L", "2 classes, 21 of 22", "1 truncated", "cats/cut.png",
        "2 other files", "num_clusters: 2",
    ):  # fmt: skip
        assert part in done.output, part
    with Image.open(sheet) as image:
        assert image.size == (12 * 102 + 6, 2 * 102 + 6)  # 22 images, 12 in a row
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 1000
    monkeypatch.setattr(look, "inspect_source", lambda *_: pytest.fail("it read everything first"))
    failed = scan_data(photos, "--sheet", "sheet")
    assert failed.exit_code == 1 and failed.output == "scan: error: --sheet is sheet; a .png or .jpg file is allowed\n"


@pytest.mark.parametrize("content", [None, b"not an archive"])
def test_an_unreadable_source_is_an_error(tmp_path, content):
    path = tmp_path / "photos.zip"
    if content:
        path.write_bytes(content)
    failed = scan_data(path, "--sheet", str(tmp_path / "sheet.png"))
    assert failed.exit_code == 1 and failed.stderr.splitlines()[-1].startswith("scan: error: ")
    assert "photos.zip" in failed.stderr.splitlines()[-1] and not (tmp_path / "sheet.png").exists()


def test_a_source_without_images_gets_no_suggestion(tmp_path):
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "empty" / "notes" / "a.txt").write_text("x")
    done = scan_data(tmp_path / "empty", "--sheet", str(tmp_path / "sheet.png"))
    assert done.exit_code == 0 and "1 other files" in done.output and "Suggested" not in done.output
    assert (tmp_path / "sheet.png").stat().st_size
