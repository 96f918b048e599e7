"""Copying in the kernel and without it, room, and one call at a time."""

import errno
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.sorting import disk
from pipeline.sorting.disk import Unreadable, alone, check_room, copy_file
from pipeline.sorting.made import Made, is_as_made
from scan_core.errors import ScanError
from tests.tiny import refused

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    return path


def copied(original):
    partial = original.with_name("copy")
    size, mtime_ns = copy_file(str(original), partial)
    about = partial.stat()
    assert (size, mtime_ns) == (about.st_size, about.st_mtime_ns) == (len(CONTENT), 1_234_567_890_123_456_789)
    return partial.read_bytes()


def kernel(monkeypatch, steps):
    """``os.copy_file_range`` that copies as many bytes as ``steps`` say in turn, or raises."""
    real, left = os.copy_file_range, list(steps)

    def call(source, target, count):
        step = left.pop(0) if left else count
        if isinstance(step, int):
            return real(source, target, min(step, count)) if step else 0
        raise OSError(step[0], "no")

    monkeypatch.setattr(os, "copy_file_range", call, raising=False)


@pytest.mark.parametrize("steps", [
    [], [1, 2, 1_000], [0], [100, 0], [(errno.EXDEV,)], [(errno.ENOSYS,)], [(errno.EOPNOTSUPP,)], [(errno.EINVAL,)],
])  # fmt: skip
def test_a_copy_is_whole_whatever_the_kernel_can(original, monkeypatch, steps):
    kernel(monkeypatch, steps)
    assert copied(original) == CONTENT


def test_a_copy_is_whole_without_the_kernel_s_help(original, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    assert copied(original) == CONTENT


def test_a_file_system_that_keeps_no_times_takes_a_copy_too(original, monkeypatch):
    def refuse(*words, **more):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    size, mtime_ns = copy_file(str(original), original.with_name("copy"))
    about = original.with_name("copy").stat()
    assert (size, mtime_ns) == (about.st_size, about.st_mtime_ns) and size == len(CONTENT)


@pytest.mark.parametrize("steps", [[(errno.ENOSPC,)], [1_000, (errno.ENOSPC,)], [(errno.EDQUOT,)]])
def test_a_full_disk_is_said_and_not_taken_for_a_bad_original(original, monkeypatch, steps):
    kernel(monkeypatch, steps)
    with pytest.raises(OSError):
        copied(original)


@pytest.mark.parametrize("steps", [[(errno.EIO,)], [1_000, (errno.EIO,)], [1_000, (errno.EINVAL,)]])
def test_an_original_that_cannot_be_read_to_its_end_is_said(original, monkeypatch, steps):
    kernel(monkeypatch, steps)
    with pytest.raises(Unreadable):
        copied(original)


def test_an_original_that_shrinks_meanwhile_is_no_copy(original, monkeypatch):
    monkeypatch.setattr(disk, "transfer", lambda reading, writing, size: os.write(writing, CONTENT[:10]))
    with pytest.raises(Unreadable, match="3,000,000 bytes became 10"):
        copied(original)


def test_what_is_no_file_is_no_original(original):
    for path in (original.parent, original.with_name("gone")):
        with pytest.raises(Unreadable):
            copy_file(str(path), original.with_name("copy"))


def test_room_is_needed_unless_copies_share_their_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    check_room(tmp_path, 0, None)
    check_room(tmp_path, 9 * 10**8, None)
    needs = f"{tmp_path} needs 1.0 GB, but 1.0 GB are free there; make room"
    refused(lambda: check_room(tmp_path, 10**9, None), needs)
    example = tmp_path / "a"
    example.write_bytes(b"1")
    calls = []
    monkeypatch.setattr(disk.fcntl, "ioctl", lambda *words: calls.append(words))
    check_room(tmp_path, 10**12, str(example))
    assert calls and [each.name for each in tmp_path.iterdir()] == ["a"]

    def cannot(*words):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(disk.fcntl, "ioctl", cannot)
    with pytest.raises(ScanError):
        check_room(tmp_path, 10**12, str(example))
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_two_calls_do_not_work_in_one_folder(tmp_path):
    with alone(tmp_path):
        refused(lambda: alone(tmp_path).__enter__(), f"{tmp_path} is being sorted by another scan sort")
    with alone(tmp_path):
        pass


@pytest.mark.parametrize(("difference", "same"), [(0, True), (1, False), (7_000_000, False), (2_100_000_000, False)])
def test_a_file_is_as_made_by_its_size_and_time(original, difference, same):
    about = original.stat()
    made = Made("original", "p", 0, "p", "copy", about.st_size, about.st_mtime_ns + difference, None, "")
    assert is_as_made(original.parent, made) == same
    assert not is_as_made(original.parent, replace(made, size=1))


def test_a_time_that_a_memory_card_has_rounded_is_the_same(original):
    about = original.stat()
    made = Made("original", "p", 0, "p", "copy", about.st_size, about.st_mtime_ns, None, "")
    os.utime(original, ns=(0, about.st_mtime_ns // 2_000_000_000 * 2_000_000_000))
    assert is_as_made(original.parent, made)
    os.utime(original, ns=(0, about.st_mtime_ns - about.st_mtime_ns % 10_000_000 + 3_000_000_000))
    assert not is_as_made(original.parent, made)
