"""Where images come from. A source yields its images one by one, in an order of its own, and what it must refuse."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from scan_core.errors import ScanError
from scan_core.settings import SOURCES_WITH_PATH, Data

Split = Literal["train", "val", "extra"]


class Item(NamedTuple):
    """One image that has not been decoded yet."""

    name: str  # the source's own: a path inside the folder or archive, or set/row
    data: str | bytes | np.ndarray  # a file's path, an encoded image, or (height,width[,channels]) uint8 pixels
    label: str | None = None
    split: Split | None = None  # the source's own split; extra: beyond what is clustered
    meant: bool = False  # as an image whatever its name is: a row of a table


class Finding(NamedTuple):
    """Something in the source that is no image of the store, or is the same as another, and why."""

    name: str
    kind: Literal["rejected", "ignored", "duplicate", "near_duplicate"]  # only what is rejected counts as such
    reason: str


@dataclass(frozen=True)
class Source:
    """A source that has been looked at, but not read."""

    read: Callable[[], Iterator[Item | Finding]]  # the same things in the same order at every call
    classes: list[str] | None = None  # the set's own order of its classes; None: sorted names
    total: int | None = None  # images, where that is known before reading
    # Labels and splits by the names of all images, where no image by itself can tell.
    layout: Callable[[Sequence[str]], tuple[list[str | None], list[Split | None]]] | None = None


def open_source(settings: Data, root: Path, home: Path) -> Source:
    """The source that ``settings.name`` means.

    A relative ``settings.path`` starts at ``root``; named sets lie in, or are downloaded into, ``home``.
    Raises ``ScanError`` where there is nothing to read.
    """
    if settings.name in SOURCES_WITH_PATH:
        from scan_core.data import archive as archives
        from scan_core.data import folder as files
        from scan_core.data import npy as arrays
        from scan_core.data import parquet as tables

        path = located(settings, root)
        readers: dict[str, Callable[[Path, Data], Source]] = {
            "folder": files.open_folder,
            "archive": archives.open_archive,
            "parquet": tables.open_parquet,
            "npy": arrays.open_npy,
        }
        return readers[settings.name](path, settings)
    from scan_core.data import named_sets as named

    return named.open_named(settings, home)


def located(settings: Data, root: Path) -> Path:
    """Where ``settings.path`` is. Raises ``ScanError`` where nothing is."""
    path = resolve(settings.path or "", root)
    if not path.exists():
        raise ScanError(f"data.path is {settings.path}; there is nothing at {path}")
    return path


def resolve(path: str, root: Path) -> Path:
    """``path`` with ``~`` expanded; a relative one starts at ``root``."""
    return root / Path(path).expanduser()


def printable(name: str) -> str:
    """A file's name as text that any file can hold: bytes that are no UTF-8 are written as ``\\udcNN``."""
    return name.encode("utf-8", "backslashreplace").decode()


def class_order(names: set[str]) -> list[str]:
    """``names`` sorted: by value if all are numbers, so that 10 comes after 9, else as text."""
    try:
        values = {name: Decimal(name) for name in names}
    except InvalidOperation:
        return sorted(names)
    if not all(value.is_finite() for value in values.values()):
        return sorted(names)
    return sorted(names, key=lambda name: (values[name], name))
