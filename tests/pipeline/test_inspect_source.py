"""What is found in a source: by all names, and by a sample that is decoded."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.inspect_source import Inspection, inspect_source, kind_of, write_contact_sheet
from pipeline.presets import read_preset
from scan_core.errors import ScanError
from tests.project import ROOT


@pytest.fixture(scope="module")
def base():
    return read_preset(ROOT / "presets" / "digits.yaml").data


def picture(seed, width=40, height=30, mode="RGB"):
    colors = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten, an image without a class, a gray and a truncated one, a text and a hidden image."""
    folder = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
    for seed in range(20):
        picture(seed).save(folder / ("cats" if seed % 2 else "dogs") / f"{seed}.png")
    picture(20).save(folder / "alone.JPG")
    picture(21, 50, 60, "L").save(folder / "dogs" / "gray.jpg")
    (folder / "cats" / "cut.png").write_bytes((folder / "cats" / "1.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("cats are harder")
    picture(22).save(folder / "._alone.jpg")
    return folder


def inspect(path, base, tmp_path, workers=1):
    return inspect_source(str(path), base, tmp_path, tmp_path / "scratch", workers)


@pytest.mark.parametrize(("kind", "workers"), [("folder", 1), ("archive", 2)])
def test_all_of_a_folder_or_an_archive_is_counted_and_a_small_one_is_decoded_whole(
    photos, base, tmp_path, kind, workers
):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, file.relative_to(photos))
    path = photos if kind == "folder" else tmp_path / "photos.zip"
    found = inspect(path, base, tmp_path, workers)
    assert (found.path, found.settings.name, found.settings.path) == (str(path), kind, str(path))
    assert (found.images, found.others, found.labeled, found.classes) == (23, 2, 22, ["cats", "dogs"])
    assert found.splits == {"no split of its own": 23} and len(found.sample) == 23
    assert [(each.name, each.kind, each.reason) for each in found.refused] == [
        ("cats/cut.png", "rejected", "truncated")
    ]
    assert found.formats == {"PNG": 21, "JPEG": 2} and found.modes == {"RGB": 22, "L": 1}  # the truncated one too
    assert sorted(found.sizes) == [(40, 30)] * 22 + [(50, 60)]
    assert found.side == 32 and found.all_gray is False
    assert found.seconds > 0 and found.read_seconds > 0
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("names", "classes", "labeled", "splits"), [
    ("a.png b.png", [], 0, {"no split of its own": 2}),
    ("x/a.png x/b.png", [], 0, {"no split of its own": 2}),
    ("train/9/a.png train/10/b.png unlabelled/c.png", ["train"], 2, {"no split of its own": 3}),
    ("train/9/a.png train/10/b.png test/9/c.png", ["9", "10"], 3, {"train": 2, "val": 1}),
    ("train/9/a.png valid/9/c.png unlabelled/d.png unlabelled/e.png", ["9"], 2, {"train": 1, "val": 1, "unlabeled": 2}),
])  # fmt: skip
def test_folders_are_classes_or_splits(base, tmp_path, names, classes, labeled, splits):
    for seed, name in enumerate(names.split()):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / "photos" / name)
    found = inspect(tmp_path / "photos", base, tmp_path)
    assert (found.classes, found.labeled, found.splits) == (classes, labeled, splits)


@pytest.mark.parametrize(("channels", "mode"), [((), "gray"), ((3,), "color")])
def test_arrays_are_images(base, tmp_path, channels, mode):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (5, 36, 40, *channels), dtype=np.uint8))
    found = inspect(tmp_path / "x.npy", base, tmp_path)
    assert (found.images, found.others, found.labeled, found.refused) == (5, 0, 0, [])
    assert (found.formats, found.modes, found.sizes) == ({"array": 5}, {mode: 5}, [(40, 36)] * 5)
    assert found.all_gray == (mode == "gray") and found.side == 64


def test_a_table_s_rows_are_images_whatever_they_are_called(base, tmp_path):
    encoded = []
    for seed in range(3):
        picture(seed).save(file := io.BytesIO(), "WEBP")
        encoded.append(file.getvalue())
    pq.write_table(pa.table({"image": encoded, "label": ["a", "b", "a"]}), tmp_path / "x.parquet")
    found = inspect(tmp_path / "x.parquet", base, tmp_path)
    assert (found.images, found.classes, found.labeled, found.formats) == (3, ["a", "b"], 3, {"WEBP": 3})


def test_a_sample_is_drawn_uniformly_from_everything(base, tmp_path):
    pixels = np.broadcast_to((np.arange(500) % 256).astype(np.uint8)[:, None, None], (500, 8, 8))
    np.save(tmp_path / "many.npy", pixels)
    found = inspect(tmp_path / "many.npy", base, tmp_path)
    rows = [int(item.name.rpartition("/")[2]) for item in found.sample]
    assert found.images == 500 and len(set(rows)) == len(rows) == len(found.sizes) == 96
    assert min(np.bincount(np.array(rows) // 100)) >= 10  # of 19.2 expected in each fifth


def test_images_of_which_none_can_be_read_are_refused_and_leave_nothing(photos, base, tmp_path):
    """Too large ones have a header, empty ones have not."""
    found = inspect(photos, base.model_copy(update={"max_pixels": 1000}), tmp_path)
    assert len(found.refused) == 23 == len(found.sizes) and "data.max_pixels is 1,000" in found.refused[0].reason
    assert found.all_gray is False
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").touch()
    found = inspect(tmp_path / "empty", base, tmp_path)
    assert (found.images, found.sizes, found.formats, found.side) == (1, [], {}, 32)
    assert [each.reason for each in found.refused] == ["empty file"] and list((tmp_path / "scratch").iterdir()) == []
    assert write_contact_sheet(found, tmp_path / "sheet.png") == 0 and (tmp_path / "sheet.png").stat().st_size


@pytest.mark.parametrize(("name", "content", "said"), [
    ("photos", None, "there is nothing at "), ("photos.zip", b"not an archive", "photos.zip"),
    ("photos/notes/a.txt", b"x", "photos holds no image among its 1 files; give a folder, a zip or tar, "),
])  # fmt: skip
def test_a_source_without_images_is_an_error_of_one_line(base, tmp_path, name, content, said):
    if content:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError) as failed:
        inspect(tmp_path / name.split("/")[0], base, tmp_path)
    assert said in str(failed.value) and "\n" not in str(failed.value) and not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(("short", "side"), [
    ([], 32), ([8], 32), ([32], 32), ([33], 64), ([96], 96), ([129], 160), ([161], 224), ([3000], 224),
    ([32, 3000], 32), ([3000, 32, 3000], 224),
])  # fmt: skip
def test_the_side_follows_the_short_side_of_most_images(base, short, side):
    assert Inspection("x", base, sizes=[(each, 2 * each) for each in short]).side == side
    assert Inspection("x", base, sizes=[(2 * each, each) for each in short]).side == side


@pytest.mark.parametrize(("files", "kind"), [
    (["a/"], "folder"), (["a/b.png", "a/.cache/x.parquet"], "folder"), (["a/b.png", "a/c/x.parquet"], "parquet"),
    (["a.PARQUET"], "parquet"), (["a.npy"], "npy"), (["a.tar.gz"], "archive"), (["a"], "archive"),
])  # fmt: skip
def test_a_path_says_what_kind_of_source_it_is(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert kind_of(tmp_path / files[0].split("/")[0]) == kind


def test_a_contact_sheet_shows_the_images_that_can_be_read(photos, base, tmp_path):
    path = tmp_path / "sheets" / "sheet.png"
    assert write_contact_sheet(inspect(photos, base, tmp_path), path) == 22
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 102 + 6, 12 * 102 + 6, 3)  # 12 in a row
    tiles = sheet[6:, 6:].reshape(2, 102, 12, 102, 3)[:, :96, :, :96].swapaxes(1, 2).reshape(24, 96, 96, 3)
    assert [bool((tile != 255).any()) for tile in tiles] == [True] * 22 + [False] * 2
    assert len({tile.tobytes() for tile in tiles}) == 23


def test_a_phone_s_photo_has_a_size(base, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture(0, 200, 120).save(tmp_path / "photo.heic")
    found = inspect(tmp_path, base, tmp_path / "elsewhere")
    assert (found.images, found.sizes, found.formats, found.refused) == (1, [(200, 120)], {"HEIF": 1}, [])
