"""Images in a folder, found by walking.

Where files lie says what they are only after all of them are known: see ``tree_layout``.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scan_core.data.sources import Finding, Item, Source, Split, located, printable, resolve
from scan_core.errors import ScanError
from scan_core.settings import SOURCES_WITH_PATH, Data

HELD_OUT = ("val", "valid", "validation", "test")
UNLABELLED = ("unlabelled", "unlabeled")
JUNK = ("thumbs.db", "desktop.ini")


def tree_layout(names: Sequence[str]) -> tuple[list[str | None], list[Split | None]]:
    """Labels and splits of images by the folders they lie in, (N,) each.

    Folders that all images share mean nothing. Then ``train`` beside ``val`` (or ``valid``, ``validation``, ``test``)
    is an official split, in which ``unlabelled`` holds what is beyond it. The next folder is the class; an image in
    none, or in ``unlabelled``, has no label.
    """
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it compares whole folders)
    folders = [parts[shared:] for parts in folders]
    tops = {parts[0].lower() for parts in folders if parts}
    official = "train" in tops and not tops.isdisjoint(HELD_OUT)
    labels: list[str | None] = []
    splits: list[Split | None] = []
    for parts in folders:
        split: Split | None = None
        if official:
            top = parts[0].lower() if parts else "train"
            split = "val" if top in HELD_OUT else "extra" if top in UNLABELLED else "train"
            if top == "train" or split == "val":
                parts = parts[1:]
        labels.append(parts[0] if parts and parts[0].lower() not in UNLABELLED else None)
        splits.append(split)
    return labels, splits


def open_folder(path: Path, settings: Data) -> Source:
    """All files below ``path``, sorted by their names' bytes. Raises ``ScanError`` where it is no folder."""
    if not path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is no folder; for a zip or tar set data.name: archive")
    return Source(read=lambda: _walk(path), layout=tree_layout)


def _walk(root: Path) -> Iterator[Item | Finding]:
    inside = os.path.realpath(root)
    for entry, name in walk(os.fspath(root), ""):
        shown = printable(name)
        if is_junk(name) and name != ".":
            yield Finding(shown, "ignored", "hidden or system file")
        elif isinstance(entry, OSError):
            yield Finding(shown, "rejected", f"cannot be read: {entry.strerror}")
        elif entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.commonpath([inside, target]) != inside:
                yield Finding(shown, "rejected", "a link that leads out of the folder")
            elif os.path.isdir(target):
                yield Finding(shown, "ignored", "a link to a folder, whose files are read where they lie")
            elif os.path.isfile(target):
                yield Item(shown, target)
            else:
                yield Finding(shown, "rejected", "a link to nothing")
        elif entry.is_file(follow_symlinks=False):
            yield Item(shown, entry.path)
        else:
            yield Finding(shown, "rejected", "not a regular file")  # opening a pipe would wait for ever


def walk(folder: str, prefix: str) -> Iterator[tuple["os.DirEntry[str] | OSError", str]]:
    """Everything below ``folder`` that is no folder, with its path from there; or why a folder cannot be read."""
    waiting = _entries(folder, prefix)  # and no recursion: folders may lie deeper than Python's stack
    while waiting:
        entry, name = waiting.pop()
        if not isinstance(entry, OSError) and entry.is_dir(follow_symlinks=False):
            waiting += _entries(entry.path, f"{name}/")
        else:
            yield entry, name


def _entries(folder: str, prefix: str) -> list[tuple["os.DirEntry[str] | OSError", str]]:
    """What lies in a folder, last first. A folder sorts as its files' paths do: with a slash."""

    def order(entry: "os.DirEntry[str]") -> bytes:
        return os.fsencode(entry.name) + b"/" * entry.is_dir(follow_symlinks=False)

    try:
        with os.scandir(folder) as scan:
            return [(entry, prefix + entry.name) for entry in sorted(scan, key=order, reverse=True)]
    except OSError as error:
        return [(error, prefix.rstrip("/") or ".")]


def is_junk(name: str) -> bool:
    """Whether a file was put there by a system and not by a person."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].lower() in JUNK


def signature(settings: Data, root: Path, home: Path) -> dict[str, Any]:
    """What tells whether a source has changed without reading it: names, sizes and times of its files.

    Of the named sets in ``home`` only imagenet is looked at (``imagenet_listing``). The others are their names: CIFAR's
    and STL-10's files are not read unless their checksums are right; MNIST's and Fashion-MNIST's have one only as they
    are downloaded, so that a change in what is unpacked goes unnoticed.
    Raises ``ScanError`` where there is nothing at ``data.path``.
    """
    found: dict[str, Any] = {"name": settings.name}
    if settings.name in SOURCES_WITH_PATH:
        found["source"] = _listing(located(settings, root))
    elif settings.name == "imagenet":
        from scan_core.data.imagenet import imagenet_listing

        found["source"] = imagenet_listing(home)
    if settings.labels.endswith(".csv"):
        labels = resolve(settings.labels, root)
        if not labels.is_file():
            raise ScanError(f"data.labels is {settings.labels}; there is no file {labels}")
        found["labels"] = _listing(labels)
    return found


def _listing(path: Path) -> dict[str, Any]:
    digest, without_times, count, total = hashlib.sha256(), hashlib.sha256(), 0, 0
    entries = walk(os.fspath(path), "") if path.is_dir() else [(path, path.name)]
    for entry, name in entries:
        digest.update(os.fsencode(name) + b"\0")
        if isinstance(entry, OSError):
            continue
        if entry.is_symlink():
            digest.update(os.fsencode(os.readlink(entry)) + b"\0")
        try:
            found = entry.stat()  # of what a link leads to
        except OSError:  # a link to nothing
            continue
        digest.update(f"{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
        without_times.update(os.fsencode(name) + f"\0{found.st_size}\0".encode())
        count, total = count + 1, total + found.st_size
    names_and_sizes = without_times.hexdigest()
    return {"files": count, "bytes": total, "names_and_sizes": names_and_sizes, "sha256": digest.hexdigest()}
