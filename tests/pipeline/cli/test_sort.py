"""``scan sort``: what it says, its tables, its refusals, and five thousand files there and back."""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.groups.apply import read_predictions
from pipeline.sorting import steps
from tests.pipeline.sorting.conftest import project
from tests.pipeline.sorting.finished import names, photo_bytes, put, scan, snapshot, sort, tree, write_run

__all__ = ["project"]  # the fixture

ROWS = {
    "2018/1.jpg": (1, "sure"), "2019/1.jpg": (1, "sure"), "2019/2.jpg": (2, "to check"), "2019/3.jpg": (2, "sure"),
    "2019/4.jpg": (2, "fits nowhere"), "cut.jpg": "rejected", "same.jpg": "duplicate", "notes.txt": "ignored",
}  # fmt: skip


@pytest.fixture
def run(project):
    for source in ROWS:
        put(f"photos/{source}", photo_bytes(source))
    put("photos/2019/3.CR2")
    write_run(ROWS)
    scan("edit", "name", "1", "daisy")
    return project


def test_it_says_what_has_come_out_and_how_it_is_taken_back(run):
    assert sort("sorted") == (
        f"sorted    5 photos into 2 groups: {run}/sorted\n"
        "          sure 3   to check 1   fits nowhere 1\n"
        "along     1 companion (raw files, sidecars, videos)\n"
        "left out  1 unreadable, 1 exact copy\n"
        "now       6 files made, 0 moved, 0 removed\n"
        "\n"
        f"undo      scan sort {run}/sorted --undo\n"
    )
    put("sorted/mine.txt")
    os.unlink("sorted/02/3.jpg")
    put("sorted/01 daisy/1.jpg", b"edited")
    assert "yours     left alone: 1 changed, 1 moved or removed, 1 added by you\n" in sort("sorted")
    done = scan("sort", "sorted", "--undo")
    assert done.stdout == (
        f"undone    4 files removed that scan sort had made in {run}/sorted\n"
        "yours     left alone: 2 that you have changed, moved or removed\n"
        f"          {run}/sorted stays, with what is yours in it\n"
    )


def test_tables_have_every_file_and_copy_nothing(run):
    before = set(os.listdir())
    said = scan("sort", "--csv", "table.csv", "--json", "table.json").stdout
    assert said == "table     8 rows in table.csv\ntable     8 rows in table.json\n"
    assert set(os.listdir()) == before | {"table.csv", "table.json"}
    expected = read_predictions().to_pylist()
    rows = json.loads(Path("table.json").read_text())
    assert rows == [{key: row[key] for key in rows[0]} for row in expected]
    assert {*rows[0]} == {*expected[0]}
    with open("table.csv", newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [(row["source"], row["group"], row["name"], row["state"]) for row in table] == [
        tuple("" if row[key] is None else str(row[key]) for key in ("source", "group", "name", "state")) for row in rows
    ]
    shutil.rmtree("photos")
    assert scan("sort", "--csv", "table.csv").exit_code == 0, "the photos are not needed for it"


def test_a_table_can_come_with_the_folder_and_a_failed_one_leaves_the_old(run, monkeypatch):
    said = sort("sorted", "--json", "sorted.json")
    assert "table     8 rows in sorted.json\n\nundo" in said and len(names("sorted")) == 6
    before = Path("sorted.json").read_bytes()

    def full(*words, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    assert "no room is left" in scan("sort", "--json", "sorted.json").stderr
    assert Path("sorted.json").read_bytes() == before and not Path(".sorted.json.partial").exists()


@pytest.mark.parametrize(("words", "said"), [
    ((), "scan sort got no folder; give one, such as scan sort ~/sorted, or --csv FILE"),
    (("--link",), "scan sort got no folder"),
    (("--xmp", "--csv", "a.csv"), "scan sort got no folder"),
    (("--undo",), "--undo got no folder; it goes with a folder alone"),
    (("sorted", "--undo", "--link"), "--undo got --link; it goes with a folder alone"),
    (("sorted", "--undo"), "there is no folder "),
    (("empty", "--undo"), "empty has nothing that scan sort has made; there is nothing to take back"),
    (("photos/sorted",), "photos, whose photos are only read; give a folder elsewhere"),
    (("photos",), "whose photos are only read"),
    (("photos/2019",), "whose photos are only read"),
    (("link/new",), "whose photos are only read"),
    (("deep/new",), "whose photos are only read"),
    ((".",), "whose photos are only read, is inside of"),
    (("..",), "whose photos are only read, is inside of"),
    (("full",), "full has files that scan sort has not made; give a new folder, or an empty one"),
    (("params.yaml",), "params.yaml is a file; give a folder, which may be a new one"),
    (("no/where",), "no; make it first, or give another place"),
    (("--csv", "table.txt"), "--csv is table.txt; a .csv file is allowed"),
    (("--json", "table.csv"), "--json is table.csv; a .json file is allowed"),
    (("sorted", "--csv", "no/where.csv"), "there is no folder no; make it, or name another file"),
    (("--csv", "folder.csv"), "--csv is folder.csv, which is a folder; name a file"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(run, words, said):
    for folder in ("empty", "full", "folder.csv"):
        os.mkdir(folder)
    put("full/mine.txt")
    os.symlink("photos", "link")
    os.symlink("photos/2019", "deep")
    before = tree("."), snapshot("photos")
    done = scan("sort", *words)
    assert done.exit_code == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (tree("."), snapshot("photos")) == before


def test_without_a_run_it_says_so(project):
    done = scan("sort", "sorted")
    assert done.exit_code == 1 and done.stderr.startswith("scan: error: ") and done.stderr.count("\n") == 1
    assert "params.yaml is missing" in done.stderr and not os.path.exists("sorted")
    write_run(ROWS)
    os.unlink("reports/predictions.parquet")
    done = scan("sort", "sorted")
    assert "reports/predictions.parquet is missing; make it with: dvc repro evaluate" in done.stderr
    assert not os.path.exists("sorted")


def test_no_room_no_permission_and_links_that_cannot_be_are_one_line(run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        done = scan("sort", "sorted")
        assert "sorted needs 0.0 GB, but 0.0 GB are free there; make room" in done.stderr
        assert not os.path.exists("sorted")
        assert scan("sort", "sorted", "--link").exit_code == 0, "links take none"
        assert scan("sort", "sorted", "--undo").exit_code == 0

    def denied(*words, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(words[0]))

    def no_links(*words, **more):
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", denied)
        done = scan("sort", "sorted")
        assert (
            f"{run}/sorted cannot be written (Permission denied: {run}/sorted); give a folder that you" in done.stderr
        )
    with monkeypatch.context() as patched:
        patched.setattr(os, "symlink", no_links)
        done = scan("sort", "sorted", "--link")
        assert "is on a file system without links; leave --link away" in done.stderr
    assert sort("sorted")


def test_photos_of_another_source_do_not_mix(run):
    sort("sorted")
    before = tree("sorted")
    shutil.copytree("photos", "others")
    write_run(ROWS, path="others")
    done = scan("sort", "sorted")
    assert done.exit_code == 1 and tree("sorted") == before
    assert f"has photos from {run}/photos, and the last run is of {run}/others; give another folder" in done.stderr


def test_what_a_system_puts_into_a_folder_does_not_fill_it(run):
    os.mkdir("stick")
    put("stick/.DS_Store")
    os.mkdir("stick/lost+found")
    assert "left alone" not in sort("stick") and "left alone" not in sort("stick")
    assert scan("sort", "stick", "--undo").exit_code == 0
    assert tree("stick").keys() == {".DS_Store", "lost+found"}


def test_interrupted_it_says_that_the_same_command_carries_on(run, monkeypatch):
    calls, real = [], steps.Steps._make

    def interrupt(self, *words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *words)

    with monkeypatch.context() as patched:
        patched.setattr(steps.Steps, "_make", interrupt)
        done = scan("sort", "sorted")
    assert done.exit_code == 130 and "interrupted; the same command carries on from here" in done.stderr
    assert names("sorted") == {"01 daisy/1.jpg", "01 daisy/1 (2019).jpg"}
    put("sorted/mine.txt")
    os.unlink("sorted/01 daisy/1 (2019).jpg")
    assert "yours     left alone: 1 moved or removed, 1 added" in sort("sorted"), "the last one was finished, too"


@pytest.mark.slow
def test_five_thousand_files_there_and_back_leave_the_same_tree(project):
    rows = {}
    for number in range(4_000):
        source = f"{number % 40:02d}/{number % 7}/IMG_{number % 90:04d}_{number // 3600}.JPG"
        rows[source] = (number * 7919 % 30 + 1, ("sure", "sure", "to check", "fits nowhere")[number % 4])
        put(f"photos/{source}", photo_bytes(source) + bytes(number % 5))
        if not number % 4:
            put(f"photos/{source[:-4]}.CR2")
    write_run(rows)
    before, inside = snapshot("photos"), digest(".")
    sort("sorted")
    contents = Counter(hashlib.sha256(what).digest() for what in tree("sorted").values() if what != "folder")
    assert contents == Counter(hashlib.sha256(what).digest() for what, *_ in before.values()), "each once"
    assert scan("sort", "sorted", "--undo").exit_code == 0
    assert snapshot("photos") == before and digest(".") == inside


def digest(folder):
    return {name: what if what == "folder" else hashlib.sha256(what).digest() for name, what in tree(folder).items()}
