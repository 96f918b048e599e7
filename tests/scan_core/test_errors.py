"""What a machine without disk or memory says, as the libraries say it."""

import errno
import os
import sys

import numpy as np
import pytest
import torch

from scan_core.data.npy import create_array
from scan_core.errors import ScanError, exhausted

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")


def write_text(path):
    with open(path, "w") as file:
        file.write("text")


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(99_999))


@on_linux
@pytest.mark.parametrize("write", [write_text, write_array])
def test_a_full_disk_is_said_in_words(write):
    with pytest.raises(OSError) as caught:
        write("/dev/full")
    assert exhausted(caught.value).startswith("no room is left on the disk; make room")


@pytest.mark.parametrize("take", [lambda: torch.empty(1 << 55), lambda: np.empty(1 << 55), lambda: bytearray(1 << 60)])
def test_too_little_memory_is_said_in_words_with_what_to_lower(take):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        take()
    assert exhausted(caught.value, "embed.spaces").startswith("out of memory; close other programs, or lower embed.sp")


@pytest.mark.parametrize("error", [ScanError("5 images"), OSError(errno.EACCES, "no"), RuntimeError("of memory")])
def test_other_errors_are_none_of_these(error):
    assert exhausted(error) is None


@on_linux
def test_a_new_array_takes_its_room_at_once(tmp_path):
    """A sparse file would take it when it is written to, and a full disk would end the process then."""
    array = create_array(tmp_path / "a.npy", np.uint8, (3000, 1000))
    assert array.shape == (3000, 1000) and (tmp_path / "a.npy").stat().st_blocks * 512 >= 3_000_000


def test_a_new_array_without_room_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        create_array(tmp_path / "a.npy", np.uint8, (3, 1))
