"""``--xmp``: keywords beside the copies, in the sidecars that photo programs read; originals stay what they are."""

import os

import pytest

from tests.pipeline.sorting.finished import names, photo_bytes, put, scan, snapshot, sort, sorted_anew, tree, write_run
from tests.pipeline.sorting.test_xmp import BAG, keywords, sidecar

ROWS = {
    "a/1.jpg": (1, "sure"), "a/2.JPG": (2, "to check"), "a/3.jpg": (1, "fits nowhere"), "a/4.NEF": (2, "sure"),
    "a/5.jpg": (1, "sure"), "a/6.jpg": (1, "sure"),
}  # fmt: skip
EDITED = sidecar(BAG + "<crs:Edits xmlns:crs='c'>1</crs:Edits>")


@pytest.fixture
def before(project):
    for source in ROWS:
        put(f"photos/{source}", photo_bytes(source))
    for name in ("a/2.CR2", "a/5.CR2", "a/6.MOV"):
        put(f"photos/{name}")
    for name in ("a/1.jpg.xmp", "a/5.xmp"):
        put(f"photos/{name}", EDITED)
    put("photos/a/6.jpg.xmp", b"no XMP")
    write_run(ROWS)
    scan("edit", "name", "1", "rock & <roll>")
    return snapshot("photos")


def found_keywords(folder="sorted"):
    return {
        name.split("/", 1)[1].removeprefix("02/"): keywords(what)
        for name, what in tree(folder).items()
        if name.endswith(".xmp") and not name.endswith("6.jpg.xmp")
    }


def test_each_program_finds_the_keyword(before):
    said = sort("sorted", "--xmp")
    assert found_keywords() == {
        "1.jpg.xmp": ["old", "rock & <roll>"],  # its own sidecar travelled along
        "2.JPG.xmp": ["group 2", "to check"],  # digiKam, darktable
        "2.xmp": ["group 2", "to check"],  # Lightroom, for the raw file
        "3.jpg.xmp": ["fits nowhere"],
        "4.xmp": ["group 2"],  # a raw file that is a photo of the run itself
        "5.xmp": ["old", "rock & <roll>"],  # Lightroom's, which must not be hidden by a 5.jpg.xmp
    }  # fmt: skip
    assert "keywords  not in 1 sidecar" in said and tree("sorted")["01 rock & _roll_/6.jpg.xmp"] == b"no XMP"
    assert b"<crs:Edits xmlns:crs='c'>1</crs:Edits>" in tree("sorted")["01 rock & _roll_/5.xmp"]
    assert snapshot("photos") == before


def test_another_name_is_written_and_photos_move_without_being_copied(before):
    sort("sorted", "--xmp")
    inodes = {os.stat(f"sorted/{name}").st_ino for name in names("sorted") if not name.endswith(".xmp")}
    scan("edit", "name", "1", "jazz")
    said = sort("sorted", "--xmp")
    assert "2 files made" in said and found_keywords()["1.jpg.xmp"] == ["old", "jazz"]
    assert {os.stat(f"sorted/{name}").st_ino for name in names("sorted") if not name.endswith(".xmp")} == inodes
    assert "0 files made, 0 moved, 0 removed" in sort("sorted", "--xmp")
    assert tree("sorted") == sorted_anew("--xmp") and snapshot("photos") == before


def test_without_the_option_sidecars_are_as_they_were(before):
    sort("sorted", "--xmp")
    sort("sorted")
    assert tree("sorted") == sorted_anew() and tree("sorted")["01 rock & _roll_/5.xmp"] == EDITED
    sort("sorted", "--xmp")
    scan("sort", "sorted", "--undo")
    assert not os.path.exists("sorted") and snapshot("photos") == before


def test_beside_links_sidecars_are_files_and_originals_stay(before):
    sort("sorted", "--xmp", "--link")
    found = tree("sorted")
    assert str(found["01 rock & _roll_/1.jpg"]).startswith("-> ") and keywords(found["01 rock & _roll_/1.jpg.xmp"])
    assert snapshot("photos") == before


def test_a_sidecar_that_a_program_has_changed_since_stays(before):
    sort("sorted", "--xmp")
    put("sorted/01 rock & _roll_/1.jpg.xmp", b"of darktable")
    scan("edit", "name", "1", "jazz")
    sort("sorted", "--xmp")
    assert {"01 rock & _roll_/1.jpg", "01 rock & _roll_/1.jpg.xmp"} <= names("sorted")
    assert tree("sorted")["01 rock & _roll_/1.jpg.xmp"] == b"of darktable"


def test_the_copy_of_a_sidecar_whose_original_is_gone_is_kept(before):
    sort("sorted", "--xmp")
    os.unlink("photos/a/5.xmp")
    scan("edit", "name", "1", "jazz")
    for words in ((), ("--xmp",)):
        sort("sorted", *words)
        assert keywords(tree("sorted")["01 jazz/5.xmp"]) == ["old", "rock & <roll>"]
    assert "whose originals are gone" in scan("sort", "sorted", "--undo").stdout
    assert names("sorted") == {"01 jazz/5.xmp"}
