"""A kill between any two changes of the disk, and a full disk: the next call makes the tree right."""

import builtins
import contextlib
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.params import read_params
from pipeline.sorting import disk, manifest
from pipeline.sorting.sort import sort_photos
from pipeline.sorting.undo import undo_sort
from tests.pipeline.sorting.finished import names, photo_bytes, put, scan, snapshot, sort, sorted_anew, tree, write_run

CHANGING = ("mkdir", "rmdir", "rename", "unlink", "symlink", "write", "utime", "ftruncate", "copy_file_range", "open")
FIRST = {
    "a/IMG.JPG": (1, "sure"), "b/IMG.JPG": (2, "sure"), "a/2.jpg": (1, "to check"), "a/3.jpg": (2, "fits nowhere"),
    "a/4.jpg": (3, "sure"),
}  # fmt: skip
SECOND = FIRST | {"a/IMG.JPG": (2, "sure"), "b/IMG.JPG": (1, "sure"), "a/2.jpg": (1, "sure"), "a/4.jpg": "rejected"}


class Killed(BaseException):
    """The process is gone: nothing that would follow happens."""


class Killer:
    """Lets ``count`` changes of the disk happen. The next one is half done if it can be, and none follows."""

    def __init__(self, monkeypatch, count):
        self.left, self.dead = count, False
        for name in CHANGING:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name), name))
        # Python's own files do not go through ``os``.
        for module in (disk, manifest):
            monkeypatch.setattr(module, "open", self.wrapped(builtins.open, "file"), raising=False)

    def wrapped(self, real, name):
        def call(*words, **more):
            writes = name not in ("open", "file") or any(
                each == "wb" or (isinstance(each, int) and each & (os.O_WRONLY | os.O_RDWR)) for each in words[1:2]
            )
            if not writes:
                return real(*words, **more)
            if self.dead or not self.left:
                if not self.dead and name == "write":
                    real(words[0], bytes(words[1])[: len(words[1]) // 2])
                if not self.dead and name == "copy_file_range":
                    real(words[0], words[1], words[2] // 2)
                self.dead = True
                raise Killed
            self.left -= 1
            return real(*words, **more)

        return call


@pytest.fixture
def photos(project):
    for source in FIRST:
        put(f"photos/{source}", photo_bytes(source))
    for name in ("a/IMG.CR2", "a/2.jpg.xmp", "b/IMG.MOV"):
        put(f"photos/{name}")
    write_run(FIRST)
    return snapshot("photos")


def killed_everywhere(monkeypatch, prepare, action, check, step):
    """Does ``action`` in a new folder, killed after 0, ``step``, 2 ``step`` ... changes, and each time ``check``s."""
    count = 0
    while True:
        folder = Path("sorted").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
        with monkeypatch.context() as patched:
            killer = Killer(patched, count)
            with contextlib.suppress(Killed):
                action(folder)
        check(folder, count)
        if not killer.dead:
            return count
        count += step


ACTIONS = {  # options of an earlier call, None: there was none; and of the call that is killed
    "sort": (None, []), "regroup": ([], []), "xmp": ([], ["xmp"]), "links": ([], ["link"]), "copies": (["link"], []),
}  # fmt: skip


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", [*ACTIONS, "ignore"])
def test_after_a_kill_the_same_call_makes_the_tree_of_a_call_that_was_not_killed(photos, monkeypatch, what, step):
    first, options = ACTIONS.get(what, ([], []))
    params = read_params()
    link, xmp = "link" in options, "xmp" in options

    def prepare(folder):
        if first is not None:
            write_run(FIRST)
            sort_photos(folder, params, "link" in first, False)
        write_run(SECOND)

    if what == "ignore":
        scan("edit", "ignore", "2")
    write_run(SECOND)
    expected = sorted_anew(*(f"--{each}" for each in options))

    def check(folder, count):
        sort_photos(folder, params, link, xmp)
        assert tree(folder) == expected, count
        done = sort_photos(folder, params, link, xmp)
        assert (done.done.copied, done.done.moved, done.done.removed) == (0, 0, 0), count
        assert (done.existing.changed, done.existing.gone, done.existing.added) == (0, 0, 0), count
        undone = undo_sort(folder)
        assert (undone.changed, undone.kept) == (0, 0) and not names(folder), count
        assert snapshot("photos") == photos

    tried = killed_everywhere(monkeypatch, prepare, lambda folder: sort_photos(folder, params, link, xmp), check, step)
    assert tried > 20


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["sort", "regroup", "xmp", "links"])
def test_after_a_kill_all_can_be_taken_back(photos, monkeypatch, what, step):
    first, options = ACTIONS[what]
    params = read_params()

    def prepare(folder):
        if first is not None:
            write_run(FIRST)
            sort_photos(folder, params, "link" in first, False)
        write_run(SECOND)

    def check(folder, count):
        known = (folder / ".scan-sort.jsonl").exists()
        if known:
            undone = undo_sort(folder)
            assert (undone.changed, undone.kept) == (0, 0), count
        assert not folder.exists() or not set(os.listdir(folder)) - (set() if known else {".scan-sort.partial"}), count
        assert snapshot("photos") == photos

    link, xmp = "link" in options, "xmp" in options
    killed_everywhere(monkeypatch, prepare, lambda folder: sort_photos(folder, params, link, xmp), check, step)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("then", ["undo", "sort"])
def test_after_a_kill_an_undo_is_completed_or_sorting_starts_again(photos, monkeypatch, then, step):
    params = read_params()
    write_run(SECOND)
    expected = sorted_anew()

    def prepare(folder):
        write_run(FIRST)
        sort_photos(folder, params, False, False)

    def check(folder, count):
        if then == "sort":
            write_run(SECOND)
            sort_photos(folder, params, False, False)
            assert tree(folder) == expected, count
        if folder.exists() and (then == "sort" or (folder / ".scan-sort.jsonl").exists()):
            undo_sort(folder)
        assert not folder.exists() or not list(folder.iterdir()), count
        assert snapshot("photos") == photos

    killed_everywhere(monkeypatch, prepare, undo_sort, check, step)


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("words", [(), ("--xmp",), ("--link",), ("--undo",)])
def test_a_link_that_a_killed_call_has_left_half_done_is_never_written_through(photos, monkeypatch, words, room):
    sort("sorted", "--link")
    os.symlink(os.path.abspath("photos/a/3.jpg"), "sorted/.scan-sort.partial")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12 if room else 1))
    assert scan("sort", "sorted", *words).exit_code == (0 if room or words in (("--link",), ("--undo",)) else 1)
    assert snapshot("photos") == photos
    assert not os.path.lexists("sorted/.scan-sort.partial")


def test_what_a_killed_call_has_left_half_done_takes_no_room(photos, monkeypatch):
    sort("sorted", "--link")
    put("sorted/.scan-sort.partial", b"half")
    left = os.path.abspath("sorted/.scan-sort.partial")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0 if os.path.exists(left) else 10**12))
    assert sort("sorted")


def test_what_a_killed_undo_has_removed_is_in_nobody_s_way(photos):
    write_run(SECOND)
    expected = sorted_anew()
    write_run(FIRST)
    sort("sorted")
    with open("sorted/.scan-sort.jsonl", "a") as opened:
        opened.write('{"undo": true}\n')
    for name in ("IMG.JPG", "IMG.MOV"):
        os.unlink(f"sorted/02/{name}")
    write_run(SECOND)
    sort("sorted")
    assert tree("sorted") == expected


def test_a_disk_that_is_full_in_the_middle_leaves_whole_files_and_the_next_call_goes_on(photos, monkeypatch):
    write_run(SECOND)
    expected, real = sorted_anew(), disk.copy_file
    for room in range(len(expected)):
        shutil.rmtree("sorted", ignore_errors=True)
        done = []

        def fill(source, partial, done=done, room=room):
            if len(done) == room:
                partial.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            done.append(source)
            return real(source, partial)

        with monkeypatch.context() as patched:
            patched.setattr(disk, "copy_file", fill)
            full = scan("sort", "sorted")
        if full.exit_code == 0:
            break
        assert full.stderr.endswith("make room, then run the same again: what was finished is there\n")
        found = tree("sorted")
        assert len(names("sorted")) == room and found.items() <= expected.items(), "no half file"
        sort("sorted")
        assert tree("sorted") == expected and snapshot("photos") == photos
    assert room == len(names("sorted"))


def test_a_disk_on_which_not_even_a_line_fits_is_one_line_too(photos, monkeypatch):
    sort("sorted")
    expected = tree("sorted")
    write_run(SECOND)

    def full(file, content):
        os.pwrite(file, bytes(content[:5]), os.fstat(file).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        assert "no room is left on the disk" in scan("sort", "sorted").stderr
        assert tree("sorted") == expected
        assert scan("sort", "sorted", "--undo").exit_code == 0, "which makes room"
    assert not os.path.exists("sorted")


def test_a_rename_that_fails_is_not_noted(photos, monkeypatch):
    real, failed = os.rename, []

    def refuse(source, target):
        if str(target).endswith("IMG.CR2") and not failed:
            failed.append(target)
            raise OSError(errno.EIO, "Input/output error", str(target))
        return real(source, target)

    expected = sorted_anew()
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        assert "Input/output error" in scan("sort", "sorted").stderr
    sort("sorted")
    assert tree("sorted") == expected


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b"{}\n", "line 1, is damaged"), (b'{"scan_sort": 1', "is empty"),
    (b'{"scan_sort": 2, "source": "x", "new": true}\n', "has format 2; 1 is allowed"),
    (b'{"scan_sort": 1, "source": "x", "new": true}\n{"make": {"path": "a"}}\n{"end": true}\n', "line 2, is damaged"),
    (b'{"scan_sort": 1, "source": "x", "new": true}\nnonsense\n{"end": true}\n', "line 2, is damaged"),
    (b'{"scan_sort": 1, "source": "x", "new": true}\n{"fly": 1}\n{"end": true}\n', "line 2, is damaged"),
])  # fmt: skip
def test_a_damaged_manifest_is_refused_and_nothing_is_touched(photos, content, said):
    os.makedirs("sorted/01")
    put("sorted/01/IMG.JPG", b"mine")
    put("sorted/.scan-sort.jsonl", content)
    before = snapshot("sorted")
    for words in ((), ("--undo",)):
        done = scan("sort", "sorted", *words)
        assert done.exit_code == 1 and said in done.stderr and snapshot("sorted") == before
