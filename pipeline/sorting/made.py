"""A file that was made, and how to tell whether it is still what was made."""

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


def is_as_made(folder: Path, made: Made) -> bool:
    """Whether what was made below ``folder`` is there, and as it was: nobody has changed it."""
    path = folder / made.path
    try:
        about = os.lstat(path)
        if made.kind == "link":
            return stat.S_ISLNK(about.st_mode) and os.readlink(path) == made.inside
    except OSError:
        return False
    same = (about.st_size, about.st_mtime_ns) == (made.size, made.mtime_ns)
    return same and stat.S_ISREG(about.st_mode) and is_inside(folder, os.path.dirname(made.path))


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


def can_be_made_again(made: Made) -> bool:
    """Whether nothing is lost if it is removed: the original is still what it was."""
    if made.kind == "link" or made.inside is None:
        return True
    try:
        about = os.stat(made.inside)
    except OSError:
        return False
    # Of an archive, a table or the original of a text only that it is there is known without reading it.
    return "-" not in made.was or made.was == f"{about.st_size}-{about.st_mtime_ns}"
