"""What a person changes, moves, removes or adds in the sorted folder is left alone."""

import os
import shutil
from dataclasses import replace

import pytest

from pipeline.sorting.steps import Steps
from tests.pipeline.sorting.finished import names, photo_bytes, put, scan, snapshot, sort, tree, write_run

ROWS = {
    "a/1.jpg": (1, "sure"), "a/2.jpg": (1, "sure"), "a/3.jpg": (2, "sure"), "b/1.jpg": (2, "sure"),
    "b/4.jpg": (2, "to check"),
}  # fmt: skip
ELSEWHERE = {source: (3, "sure") for source in ROWS}
FILES = ["a/1.CR2", "a/3.jpg.xmp"]


@pytest.fixture
def before(project):
    """Sorted once; what the photos are."""
    for source in ROWS:
        put(f"photos/{source}", photo_bytes(source))
    for name in FILES:
        put(f"photos/{name}")
    write_run(ROWS | {"c/none.jpg": (3, "sure")})
    put("photos/c/none.jpg")
    sort("sorted")
    return snapshot("photos")


def regroup():
    """Everything belongs to group 3 now."""
    write_run(ELSEWHERE)
    return sort("sorted")


def test_a_photo_that_is_edited_stays_with_all_that_belongs_to_it(before):
    put("sorted/01/1.jpg", b"edited")
    said = regroup()
    assert "left alone: 1 changed by you" in said
    found = tree("sorted")
    assert found["01/1.jpg"] == b"edited" and "01/1.CR2" in found
    moved = {"03/2.jpg", "03/3.jpg", "03/3.jpg.xmp", "03/1.jpg", "03/4.jpg"}
    assert {name for name in found if name.startswith("03/")} == moved
    assert found["03/1.jpg"] == photo_bytes("b/1.jpg")
    assert sort("sorted") and tree("sorted") == found and snapshot("photos") == before


def test_an_edit_that_keeps_size_and_name_is_seen_by_its_time(before):
    content = photo_bytes("a/1.jpg")[::-1]
    put("sorted/01/1.jpg", content, seconds=1_600_000_000)
    regroup()
    assert tree("sorted")["01/1.jpg"] == content


def test_a_companion_that_is_edited_keeps_its_photo_there_too(before):
    put("sorted/02/3.jpg.xmp", b"<edited/>")
    regroup()
    assert {"02/3.jpg", "02/3.jpg.xmp"} <= names("sorted") and "03/3.jpg" not in names("sorted")


@pytest.mark.parametrize("name", ["2.jpg.xmp", "2.XMP", "2.pp3"])
def test_a_photo_to_which_a_program_has_added_a_sidecar_stays(before, name):
    put(f"sorted/01/{name}", b"of darktable")
    assert "1 added by you" in regroup()
    assert {"01/2.jpg", f"01/{name}"} <= names("sorted") and "03/2.jpg" not in names("sorted")


@pytest.mark.parametrize("to", ["moved/2.jpg", "01/best.jpg", "03/2.jpg", None])
def test_a_photo_that_is_moved_or_removed_is_not_copied_again(before, to):
    if to:
        os.makedirs(os.path.dirname(f"sorted/{to}"), exist_ok=True)
        os.rename("sorted/01/2.jpg", f"sorted/{to}")
    else:
        os.unlink("sorted/01/2.jpg")
    for _ in range(2):
        assert "1 moved or removed" in sort("sorted")
        assert [name for name in names("sorted") if name.endswith(("2.jpg", "best.jpg"))] == [to] * bool(to)
    regroup()
    assert [name for name in names("sorted") if name.endswith(("2.jpg", "best.jpg"))] == [to] * bool(to)
    assert scan("sort", "sorted", "--undo").exit_code == 0
    assert names("sorted") if to else not os.path.exists("sorted"), "what a person has moved is the person's"


def test_the_last_file_that_was_made_is_known_too(before):
    os.unlink("sorted/to check/02/4.jpg")
    assert "1 moved or removed" in sort("sorted") and "to check/02/4.jpg" not in names("sorted")


def test_a_folder_that_is_renamed_stays(before):
    os.rename("sorted/01", "sorted/mine")
    regroup()
    assert {"mine/1.jpg", "mine/1.CR2", "mine/2.jpg"} <= names("sorted")
    assert not any(name.startswith("01/") or name.endswith("/2.jpg") for name in names("sorted") - {"mine/2.jpg"})


def test_added_files_stay_and_nothing_is_written_over_them(before):
    put("sorted/03/1.JPG", b"mine")
    put("sorted/03/deep/er.txt", b"mine")
    put("sorted/top.txt", b"mine")
    os.makedirs("sorted/03/4.jpg")
    os.symlink("nowhere", "sorted/03/3.jpg")
    assert "4 added by you" in regroup()
    found = tree("sorted")
    assert [found[f"03/{name}"] for name in ("1.JPG", "deep/er.txt", "4.jpg")] == [b"mine", b"mine", "folder"]
    assert found["03/3.jpg"] == "-> nowhere" and found["top.txt"] == b"mine"
    assert found["03/1 (a).jpg"] == photo_bytes("a/1.jpg") and found["03/1 (b).jpg"] == photo_bytes("b/1.jpg")
    assert found["03/3 (a).jpg"] == photo_bytes("a/3.jpg") and found["03/4 (b).jpg"] == photo_bytes("b/4.jpg")
    scan("sort", "sorted", "--undo")
    assert names("sorted") == {"03/1.JPG", "03/deep/er.txt", "top.txt", "03/3.jpg"} and snapshot("photos") == before
    again = scan("sort", "sorted")
    assert again.exit_code == 1 and "has files that scan sort has not made" in again.stderr


def test_what_no_longer_belongs_goes_unless_it_was_changed(before):
    put("sorted/01/2.jpg", b"edited")
    scan("edit", "ignore", "1")
    assert "left alone: 1 changed" in sort("sorted")
    assert {name for name in names("sorted") if name.startswith("01/")} == {"01/2.jpg"}


@pytest.mark.parametrize("name", ["03/2.jpg", "03/new.jpg"])  # a place that a file moves to, one that is new
def test_what_appears_while_it_runs_is_not_overwritten(before, monkeypatch, name):
    put("photos/c/new.jpg", photo_bytes("c/new.jpg"))
    write_run(ELSEWHERE | {"c/new.jpg": (3, "sure")})
    real = Steps.take

    def meanwhile(self, manifest):
        put(f"sorted/{name}", b"mine")
        return real(self, manifest)

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", meanwhile)
        done = scan("sort", "sorted")
    assert f"sorted/{name} has appeared while scan sort was running; run the same again" in done.stderr
    sort("sorted")
    assert tree("sorted")[f"03/{name[3:]}"] == b"mine"
    kept = {each for each in names("sorted") if each.endswith(("2.jpg", "2 (a).jpg", "new.jpg", "new (c).jpg"))}
    assert len(kept) == 3


def test_what_is_in_the_way_for_ever_ends_it(before, monkeypatch):
    real = Steps.take

    def blocked(self, manifest):
        manifest.made["03/2.jpg"] = replace(manifest.made["01/2.jpg"], path="03/2.jpg")
        return real(self, manifest)

    write_run(ELSEWHERE)
    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", blocked)
        assert "sorted/03/2.jpg has appeared while scan sort was running" in scan("sort", "sorted").stderr
    sort("sorted")
    assert "03/2.jpg" in names("sorted")


def test_what_is_changed_while_it_runs_is_not_removed(before, monkeypatch):
    real = Steps.take

    def meanwhile(self, manifest):
        put("sorted/01/2.jpg", b"edited")
        return real(self, manifest)

    scan("edit", "ignore", "1")
    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", meanwhile)
        sort("sorted")
    assert {each: what for each, what in tree("sorted").items() if each.startswith("01/")} == {"01/2.jpg": b"edited"}


def test_undo_leaves_what_was_changed_and_removes_the_rest(before):
    put("sorted/01/2.jpg", b"edited")
    done = scan("sort", "sorted", "--undo")
    assert "left alone: 1 that you have changed" in done.stdout
    assert tree("sorted") == {"01": "folder", "01/2.jpg": b"edited"} and not os.path.exists("sorted/.scan-sort.jsonl")
    assert snapshot("photos") == before


def test_a_link_in_place_of_a_folder_is_not_followed(before, project):
    shutil.move("sorted/01", "away")
    os.symlink(project / "away", "sorted/01")
    away = snapshot("away")
    regroup()
    assert snapshot("away") == away
    write_run({source: (1, "sure") for source in ROWS})
    done = scan("sort", "sorted")
    assert done.exit_code == 1 and "sorted/01 is a link, and photos belong in a folder of this name" in done.stderr
    assert snapshot("away") == away
    scan("sort", "sorted", "--undo")
    assert snapshot("away") == away


def test_a_link_that_a_person_has_turned_elsewhere_stays(before, project):
    sort("sorted", "--link")
    os.unlink("sorted/01/2.jpg")
    os.symlink("elsewhere", "sorted/01/2.jpg")
    write_run(ELSEWHERE)
    assert "1 changed" in sort("sorted", "--link")
    assert tree("sorted")["01/2.jpg"] == "-> elsewhere" and "03/2.jpg" not in names("sorted")


def test_a_moved_folder_is_still_known(before):
    os.rename("sorted", "other")
    write_run(ELSEWHERE)
    assert "0 files made" in sort("other")
    assert scan("sort", "other", "--undo").exit_code == 0 and not os.path.exists("other")
