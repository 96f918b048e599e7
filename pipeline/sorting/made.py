"""A file that was made, and how to tell whether it is still what was made."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FILE = ".scan-sort.jsonl"
PARTIAL = ".scan-sort.partial"  # a file that is not whole yet
ASIDE = ".scan-sort.aside"  # followed by a number: a file on its way, while two change places


@dataclass(frozen=True, slots=True)
class Made:
    """One file that was made."""

    path: str  # below the folder, with /
    photo: str  # that it is or belongs to, by its name in the source
    copy: int  # which of several copies of that photo, from 0
    file: str  # its own name in the source; / and what follows the stem, if it has no original
    kind: Literal["copy", "link", "text"]  # text: written by the program, such as a sidecar
    size: int  # bytes
    mtime_ns: int
    inside: str | None  # the original, or the archive or table that has it
    was: str  # of the original, or of the text; see ``Original``


def open_new(path: Path) -> int:
    """Opens a file that is not there yet for writing. What lies at ``path`` is removed first.

    It may be a link to a photo, left by a call that was killed: to write through it would be the end of the photo.
    Raises ``OSError``.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def is_as_made(folder: Path, made: Made) -> bool:
    """Whether what was made below ``folder`` is there, and as it was: nobody has changed it."""
    path = folder / made.path
    try:
        about = os.lstat(path)
        if made.kind == "link":
            return stat.S_ISLNK(about.st_mode) and os.readlink(path) == made.inside
    except OSError:
        return False
    same = about.st_size == made.size and _same_time(about.st_mtime_ns, made.mtime_ns)
    return same and stat.S_ISREG(about.st_mode) and is_inside(folder, os.path.dirname(made.path))


def _same_time(now: int, then: int) -> bool:
    """Whether two times in nanoseconds are one. FAT and exFAT keep 2 s or 10 ms, some only once the disk is out."""
    return now == then or (abs(now - then) < 2_000_000_000 and not now % 10_000_000)


def is_inside(folder: Path, below: str) -> bool:
    """Whether all of the path ``below`` is folders, and no link that leads elsewhere."""
    while below:
        try:
            if not stat.S_ISDIR(os.lstat(folder / below).st_mode):
                return False
        except OSError:
            return False
        below = os.path.dirname(below)
    return True


def has_original(made: Made) -> bool:
    """Whether nothing is lost if it is removed: it is not a copy whose original is gone."""
    return made.kind == "link" or made.inside is None or os.path.isfile(made.inside)
