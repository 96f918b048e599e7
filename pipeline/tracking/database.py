"""MLflow's SQLite file is made beside its place and then put there, whole, whoever stops its maker."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from pipeline.progress import say

PREFIX = "sqlite:///"


def database_file(address: str) -> Path | None:
    """The file that a tracking address names, or None if it names something else."""
    return Path(address.removeprefix(PREFIX)) if address.startswith(PREFIX) and address != PREFIX else None


def make_database(address: str, make: Callable[[str], object]) -> None:
    """Makes sure that the SQLite file of ``address`` is there and whole; ``make`` fills a new one at its address.

    A half-made one is put aside, which is said. Several processes may do this at once. Raises what ``make`` raises.
    """
    file = database_file(address)
    if file is None:
        return
    put_aside_half_made(file)
    if file.exists():
        return
    _delete_left(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(file, os.getpid())
    try:
        make(f"{PREFIX}{beside}")
        try:
            os.link(beside, file)  # not if another process was faster
        except FileExistsError:
            pass
        except OSError:  # the disk has no links
            os.replace(beside, file)
    finally:
        for each in beside.parent.glob(f"{beside.name}*"):  # and its journal
            each.unlink(missing_ok=True)


def put_aside_half_made(file: Path) -> None:
    """Renames a database that whoever made it has not finished, and says so."""
    if not file.exists() or not _is_half_made(file):
        return
    number = 1
    while (aside := file.with_name(f"{file.name}.half-made-{number}")).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):  # another process has put it aside
        os.rename(file, aside)
        say(f"{file} was half made, by a process that was stopped; it is put aside as {aside.name}, and made anew")


def _is_half_made(file: Path) -> bool:
    """MLflow's last step is the experiment Default; before it there can be no run."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
        try:
            return not database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:  # another one: it is busy, or cannot be read
            return "no such table" in str(error)
        except sqlite3.DatabaseError:  # something else's file, or damaged: MLflow says so
            return False


def _beside(file: Path, pid: int) -> Path:
    return file.with_name(f"{file.name}.making-{pid}")


def _delete_left(file: Path) -> None:
    """Deletes what processes that were killed have left."""
    for left in file.parent.glob(f"{file.name}.making-*"):
        try:
            os.kill(int(left.name.removesuffix("-journal").rpartition("-")[2]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (OSError, ValueError):  # it is alive
            continue
