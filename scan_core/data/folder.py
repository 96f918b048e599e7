"""Images in a folder and below, and what tells whether a source has changed.

The folders that an image is in give its label and split, but only once all names are known: see ``tree_layout``.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from scan_core.data.settings import Data
from scan_core.data.types import IMAGE_SUFFIXES, Finding, Item, Source, Split, printable
from scan_core.errors import ScanError

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing")
# "train" in train2017, seg_train and trainset, but not in trainer.
SPLIT_WORD = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(TRAIN + HELD_OUT, key=len, reverse=True))})(?=(set|data)?(?![a-z]))"
)
SYSTEM_FILE = "hidden or system file"
RAW_FILE = "the raw file of a photo that is read"
UNLABELED = ("unlabelled", "unlabeled")
JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini")
# Trash, snapshots and previews of Windows, of Synology's, QNAP's and NetApp's storage, and of photo programs.
JUNK_FOLDERS = {
    "__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder",
    "temporary items", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@__thumb",
    "~snapshot", "ipod photo cache",
}  # fmt: skip
JUNK_SUFFIXES = (".lrdata", ".lrcat-data", ".cocatalogdb")
LIBRARIES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")  # Apple's: photos and previews
PHOTOS = ("originals", "masters")  # the folders in them that hold photos
RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip


def tree_layout(names: Sequence[str], with_split: bool = True) -> tuple[list[str | None], list[Split | None]]:
    """Labels and splits of images by the folders that they are in, (N,) each.

    Folders that all images share are left out, also if a few images lie outside of them. Of what remains, ``train``
    beside ``val``, ``valid``, ``validation`` or ``test`` is an official split (and so are ``seg_train`` beside
    ``seg_test``, ``Training`` beside ``Testing``), and ``unlabelled`` beside them holds extra images, as does what lies
    outside of the shared folders. The next folder is the class. An image in no folder, or in ``unlabelled``, has no
    label. Without ``with_split`` such folders are like others.
    """
    folders = [tuple(name.split("/")[:-1]) for name in names]
    top, pattern = _top(folders, with_split)
    labels: list[str | None] = []
    splits: list[Split | None] = []
    for parts in folders:
        inside, parts = parts[: len(top)] == top, parts[len(top) :]
        split: Split | None = None
        if pattern is not None and not inside:
            split = "extra"
        elif pattern is not None:
            word, same = _split_word(parts[0]) if parts else ("train", pattern)
            split = "train"
            if same == pattern:
                split, parts = ("val" if word in HELD_OUT else "train"), parts[1:]
            elif parts[0].lower() in UNLABELED:
                split = "extra"
        labels.append(class_of(parts[0]) if inside and parts and parts[0].lower() not in UNLABELED else None)
        splits.append(split)
    return labels, splits


def _top(folders: Sequence[tuple[str, ...]], with_split: bool) -> tuple[tuple[str, ...], str | None]:
    """The folder whose subfolders are splits or classes, and the pattern of the names of splits: "*", "seg_*"."""
    top: tuple[str, ...] = ()
    inside = list(folders)
    while True:
        below = {parts[len(top)] for parts in inside if len(parts) > len(top)}
        words = [_split_word(name) for name in below]
        trained = {pattern for word, pattern in words if word in TRAIN}
        official = sorted(trained & {pattern for word, pattern in words if word in HELD_OUT})
        if with_split and official:
            return top, official[0]
        deeper = [parts for parts in inside if len(parts) > len(top)]
        if len(below) != 1 or (len(deeper) < len(inside) and all(len(parts) == len(top) + 1 for parts in deeper)):
            return top, None
        top, inside = (*top, *below), deeper


def _split_word(name: str) -> tuple[str, str]:
    """The word for a split in a folder's name, and the name with "*" for it; ("", name) if there is none."""
    found = SPLIT_WORD.search(name.lower())
    return (found[1], name.lower().replace(found[1], "*", 1)) if found else ("", name.lower())


def class_of(name: str) -> str:
    """A class's name as it is shown, in one of several spellings in Unicode: macOS and others write accents apart."""
    return printable(unicodedata.normalize("NFC", name))


def open_folder(path: Path, settings: Data) -> Source:
    """All files below ``path``, sorted by their names' bytes. Raises ``ScanError`` if it is not a folder."""
    if not path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is not a folder; for a zip or tar set data.name: archive")
    return Source(read=lambda: _read(path), layout=partial(tree_layout, with_split=settings.split == "source"))


def _read(root: Path) -> Iterator[Item | Finding]:
    entries = walk(root)
    photos = photos_of(name for name, _ in entries)
    for name, error in entries:
        path, shown = os.path.join(root, name), printable(name)
        if is_junk(name):
            yield Finding(shown, "ignored", SYSTEM_FILE)
        elif error:
            yield Finding(shown or ".", "rejected", f"cannot be read: {error.strerror}")
        elif is_raw_of(name, photos):
            yield Finding(shown, "ignored", RAW_FILE)
        elif os.path.islink(path):
            yield _linked(shown, os.path.realpath(path))
        elif os.path.isfile(path):
            yield Item(shown, path)
        else:
            yield Finding(shown, "rejected", "not a regular file")  # opening a pipe would wait forever


def raw_files(root: Path) -> Iterator[Item]:
    """The raw files below ``root`` that are left out because each is the same photo as an image beside it."""
    names = [name for name, error in walk(root) if not error and not is_junk(name)]
    photos = photos_of(names)
    for name in names:
        path = os.path.join(root, name)
        if is_raw_of(name, photos) and os.path.isfile(path):
            yield Item(printable(name), os.path.realpath(path) if os.path.islink(path) else path)


def photos_of(names: Iterable[str]) -> set[str]:
    """The names of images, without their suffixes, beside which a raw file is the same photo."""
    parts = (os.path.splitext(name) for name in names)
    return {stem.lower() for stem, suffix in parts if suffix.lower() in IMAGE_SUFFIXES}


def is_raw_of(name: str, photos: set[str]) -> bool:
    """Whether ``name`` is that of a camera's raw file beside one of ``photos_of``."""
    stem, suffix = os.path.splitext(name)
    return suffix.lower() in RAW and stem.lower() in photos


def _linked(name: str, target: str) -> Item | Finding:
    if os.path.isdir(target):
        return Finding(name, "ignored", "a link to a folder, whose files are read where they lie")
    if not os.path.isfile(target):
        return Finding(name, "rejected", "a link to nothing")
    return Item(name, target)


def walk(root: Path) -> list[tuple[str, OSError | None]]:
    """Everything below ``root`` that is not a folder, and each folder that cannot be read with its error.

    Names are relative to ``root`` and sorted by their bytes. A link to a folder is followed, unless that folder is
    read anyway, or holds one that is: then the link itself is listed, so that loops end.
    """
    entries: list[tuple[str, OSError | None]] = []
    roots = [os.path.realpath(root)]  # what has been entered

    def unreadable(error: OSError) -> None:
        entries.append((os.path.join(error.filename, ""), error))

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        subfolders.sort(key=os.fsencode)  # so that of two links to a folder always the same is followed
        for name in [name for name in subfolders if os.path.islink(os.path.join(folder, name))]:
            target = os.path.realpath(os.path.join(folder, name))
            if is_junk(name) or any(os.path.commonpath([target, other]) in (target, other) for other in roots):
                subfolders.remove(name)
                entries.append((os.path.join(folder, name), None))
            else:
                roots.append(target)
        entries += [(os.path.join(folder, name), None) for name in files]
    entries.sort(key=lambda entry: os.fsencode(entry[0]))
    return [(path.removeprefix(os.path.join(root, "")).rstrip("/"), error) for path, error in entries]


def is_junk(name: str) -> bool:
    """Whether a program, and not a person, put a file there."""
    parts = name.lower().split("/")
    if parts[-1] in JUNK or any(part.startswith(".") or part in JUNK_FOLDERS for part in parts):
        return True
    library = next((at for at, part in enumerate(parts) if part.endswith(LIBRARIES)), None)
    in_library = library is not None and parts[library + 1 : library + 2] not in ([name] for name in PHOTOS)
    return in_library or any(part.endswith(JUNK_SUFFIXES) for part in parts[:-1])
