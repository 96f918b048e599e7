"""The few things that are done to files, so that a kill or a full disk leaves no half one."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.sorting.made import PARTIAL, open_new
from scan_core.errors import ScanError

PIECE = 2**30  # bytes that the system is asked to copy at once
MARGIN = 64 * 2**20  # bytes that stay free
CLONE = 0x40049409  # ioctl FICLONE: a copy that shares its blocks, on btrfs and XFS
ELSEWHERE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY, errno.EBADF}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Unreadable(Exception):
    """An original cannot be copied. The message is the reason."""


def copy_file(source: str, partial: Path) -> tuple[int, int]:
    """Copies a file with its time of modification. Returns the copy's size and that time in nanoseconds.

    Raises ``Unreadable`` if the original is at fault, ``OSError`` if the disk is full or cannot be written.
    """
    try:
        reading = os.open(source, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    try:
        before = os.fstat(reading)
        writing = open_new(partial)
        try:
            with _reading_errors():
                transfer(reading, writing, before.st_size)
            if (copied := os.fstat(writing).st_size) != before.st_size:
                raise Unreadable(f"{before.st_size:,} bytes became {copied:,}: it changes just now")
            with contextlib.suppress(PermissionError):  # a foreign file system may refuse it
                os.utime(writing, ns=(before.st_atime_ns, before.st_mtime_ns))
            about = os.fstat(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return about.st_size, about.st_mtime_ns


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Between two files, what is not the target's fault is taken for the original's."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise Unreadable(error.strerror or str(error)) from None


def transfer(reading: int, writing: int, size: int) -> None:
    """Copies ``size`` bytes between two open files: in the kernel where it can, which shares blocks where it can."""
    done = 0
    try:
        while hasattr(os, "copy_file_range") and done < size:
            count = os.copy_file_range(reading, writing, min(size - done, PIECE))
            if not count:
                break
            done += count
    except OSError as error:
        if done or error.errno not in ELSEWHERE:
            raise
    if done < size:  # between some file systems, and of some network ones, the kernel copies nothing
        os.lseek(reading, done, os.SEEK_SET)
        with open(reading, "rb", closefd=False) as source, open(writing, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 2**20)


def write_file(content: bytes, partial: Path) -> tuple[int, int]:
    """Writes a file. Returns its size and its time of modification in nanoseconds. Raises ``OSError``."""
    with open(open_new(partial), "wb") as file:
        file.write(content)
        file.flush()
        about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def link_file(target: str, partial: Path) -> tuple[int, int]:
    """Makes a symbolic link. Raises ``ScanError`` if the file system has none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    try:
        os.symlink(target, partial)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise ScanError(f"{partial.parent} is on a file system without links; leave --link away") from None
    return 0, 0


def remove_partial(folder: Path) -> None:
    """Removes what a killed call has left half done."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / PARTIAL)


def check_room(folder: Path, needed: int, example: str | None) -> None:
    """Raises ``ScanError`` if ``needed`` bytes do not fit at ``folder``, and copies take room there.

    ``example`` is a file that would be copied.
    """
    free = shutil.disk_usage(folder).free
    if needed + MARGIN <= free or not needed or (example and _can_clone(example, folder)):
        return
    raise ScanError(
        f"{folder} needs {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free there; make room, or give a folder "
        "on another disk; links (--link) take none"
    )


def _can_clone(source: str, folder: Path) -> bool:
    partial = folder / PARTIAL
    try:
        with open(source, "rb") as reading, open(open_new(partial), "wb") as writing:
            fcntl.ioctl(writing.fileno(), CLONE, reading.fileno())
    except OSError:
        return False
    finally:
        remove_partial(folder)
    return True


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Held while ``folder`` is changed. Raises ``ScanError`` if another call holds it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScanError(f"{folder} is being sorted by another scan sort; wait until it has ended") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What cannot be written becomes a ``ScanError`` that names ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ScanError(
            f"{folder} cannot be written ({error.strerror}: {error.filename or folder}); give a folder that you may "
            "write to"
        ) from None
