"""What is found in a source: by all names, and by a sample that is decoded."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.inspect_source import Inspection, detail_outside, inspect_source, kind_of, write_contact_sheet
from pipeline.presets import read_preset
from scan_core.errors import ScanError
from tests.project import ROOT
from tests.tiny import data_settings

BASE = read_preset(ROOT / "presets" / "digits.yaml").data


def make(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two classes, an image without a class, a gray and a truncated one, a text and a hidden image."""
    animals = [f"{'cats' if number % 2 else 'dogs'}/{number}.png" for number in range(20)]
    folder = make(tmp_path / "photos", *animals, "alone.JPG", "._alone.jpg")
    Image.new("L", (50, 60)).save(folder / "dogs" / "gray.jpg")
    (folder / "cats" / "cut.png").write_bytes((folder / "cats" / "1.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("cats are harder")
    return folder


def inspect(path, tmp_path, workers=1, base=BASE):
    return inspect_source(str(path), base, tmp_path, tmp_path / "scratch", workers)


@pytest.mark.parametrize(("kind", "workers"), [("folder", 1), ("archive", 2)])
def test_all_is_counted_and_what_can_be_read_of_a_sample_is_shown(photos, tmp_path, kind, workers):
    shutil.make_archive(str(photos), "zip", photos)
    found = inspect(photos if kind == "folder" else tmp_path / "photos.zip", tmp_path, workers)
    assert found.settings.name == kind and found.settings.path == found.path
    assert (found.images, found.others, found.labeled, found.classes) == (23, 2, 22, ["cats", "dogs"])
    assert found.splits == {"no split of its own": 23} and len(found.sample) == 23
    assert found.refused == [("cats/cut.png", "rejected", "truncated")]
    assert found.formats == {"PNG": 21, "JPEG": 2} and found.modes == {"RGB": 22, "L": 1}  # the truncated one too
    assert sorted(found.sizes) == [(40, 30)] * 22 + [(50, 60)] and found.all_gray is False
    assert found.seconds > 0 and found.read_seconds > 0 and list((tmp_path / "scratch").iterdir()) == []
    assert write_contact_sheet(found, tmp_path / "sheets" / "sheet.png") == 22
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "sheet.png"))
    assert sheet.shape == (2 * 102 + 6, 12 * 102 + 6, 3)  # 12 in a row
    tiles = [sheet[y + 6 : y + 102, x + 6 : x + 102].tobytes() for y in (0, 102) for x in range(0, 12 * 102, 102)]
    assert len(set(tiles[:22])) == 22 and set(tiles[22:]) == {b"\xff" * 96 * 96 * 3}
    found = inspect(photos, tmp_path, workers, BASE.model_copy(update={"max_pixels": 1000}))
    assert (len(found.refused), len(found.sizes), found.all_gray) == (23, 23, False)
    boxed = BASE.model_copy(update={"name": "folder", "path": "elsewhere", "boxes": "elsewhere.csv"})
    assert inspect(photos, tmp_path, workers, boxed).images == 23, "whole images, whatever is in use"
    assert write_contact_sheet(found, tmp_path / "sheet.png") == 0


@pytest.mark.parametrize(("names", "classes", "labeled", "splits"), [
    ("x/a.png x/b.png", [], 0, {"no split of its own": 2}),
    ("train/9/a.png train/10/b.png unlabelled/c.png", ["train"], 2, {"no split of its own": 3}),
    ("train/9/a.png train/10/b.png test/9/c.png", ["9", "10"], 3, {"train": 2, "val": 1}),
    ("train/9/a.png valid/9/c.png unlabelled/d.png unlabelled/e.png", ["9"], 2, {"train": 1, "val": 1, "unlabeled": 2}),
])  # fmt: skip
def test_folders_are_classes_or_splits(tmp_path, names, classes, labeled, splits):
    found = inspect(make(tmp_path / "photos", *names.split()), tmp_path)
    assert (found.classes, found.labeled, found.splits) == (classes, labeled, splits)


def test_a_stray_table_beside_photos_is_another_programs(tmp_path):
    photos = make(tmp_path / "photos", "a/1.png", "b/2.png")
    pd.DataFrame({"id": [1], "vector": [[0.1]]}).to_parquet(photos / "embeddings.parquet")
    assert kind_of(photos) == "folder"
    pd.DataFrame({"file_name": ["a/1.png", "b/2.png"]}).to_parquet(photos / "metadata.parquet")
    assert kind_of(photos) == "folder"
    (photos / "embeddings.parquet").unlink()
    assert kind_of(photos) == "parquet"
    assert inspect_source(str(photos), BASE, tmp_path, tmp_path / "scratch", 1, kind="folder").settings.name == "folder"


def test_what_is_understood_can_be_corrected(tmp_path):
    photos = make(tmp_path / "photos", "train/a.png", "test/b.png", "test/c.png")
    (photos / "clip.mov").write_bytes(b"moov")
    (tmp_path / "labels.csv").write_text("source,label\ntrain/a.png,x\ntest\\b.png,y\n")
    found = inspect_source(str(photos), BASE, tmp_path, tmp_path / "scratch", 1, split="none", labels="labels.csv")
    assert (found.classes, found.labeled, found.splits) == (["x", "y"], 2, {"no split of its own": 3})
    assert found.left_out == {".mov": 1}
    with pytest.raises(ScanError, match=r"--as is npy, but .* is a folder; folder or parquet is allowed"):
        inspect_source(str(photos), BASE, tmp_path, tmp_path / "scratch", 1, kind="npy")


def test_a_table_s_rows_are_images_whatever_they_are_called(tmp_path):
    encoded = (make(tmp_path, "a.webp") / "a.webp").read_bytes()
    pd.DataFrame({"image": [encoded] * 3, "label": ["a", "b", "a"]}).to_parquet(tmp_path / "x.parquet")
    found = inspect(tmp_path / "x.parquet", tmp_path)
    assert (found.images, found.classes, found.labeled, found.formats) == (3, ["a", "b"], 3, {"WEBP": 3})


@pytest.mark.parametrize(("channels", "mode"), [((), "gray"), ((3,), "color")])
def test_a_sample_is_drawn_uniformly_from_all_of_an_array(tmp_path, channels, mode):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).integers(0, 256, (500, 8, 9, *channels), dtype=np.uint8))
    found = inspect(tmp_path / "many.npy", tmp_path)
    assert (found.images, found.others, found.labeled, found.refused) == (500, 0, 0, [])
    assert (found.formats, found.modes, found.sizes) == ({"array": 96}, {mode: 96}, [(9, 8)] * 96)
    rows = [int(item.name.rpartition("/")[2]) for item in found.sample]
    assert len(set(rows)) == 96 and min(np.histogram(rows, 5, (0, 500))[0]) >= 10  # of 19.2 expected in each
    assert found.all_gray == (mode == "gray")


def test_a_source_without_images_is_an_error_of_one_line(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "x.zip"):
        (tmp_path / name).write_bytes(b"not an image")
    for name, said in (
        ("texts", "no image among its 1 files; give a "),
        ("x.zip", "not an archive"),
        ("y", "^there is"),
    ):
        with pytest.raises(ScanError, match=said) as failed:
            inspect(tmp_path / name, tmp_path)
        assert "\n" not in str(failed.value) and not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(("short", "side"), [
    ([], 32), ([32], 32), ([33], 64), ([129], 160), ([3000], 224), ([32, 3000], 32), ([3000, 32, 3000], 224),
])  # fmt: skip
def test_the_side_follows_the_short_side_of_most_images(short, side):
    assert Inspection("x", BASE, sizes=[size for each in short for size in ((each, 9000), (9000, each))]).side == side


def test_a_path_says_what_kind_of_source_it_is(tmp_path):
    for kind, name in (
        ("folder", "a/b.png"), ("folder", "a/.cache/x.parquet"), ("parquet", "a/c/x.parquet"),
        ("parquet", "x.PARQUET"), ("npy", "x.npy"), ("archive", "x.tar.gz"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert kind_of(tmp_path / name.split("/")[0]) == kind


@pytest.mark.parametrize(("shape", "where", "share"), [
    ((60, 180), (66, 114), 0), ((60, 180), (0, 60), 1), ((180, 60), (66, 114), 0), ((180, 60), (0, 60), 1),
    ((60, 180), (0, 180), 2 / 3), ((90, 120), (0, 120), 1 / 4),
])  # fmt: skip
def test_detail_counts_and_not_the_empty_wall_beside_it(shape, where, share):
    pixels = np.full(shape, 250, np.uint8)
    noise = np.random.default_rng(0).integers(0, 250, shape)
    part = (slice(None), slice(*where)) if shape[1] > shape[0] else (slice(*where), slice(None))
    pixels[part] = noise[part]
    assert detail_outside(Image.fromarray(pixels)) == pytest.approx(share, abs=0.06)


def test_an_image_without_any_detail_loses_none():
    assert detail_outside(Image.new("RGB", (300, 100), "gray")) == 0


@pytest.mark.parametrize(("tall", "cut"), [(0, 0.0), (3, 0.3), (10, 1.0)])
def test_the_share_of_images_that_a_square_would_spoil_is_measured(tmp_path, tall, cut):
    rng = np.random.default_rng(0)
    for number in range(10):
        size = (40, 140) if number < tall else (40, 50)
        pixels = rng.integers(0, 250, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = inspect_source(str(tmp_path), data_settings(), tmp_path, tmp_path / "scratch", 1)
    assert found.cut == pytest.approx(cut)
