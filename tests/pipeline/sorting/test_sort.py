"""Where photos go, under which names, with what travels along; and that photos are only read."""

import json
import os
import random
import unicodedata

import pytest

from pipeline.sorting import disk
from tests.pipeline.sorting.finished import names, photo_bytes, put, scan, snapshot, sort, sorted_anew, tree, write_run

SURE, CHECK, NOWHERE = "sure", "to check", "fits nowhere"


def write(rows, files=(), **data):
    """Photos on the disk, files beside them, and a run."""
    for source in rows:
        put(f"photos/{source}", photo_bytes(source))
    for name in files:
        put(f"photos/{name}", f"the file {name}".encode())
    write_run(rows, **data)


def edit(*words):
    done = scan("edit", *words)
    assert done.exit_code == 0, done.stderr


def test_sure_photos_are_in_their_group_the_others_beside_and_photos_are_only_read(project):
    write({
        "a/1.jpg": (1, SURE), "a/2.jpg": (1, SURE), "b/3.jpg": (2, SURE), "b/4.jpg": (2, CHECK), "5.jpg": (1, NOWHERE),
        "cut.jpg": "rejected", "notes.txt": "ignored",
    })  # fmt: skip
    edit("name", 1, "daisy")
    before = snapshot("photos")
    said = sort("sorted")
    assert tree("sorted") == {
        "01 daisy": "folder", "02": "folder", "to check": "folder", "to check/02": "folder", "fits nowhere": "folder",
        "01 daisy/1.jpg": photo_bytes("a/1.jpg"), "01 daisy/2.jpg": photo_bytes("a/2.jpg"),
        "02/3.jpg": photo_bytes("b/3.jpg"), "to check/02/4.jpg": photo_bytes("b/4.jpg"),
        "fits nowhere/5.jpg": photo_bytes("5.jpg"),
    }  # fmt: skip
    assert (
        "5 photos into 2 groups" in said and "sure 3   to check 1   fits nowhere 1" in said and "1 unreadable" in said
    )
    original, copy = (project / each for each in ("photos/a/1.jpg", "sorted/01 daisy/1.jpg"))
    assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns
    assert copy.stat().st_ino != original.stat().st_ino and copy.stat().st_nlink == 1, "never a hard link"
    assert snapshot("photos") == before
    scan("sort", "sorted", "--undo")
    assert not (project / "sorted").exists() and snapshot("photos") == before


def test_numbers_have_one_width_and_names_are_safe(project):
    write({f"{each:03d}.jpg": (each % 101 + 1, SURE) for each in range(202)})
    edit("name", 7, "CON: a/b... ")
    sort("sorted")
    folders = sorted(each.name for each in (project / "sorted").iterdir() if each.is_dir())
    assert folders[0] == "001" and folders[-1] == "101" and len(folders) == 101
    assert "007 CON_ a_b" in folders
    edit("name", 8, "Ärger")
    edit("name", 9, unicodedata.normalize("NFD", "äRGER"))
    sort("sorted")
    assert sum("rger" in each.name.lower() for each in (project / "sorted").iterdir()) == 2


def test_ignored_groups_are_left_out_and_come_back(project):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (1, SURE), "b/3.jpg": (2, SURE)}, files=["b/3.CR2"])
    edit("ignore", 2)
    assert "1 of ignored groups" in sort("sorted") and names("sorted") == {"01/1.jpg", "01/2.jpg"}
    edit("ignore", 2, "--no")
    sort("sorted")
    assert names("sorted") == {"01/1.jpg", "01/2.jpg", "02/3.jpg", "02/3.CR2"}
    edit("ignore", 1)
    sort("sorted")
    assert tree("sorted").keys() == {"02", "02/3.jpg", "02/3.CR2"}


def test_a_raw_file_of_an_ignored_group_does_not_come_as_a_companion(project):
    write({"a/1.jpg": (1, SURE), "a/1.dng": (2, SURE)}, files=["a/1.CR2"])
    edit("ignore", 2)
    sort("sorted")
    assert names("sorted") == {"01/1.jpg", "01/1.CR2"}


def test_photos_of_one_name_stay_apart_and_keep_it_if_they_can(project):
    composed, decomposed = "é.jpg", unicodedata.normalize("NFD", "É.jpg")
    write({
        "2018-trip/IMG_0001.JPG": (1, SURE), "2019-trip/IMG_0001.JPG": (1, SURE), "2020/img_0001.jpg": (1, SURE),
        "x/2020/IMG_0001.JPG": (1, SURE), "y/2020/IMG_0001.JPG": (1, SURE), "IMG_0001.JPG": (1, SURE),
        "2021/IMG_0001.JPG": (2, SURE), f"a/{composed}": (1, SURE), f"b/{decomposed}": (1, SURE),
        "c/Q.JPG": (1, SURE), "c/Q.jpg": (1, SURE), "c/Q.png": (1, SURE),
    })  # fmt: skip
    sort("sorted")
    expected = {
        "01/IMG_0001.JPG": "2018-trip/IMG_0001.JPG", "01/IMG_0001 (2019-trip).JPG": "2019-trip/IMG_0001.JPG",
        "01/img_0001 (2020).jpg": "2020/img_0001.jpg", "01/IMG_0001 (2).JPG": "IMG_0001.JPG",
        "01/IMG_0001 (x - 2020).JPG": "x/2020/IMG_0001.JPG", "01/IMG_0001 (y - 2020).JPG": "y/2020/IMG_0001.JPG",
        "02/IMG_0001.JPG": "2021/IMG_0001.JPG", f"01/{composed}": f"a/{composed}",
        "01/Q.JPG": "c/Q.JPG", "01/Q (c).jpg": "c/Q.jpg", "01/Q.png": "c/Q.png",
        "01/" + unicodedata.normalize("NFD", "É (b).jpg"): f"b/{decomposed}",
    }  # fmt: skip
    found = {name: what for name, what in tree("sorted").items() if what != "folder"}
    assert found == {name: photo_bytes(source) for name, source in expected.items()}


def test_companions_travel_under_the_photo_s_name(project):
    write(
        {
            "a/IMG_1.JPG": (1, SURE), "b/IMG_1.JPG": (1, SURE), "a/IMG_2.HEIC": (2, SURE), "a/IMG_2.JPG": (1, SURE),
            "a/IMG_3.JPG": (1, SURE), "a/IMG_3.dng": (2, SURE), "a/out.jpg": "rejected", "c/clip.mp4": "ignored",
        },
        files=[
            "a/IMG_1.CR2", "a/IMG_1.JPG.xmp", "a/IMG_1.xmp", "a/IMG_1.CR2.xmp", "a/IMG_1_01.CR2.xmp", "a/IMG_1.txt",
            "b/img_1.mov", "b/IMG_1.aae", "a/IMG_2.MOV", "a/IMG_2.JPG.xmp", "a/IMG_3.xmp", "a/out.xmp", "c/IMG_1.NEF",
        ],
    )  # fmt: skip
    assert "10 companions" in sort("sorted")
    assert names("sorted") == {
        "01/IMG_1.JPG", "01/IMG_1.CR2", "01/IMG_1.JPG.xmp", "01/IMG_1.xmp", "01/IMG_1.CR2.xmp", "01/IMG_1_01.CR2.xmp",
        "01/IMG_1 (b).JPG", "01/IMG_1 (b).mov", "01/IMG_1 (b).aae",
        "02/IMG_2.HEIC", "02/IMG_2.MOV", "01/IMG_2.JPG", "01/IMG_2.JPG.xmp",
        "01/IMG_3.JPG", "02/IMG_3.dng", "02/IMG_3.xmp",
    }  # fmt: skip
    assert (project / "sorted/01/IMG_1 (b).mov").read_bytes() == b"the file b/img_1.mov"


def test_a_photo_with_several_animals_is_in_the_group_of_each_once(project):
    rows = {
        "a.jpg#1": (1, SURE), "a.jpg#2": (1, CHECK), "a.jpg#3": (2, CHECK), "a.jpg#4": (3, NOWHERE),
        "b.jpg#1": (3, NOWHERE), "b.jpg#2": (2, NOWHERE), "c#1.jpg#1": (3, SURE), "empty.jpg": "ignored",
    }  # fmt: skip
    for name in ("a.jpg", "b.jpg", "c#1.jpg", "empty.jpg", "a.CR2"):
        put(f"photos/{name}", photo_bytes(name))
    write_run(rows, boxes="boxes.csv")
    sort("sorted")
    first = {
        "01/a.jpg", "01/a.CR2", "to check/02/a.jpg", "to check/02/a.CR2", "fits nowhere/b.jpg", "03/c#1.jpg",
    }  # fmt: skip
    assert names("sorted") == first
    before = {name: os.stat(f"sorted/{name}").st_ino for name in first if "a." in name}
    write_run(rows | {"a.jpg#1": (3, SURE), "a.jpg#2": (3, SURE)}, boxes="boxes.csv")
    assert "0 files made, 2 moved, 0 removed" in sort("sorted")
    assert "0 files made, 0 moved, 0 removed" in sort("sorted"), "each copy stays in its place"
    assert names("sorted") == {each.replace("01/", "03/") for each in first}
    assert {os.stat(f"sorted/{name}").st_ino for name in names("sorted") if "a." in name} == {*before.values()}
    write_run(rows | {"a.jpg#1": (2, SURE), "a.jpg#2": (2, SURE)}, boxes="boxes.csv")
    assert "0 files made, 2 moved, 2 removed" in sort("sorted")
    assert {name for name in names("sorted") if "a." in name} == {"02/a.jpg", "02/a.CR2"}


def test_links_lead_to_the_photos_and_give_way_to_copies(project):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (2, SURE)}, files=["a/1.CR2"])
    sort("sorted", "--link")
    assert tree("sorted") == {
        "01": "folder", "02": "folder", "01/1.jpg": f"-> {project}/photos/a/1.jpg",
        "01/1.CR2": f"-> {project}/photos/a/1.CR2", "02/2.jpg": f"-> {project}/photos/a/2.jpg",
    }  # fmt: skip
    linked = tree("sorted")
    before = snapshot("photos")
    sort("sorted")
    assert not any(str(what).startswith("->") for what in tree("sorted").values()) and len(names("sorted")) == 3
    sort("sorted", "--link")
    assert tree("sorted") == linked and snapshot("photos") == before
    scan("sort", "sorted", "--undo")
    assert not (project / "sorted").exists() and snapshot("photos") == before


def test_names_that_are_not_utf_8_and_links_inside_the_source_are_found(project):
    put("photos/a/1.jpg", b"one")
    with open(os.fsencode("photos/a") + b"/caf\xe9.jpg", "wb") as opened:
        opened.write(b"coffee")
    with open(os.fsencode("photos/a") + b"/caf\xe9.CR2", "wb") as opened:
        opened.write(b"raw coffee")
    os.symlink("1.jpg", "photos/a/other.jpg")
    write_run({"a/1.jpg": (1, SURE), "a/caf\\udce9.jpg": (1, SURE), "a/other.jpg": (1, SURE)})
    sort("sorted")
    expected = {"01/1.jpg": b"one", "01/caf_udce9.jpg": b"coffee", "01/caf_udce9.CR2": b"raw coffee"}
    assert tree("sorted") == {"01": "folder", **expected, "01/other.jpg": b"one"}
    sort("sorted")
    assert len(names("sorted")) == 4
    write_run({"a/1.jpg": (1, SURE), "a/caf\\udce9.jpg": (2, SURE), "a/other.jpg": (1, SURE)})
    sort("sorted", "--link")
    assert os.readlink("sorted/02/caf_udce9.CR2").endswith("/photos/a/caf\udce9.CR2")


def test_a_new_grouping_moves_files_and_copies_none(project):
    rows = {f"{folder}/IMG_{number}.JPG": (number % 3 + 1, SURE) for folder in "ab" for number in range(9)}
    write(rows, files=[f"a/IMG_{number}.CR2" for number in range(9)])
    sort("sorted")
    inodes = {os.stat(f"sorted/{name}").st_ino for name in names("sorted")}
    draw = random.Random(0)
    for turn in range(3):
        said = sort("sorted")
        assert "0 files made, 0 moved, 0 removed" in said
        rows = {source: (draw.randrange(1, 4), draw.choice([SURE, CHECK, NOWHERE])) for source in rows}
        edit("name", draw.randrange(1, 4), draw.choice(["rose", "Rose", "daisy"]) + str(turn))
        write_run(rows)
        said = sort("sorted")
        assert " 0 files made" in said and {os.stat(f"sorted/{name}").st_ino for name in names("sorted")} == inodes
        found = tree("sorted")
        assert sorted_anew() == found


def test_photos_that_change_places_do(project):
    # Both are called IMG.JPG, and each goes to where the other is.
    write({"a/IMG.JPG": (1, SURE), "b/IMG.JPG": (2, SURE), "a/1.jpg": (1, SURE), "b/2.jpg": (2, SURE)})
    sort("sorted")
    before = tree("sorted")
    write_run({"a/IMG.JPG": (2, SURE), "b/IMG.JPG": (1, SURE), "a/1.jpg": (1, SURE), "b/2.jpg": (2, SURE)})
    assert "0 files made, 2 moved, 0 removed" in sort("sorted")
    after = tree("sorted")
    assert (after["01/IMG.JPG"], after["02/IMG.JPG"]) == (before["02/IMG.JPG"], before["01/IMG.JPG"])


def test_a_photo_that_has_changed_is_copied_again_and_new_ones_come(project):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (1, SURE)})
    sort("sorted")
    content = photo_bytes("a/1.jpg")[::-1]
    put("photos/a/1.jpg", content, 1_600_000_000)
    put("photos/a/2.CR2", b"raw")
    put("photos/a/3.jpg", b"new")
    write_run({"a/1.jpg": (1, SURE), "a/2.jpg": (1, SURE), "a/3.jpg": (1, SURE)})
    assert "3 files made, 0 moved, 0 removed" in sort("sorted")
    assert tree("sorted")["01/1.jpg"] == content and len(names("sorted")) == 4


@pytest.mark.parametrize("gone", ["photo", "all"])
def test_a_copy_whose_original_is_gone_is_never_removed(project, gone):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (2, SURE), "a/3.jpg": (2, SURE)}, files=["a/2.CR2"])
    sort("sorted")
    before = tree("sorted")
    (project / "photos/a/2.jpg").unlink()
    if gone == "all":
        (project / "photos/a/2.CR2").unlink()
    said = sort("sorted")
    assert "1 no longer in the source" in said and tree("sorted") == before
    edit("name", 2, "rose")
    sort("sorted")
    moved = {name for name in names("sorted") if name.endswith(("2.jpg", "2.CR2"))}
    assert moved == {"02 rose/2.jpg", "02 rose/2.CR2"}, "it goes where it belongs"
    write_run({"a/1.jpg": (1, SURE), "a/3.jpg": (1, SURE)})
    said = sort("sorted")
    assert "1 photo kept that no longer belong" in said
    assert {name.split("/")[-1] for name in names("sorted")} == {"1.jpg", "2.jpg", "3.jpg", "2.CR2"}
    done = scan("sort", "sorted", "--undo")
    left = {"2.jpg"} if gone == "photo" else {"2.jpg", "2.CR2"}
    assert {name.split("/")[-1] for name in names("sorted")} == left and "whose originals are gone" in done.stdout
    assert scan("sort", "sorted", "--undo").exit_code == 0, "what is kept is still known"


def test_photos_that_are_gone_are_counted_and_the_others_sorted(project):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (2, SURE)})
    os.unlink("photos/a/2.jpg")
    said = sort("sorted")
    assert "sorted    1 photo into 1 group:" in said and "1 no longer in the source" in said
    assert names("sorted") == {"01/1.jpg"}


def test_without_any_original_nothing_is_touched(project):
    write({"a/1.jpg": (1, SURE)})
    sort("sorted")
    before = tree("sorted")
    os.rename("photos/a", "elsewhere")
    done = scan("sort", "sorted")
    assert done.exit_code == 1 and "none of the 1 photos of the last run is in photos" in done.stderr
    assert tree("sorted") == before


def test_unreadable_originals_are_named_and_the_others_sorted(project, monkeypatch):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (1, SURE)})
    real = os.open

    def refuse(path, *words, **more):
        if str(path).endswith("photos/a/1.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *words, **more)

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "open", refuse)
        said = sort("sorted")
    assert "1 file could not be copied, such as a/1.jpg: Permission denied" in said
    assert names("sorted") == {"01/2.jpg"}
    assert "1 file made" in sort("sorted") and names("sorted") == {"01/1.jpg", "01/2.jpg"}


def test_a_stale_copy_stays_if_its_original_cannot_be_read_any_more(project, monkeypatch):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (2, SURE)})
    sort("sorted")
    put("photos/a/1.jpg", b"changed")
    write_run({"a/1.jpg": (2, SURE), "a/2.jpg": (2, SURE)})

    def broken(source, partial):
        raise disk.Unreadable("Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "copy_file", broken)
        assert "a/1.jpg: Input/output error" in sort("sorted")
    assert tree("sorted")["02/1.jpg"] == photo_bytes("a/1.jpg"), "it goes where it belongs, as it was"
    sort("sorted")
    assert tree("sorted")["02/1.jpg"] == b"changed"


def test_the_manifest_says_what_was_made_in_lines_that_a_person_can_read(project):
    write({"a/1.jpg": (2, SURE)})
    sort("sorted")
    write_run({"a/1.jpg": (1, SURE)})
    sort("sorted")
    lines = [json.loads(line) for line in (project / "sorted/.scan-sort.jsonl").read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["scan_sort", "folder", "make", "end"], "no steps that are over"
    assert lines[0]["source"] == str(project / "photos")
    (made,) = [line["make"] for line in lines if "make" in line]
    about = os.stat("photos/a/1.jpg")
    expected = {"path": "01/1.jpg", "file": "a/1.jpg", "size": about.st_size, "mtime_ns": about.st_mtime_ns}
    assert expected.items() <= made.items() and made["kind"] == "copy"


def test_merged_split_and_moved_are_as_scan_edit_says(project):
    write({"a/1.jpg": (1, SURE), "a/2.jpg": (2, SURE), "a/3.jpg": (3, SURE), "b/3.jpg": (3, SURE)})
    sort("sorted")
    edit("merge", 1, 2)
    edit("move", 1, "b/3.jpg")
    sort("sorted")
    assert names("sorted") == {"01/1.jpg", "01/2.jpg", "01/3.jpg", "03/3.jpg"}
    assert tree("sorted")["01/3.jpg"] == photo_bytes("b/3.jpg")
