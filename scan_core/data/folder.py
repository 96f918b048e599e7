"""Images in a folder and below, and what tells whether a source has changed.

The folders that an image is in give its label and split, but only once all names are known: see ``tree_layout``.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source, Split, printable
from scan_core.errors import ScanError

HELD_OUT = ("val", "valid", "validation", "test")
UNLABELED = ("unlabelled", "unlabeled")
JUNK = ("thumbs.db", "desktop.ini")


def tree_layout(names: Sequence[str]) -> tuple[list[str | None], list[Split | None]]:
    """Labels and splits of images by the folders that they are in, (N,) each.

    Folders that all images share are left out. Of what remains, ``train`` beside ``val`` (or ``valid``,
    ``validation``, ``test``) is an official split, and ``unlabelled`` beside them holds extra images. The next folder
    is the class. An image in no folder, or in ``unlabelled``, has no label.
    """
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (between lists it compares whole folder names)
    folders = [parts[shared:] for parts in folders]
    tops = {parts[0].lower() for parts in folders if parts}
    official = "train" in tops and not tops.isdisjoint(HELD_OUT)
    labels: list[str | None] = []
    splits: list[Split | None] = []
    for parts in folders:
        split: Split | None = None
        if official:
            top = parts[0].lower() if parts else "train"
            split = "val" if top in HELD_OUT else "extra" if top in UNLABELED else "train"
            if top == "train" or split == "val":
                parts = parts[1:]
        labels.append(parts[0] if parts and parts[0].lower() not in UNLABELED else None)
        splits.append(split)
    return labels, splits


def open_folder(path: Path, settings: Data) -> Source:
    """All files below ``path``, sorted by their names' bytes. Raises ``ScanError`` if it is not a folder."""
    if not path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is not a folder; for a zip or tar set data.name: archive")
    return Source(read=lambda: _read(path), layout=tree_layout)


def _read(root: Path) -> Iterator[Item | Finding]:
    real_root = os.path.realpath(root)
    for name, error in walk(root):
        path, shown = os.path.join(root, name), printable(name)
        if is_junk(name):
            yield Finding(shown, "ignored", "hidden or system file")
        elif error:
            yield Finding(shown or ".", "rejected", f"cannot be read: {error.strerror}")
        elif os.path.islink(path):
            yield _linked(shown, os.path.realpath(path), real_root)
        elif os.path.isfile(path):
            yield Item(shown, path)
        else:
            yield Finding(shown, "rejected", "not a regular file")  # opening a pipe would wait forever


def _linked(name: str, target: str, root: str) -> Item | Finding:
    if os.path.commonpath([root, target]) != root:
        return Finding(name, "rejected", "a link that leads out of the folder")
    if os.path.isdir(target):
        return Finding(name, "ignored", "a link to a folder, whose files are read where they lie")
    if not os.path.isfile(target):
        return Finding(name, "rejected", "a link to nothing")
    return Item(name, target)


def walk(root: Path) -> list[tuple[str, OSError | None]]:
    """Everything below ``root`` that is not a folder, and each folder that cannot be read with its error.

    Names are relative to ``root`` and sorted by their bytes. Links are listed and not followed.
    """
    entries: list[tuple[str, OSError | None]] = []

    def unreadable(error: OSError) -> None:
        entries.append((os.path.join(error.filename, ""), error))

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        entries += [(os.path.join(folder, name), None) for name in (*files, *links)]
    entries.sort(key=lambda entry: os.fsencode(entry[0]))
    return [(path.removeprefix(os.path.join(root, "")).rstrip("/"), error) for path, error in entries]


def is_junk(name: str) -> bool:
    """Whether an operating system, and not a person, put a file there."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].lower() in JUNK
