"""Photos of archives, tables and arrays, which are no files; and which files belong to a photo."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.sorting import sort as sort_module
from pipeline.sorting.originals import Companion, companions_of, suffix_of
from scan_core.data.npy import row_name
from tests.pipeline.sorting.finished import names, put, scan, snapshot, sort, tree, write_run


def encoded(kind, value=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def archive(kind, members):
    """An archive called photos."""
    if kind == "zip":
        with zipfile.ZipFile("photos", "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    else:
        with tarfile.open("photos", f"w:{kind}") as opened:
            for name, content in members.items():
                about = tarfile.TarInfo(name)
                about.size = len(content)
                opened.addfile(about, io.BytesIO(content))


MEMBERS = {
    "a/1.jpg": encoded("JPEG", 1), "b/1.jpg": encoded("JPEG", 2), "b/noname": encoded("PNG", 3),
    "b/v1.2": encoded("WEBP", 4), "c/1.CR2": b"raw", "d/con.png": encoded("PNG", 5), "e/odd": b"no image",
}  # fmt: skip
ROWS = {
    "a/1.jpg": (1, "sure"), "b/1.jpg": (1, "sure"), "b/noname": (1, "sure"), "b/v1.2": (2, "sure"),
    "c/1.CR2": "ignored", "d/con.png": (2, "sure"), "e/odd": (2, "sure"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_an_archive_is_sorted_with_its_own_bytes_and_a_suffix_where_one_lacks(project, kind):
    archive(kind, MEMBERS)
    write_run(ROWS, name="archive")
    before = os.stat("photos").st_mtime_ns, os.path.getsize("photos")
    sort("sorted")
    expected = {
        "01/1.jpg": "a/1.jpg", "01/1 (b).jpg": "b/1.jpg", "01/noname.png": "b/noname", "02/v1.2.webp": "b/v1.2",
        "02/con_.png": "d/con.png", "02/odd": "e/odd",
    }  # fmt: skip
    found = {name: what for name, what in tree("sorted").items() if what != "folder"}
    assert found == {name: MEMBERS[source] for name, source in expected.items()}
    assert "0 files made, 0 moved, 0 removed" in sort("sorted")
    write_run(ROWS | {"b/noname": (2, "sure")}, name="archive")
    assert "0 files made, 1 moved, 0 removed" in sort("sorted")
    assert scan("sort", "sorted", "--undo").exit_code == 0 and not os.path.exists("sorted")
    assert (os.stat("photos").st_mtime_ns, os.path.getsize("photos")) == before


def test_an_archive_of_other_bytes_is_copied_again_and_one_that_is_gone_keeps_its_copies(project):
    archive("zip", MEMBERS)
    write_run(ROWS, name="archive")
    sort("sorted")
    archive("zip", MEMBERS | {"a/1.jpg": encoded("JPEG", 9)})
    assert "1 file made" in sort("sorted") and tree("sorted")["01/1.jpg"] == encoded("JPEG", 9)
    archive("zip", {name: content for name, content in MEMBERS.items() if name != "b/noname"})
    write_run(ROWS | {"b/noname": (2, "sure")}, name="archive")
    assert "1 no longer in the source" in sort("sorted")
    assert "02/noname.png" in names("sorted"), "the copy moves under the suffix that it was given"
    os.unlink("photos")
    before = tree("sorted")
    done = scan("sort", "sorted", "--undo")
    assert "6 files whose originals are gone" in done.stdout and tree("sorted") == before


def test_of_two_files_of_one_name_in_a_tar_the_last_is_taken_as_after_unpacking(project):
    with tarfile.open("photos", "w") as opened:
        for value in (1, 2):
            about = tarfile.TarInfo("a/1.jpg")
            about.size = len(encoded("JPEG", value))
            opened.addfile(about, io.BytesIO(encoded("JPEG", value)))
    write_run({"a/1.jpg": (1, "sure")}, name="archive")
    sort("sorted")
    assert tree("sorted") == {"01": "folder", "01/1.jpg": encoded("JPEG", 2)}


def test_an_archive_that_changes_between_its_two_readings_is_said(project, monkeypatch):
    archive("zip", MEMBERS)
    write_run(ROWS, name="archive")
    real = sort_module.read_catalog

    def then_change(*words):
        catalog = real(*words)
        archive("zip", MEMBERS | {"a/1.jpg": encoded("JPEG", 9)})
        return catalog

    monkeypatch.setattr(sort_module, "read_catalog", then_change)
    assert "1 file could not be copied, such as a/1.jpg: it changes just now" in sort("sorted")
    assert len(names("sorted")) == 5


def test_links_go_with_folders_alone(project):
    archive("zip", MEMBERS)
    write_run(ROWS, name="archive")
    done = scan("sort", "sorted", "--link")
    assert done.exit_code == 1 and "--link goes with a folder of photos; data.name is archive" in done.stderr
    assert not os.path.exists("sorted")


def test_parquet_rows_are_bytes_or_files(project):
    os.mkdir("photos")
    put("photos/pictures/1.jpg", encoded("JPEG", 1))
    os.utime("photos/pictures/1.jpg", ns=(0, 123_456_789_000))
    structs = [{"bytes": None, "path": "pictures/1.jpg"}, {"bytes": encoded("PNG", 2), "path": None}]
    pq.write_table(pa.table({"image": structs}), "photos/train.parquet")
    rows = {row_name("train.parquet", 0): (1, "sure"), row_name("train.parquet", 1): (1, "sure")}
    write_run(rows, name="parquet")
    before = snapshot("photos")
    sort("sorted")
    assert {name: what for name, what in tree("sorted").items() if what != "folder"} == {
        "01/0000000.jpg": encoded("JPEG", 1), "01/0000001.png": encoded("PNG", 2),
    }  # fmt: skip
    scan("sort", "sorted", "--undo")
    assert not os.path.exists("sorted") and snapshot("photos") == before


def test_pixels_become_pngs(project):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    np.save("photos.npy", pixels)
    write_run({row_name("photos.npy", row): (row % 2 + 1, "sure") for row in range(3)}, path="photos.npy", name="npy")
    sort("sorted")
    assert names("sorted") == {"01/0000000.png", "02/0000001.png", "01/0000002.png"}
    assert np.array_equal(np.asarray(Image.open("sorted/02/0000001.png")), pixels[1])
    assert "0 files made" in sort("sorted")


@pytest.mark.slow
def test_a_named_set_can_be_sorted_and_taken_back(project):
    rows = {f"digits/{number:04d}": (number % 3 + 1, "sure") for number in range(1797)}
    write_run(rows, path=None, name="digits")
    sort("sorted")
    assert len(names("sorted")) == 1797 and all(name.endswith(".png") for name in names("sorted"))
    assert scan("sort", "sorted", "--undo").exit_code == 0 and not os.path.exists("sorted")


@pytest.mark.parametrize(("data", "suffix"), [
    (encoded("JPEG"), ".jpg"), (encoded("PNG"), ".png"), (encoded("TIFF"), ".tif"), (encoded("GIF"), ".gif"),
    (encoded("JPEG2000"), ".jp2"), (encoded("BMP"), ".bmp"), (b"\0\0\0\x18ftypheic", ".heic"), (b"text", ""),
    (np.zeros((2, 2), np.uint8), ".png"),
])  # fmt: skip
def test_the_suffix_is_that_of_the_content(data, suffix):
    assert suffix_of(data) == suffix


def test_a_companion_belongs_to_the_photo_of_its_name():
    photos = ["a/I.JPG", "a/I.HEIC", "b/I.JPG", "b/A.jpg", "b/I.NEF", "b/I.RAF", "I.J.jpg", "c/x.jpg"]
    others = [
        "a/I.MOV", "a/i.jpg.xmp", "a/I.HEIC.xmp", "a/I.xmp", "b/I.xmp", "b/A.mp4", "b/I_02.NEF.xmp", "b/I_02.jpg",
        "I.J.aae", "I.jpg.aae", "c/x.y.xmp", "c/x_1.jpg.xmp", "d/I.xmp", "c/x.CR2.pp3",
    ]  # fmt: skip
    found = companions_of(photos, others)
    assert found == {
        "a/I.HEIC": [
            Companion("a/I.HEIC.xmp", ".HEIC.xmp"),
            Companion("a/I.MOV", ".MOV"),
            Companion("a/I.xmp", ".xmp"),
        ],
        "a/I.JPG": [Companion("a/i.jpg.xmp", ".jpg.xmp")],
        "b/I.NEF": [Companion("b/I.xmp", ".xmp"), Companion("b/I_02.NEF.xmp", "_02.NEF.xmp")],
        "b/A.jpg": [Companion("b/A.mp4", ".mp4")],
        "I.J.jpg": [Companion("I.J.aae", ".aae")],
        "c/x.jpg": [Companion("c/x.CR2.pp3", ".CR2.pp3")],
    }


def test_an_archive_s_photos_have_no_companions(project):
    archive("zip", {"1.jpg": encoded("JPEG"), "1.xmp": b"<x/>"})
    write_run({"1.jpg": (1, "sure"), "1.xmp": "ignored"}, name="archive")
    sort("sorted")
    assert names("sorted") == {"01/1.jpg"}
