"""From settings to a source: which reader ``data.name`` selects, and where it reads."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.data.types import LFS, Source
from scan_core.errors import ScanError

LFS_BYTES = 1024  # no pointer is as long


def open_source(settings: Data, root: Path, home: Path) -> Source:
    """The source that ``settings.name`` selects.

    A relative ``settings.path`` starts at ``root``; named sets are in ``home``, or are downloaded into it.
    Raises ``ScanError`` if there is nothing to read, or if ``settings.boxes`` cannot be used.
    """
    if settings.name not in SOURCES_WITH_PATH:
        from scan_core.data.named_sets import open_named

        return open_named(settings, home)
    from scan_core.data import archive, boxes, folder, npy, parquet

    readers: dict[str, Callable[[Path, Data], Source]] = {
        "folder": folder.open_folder,
        "archive": archive.open_archive,
        "parquet": parquet.open_parquet,
        "npy": npy.open_npy,
    }
    place = located(settings, root)
    if is_lfs_pointer(place):
        raise ScanError(f"data.path is {settings.path}, a pointer of Git LFS and not the file; git lfs pull gets it")
    source = readers[settings.name](place, settings)
    if settings.boxes is None:
        return source
    path = resolve(settings.boxes, root)
    return boxes.parts_of(source, boxes.read_boxes(path), path)


def located(settings: Data, root: Path) -> Path:
    """The path that ``settings.path`` means. Raises ``ScanError`` if nothing is there."""
    path = resolve(settings.path or "", root)
    if not path.exists():
        raise ScanError(f"data.path is {settings.path}; there is nothing at {path}")
    return path


def is_lfs_pointer(path: Path) -> bool:
    """Whether ``path`` is the text that Git LFS puts in a file's place until it is fetched."""
    if not path.is_file() or path.stat().st_size > LFS_BYTES:
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(LFS)) == LFS
    return False


def resolve(path: str, root: Path) -> Path:
    """``path`` with ``~`` expanded; a relative one starts at ``root``. Raises ``ScanError`` as ``expanded`` does."""
    return root / expanded(path)


def expanded(path: str) -> Path:
    """``path`` with ``~`` expanded. Raises ``ScanError`` if it begins with ``~`` and a name that no user has."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ScanError(
            f"{path} begins with the home of a user that this machine does not have; write the whole path"
        ) from None
