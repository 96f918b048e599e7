"""ImageNet (ILSVRC 2012): a tree of class folders, or the original archives, which torchvision unpacks into one."""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from scan_core.data.download import BROKEN, check_md5, one_line, some
from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source, Split, printable
from scan_core.errors import ScanError

WNID = re.compile(r"n\d{8}")
SUFFIXES = (".jpeg", ".jpg", ".png")
UNPACKED = 1_325_376_000  # 2012, in seconds: the time given to folders that hold what a checked archive holds


def open_imagenet(settings: Data, home: Path) -> Source:
    """``home/imagenet``, of which the classes of ``settings.subset`` are to be clustered. See ``open_named``."""
    folder = home / "imagenet"
    _unpack_missing(folder, home)
    train_classes, val_classes = (
        {entry.name for entry in _entries(folder / split) if _is_class(entry)} for split in ("train", "val")
    )
    subset = _subset(settings, folder, train_classes, val_classes)

    def read() -> Iterator[Item | Finding]:
        yield from _split(folder, "train", subset, settings.extra != "none")
        yield from _split(folder, "val", subset, False)

    # Listing 1.3 million names takes seconds, and reports now what is missing.
    counts = Counter(str(thing.split) for thing in read() if isinstance(thing, Item))
    for split in ("train", "val"):
        if not counts[split]:
            raise ScanError(
                f"{folder / split} has no images of imagenet; put class folders (n01440764) with .JPEG files there, "
                "or delete it and put the original archives beside it"
            )
    return Source(read, subset or sorted(train_classes | val_classes), counts.total())


def imagenet_listing(home: Path, mtimes: Any) -> dict[str, Any]:
    """A hash of ``home/imagenet``'s class folders and of how many files each holds; ``mtimes`` gets the folders' times.

    Folders as they were unpacked here are left out, so that unpacking is not a change. A file that is changed in place
    goes unnoticed, because a look at each of 1.3 million files would take too long.
    """
    names_and_counts = hashlib.sha256()
    for split in (home / "imagenet" / "train", home / "imagenet" / "val"):
        if not split.is_dir():
            continue
        for folder in [split, *(Path(entry.path) for entry in _entries(split) if _is_class(entry))]:
            status = folder.stat()
            if status.st_mtime != UNPACKED:
                names_and_counts.update(f"{folder.relative_to(split.parent)}\0{len(os.listdir(folder))}\0".encode())
                mtimes.update(f"{status.st_mtime_ns}\0".encode())
    return {"names_and_counts": names_and_counts.hexdigest()}


def _subset(settings: Data, folder: Path, train_classes: set[str], val_classes: set[str]) -> list[str] | None:
    """The wnids of the paper's 50, 100 or 200 classes, sorted; None for all. Raises ``ScanError`` if one is missing."""
    if settings.subset is None:
        return None
    wnids = sorted((Path(__file__).parent / "imagenet_subsets" / f"{settings.subset}.txt").read_text().split())
    if not val_classes:
        raise ScanError(
            f"data.subset is {settings.subset}; {folder / 'val'} has no class folders to choose from; sort its "
            "images into them, or set data.subset to null"
        )
    for split, classes in (("train", train_classes), ("val", val_classes)):
        if missing := [wnid for wnid in wnids if wnid not in classes]:
            raise ScanError(
                f"data.subset is {settings.subset}; {folder / split} lacks {some(missing)}; "
                "complete it, or set data.subset to another or null"
            )
    return wnids


def _split(folder: Path, split: Split, subset: list[str] | None, extra: bool) -> Iterator[Item | Finding]:
    """One split's files, sorted by the bytes of their names.

    A file outside a class folder is an image only in a flat ``val``. Classes beyond ``subset`` are yielded as extra
    images if ``extra``, without labels, because nothing may be known of classes that are not clustered.
    """
    entries = _entries(folder / split)
    flat = split == "val" and not any(_is_class(entry) for entry in entries)
    for entry in entries:
        name = f"imagenet/{split}/{printable(entry.name)}"
        if _is_class(entry):
            clustered = subset is None or entry.name in subset
            if not clustered and not extra:
                continue
            for file in _entries(Path(entry.path)):
                if reason := _not_an_image(file):
                    yield Finding(f"{name}/{printable(file.name)}", "ignored", reason)
                else:
                    label = entry.name if clustered else None
                    yield Item(f"{name}/{printable(file.name)}", file.path, label, split if clustered else "extra")
        elif reason := _not_an_image(entry):
            yield Finding(name, "ignored", reason)
        elif flat:
            yield Item(name, entry.path, None, split)
        else:
            yield Finding(name, "ignored", "not in a class folder")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _is_class(entry: os.DirEntry[str]) -> bool:
    return WNID.fullmatch(entry.name) is not None and entry.is_dir()


def _not_an_image(entry: os.DirEntry[str]) -> str | None:
    """Why ``entry`` is not an image, or None. A dangling link is an image, so that prepare reports it as unreadable."""
    if entry.is_dir():
        return "a folder that is no class"
    return None if entry.name.lower().endswith(SUFFIXES) else "not a JPEG or PNG file"


# --- the original archives


def _unpack_missing(folder: Path, home: Path) -> None:
    """Makes ``train`` and ``val`` from the original archives if they are missing. Another run waits meanwhile."""
    needed = _needed(folder)
    if not needed:
        return
    from torchvision.datasets import imagenet

    archives = {part: folder / filename for part, (filename, _) in imagenet.ARCHIVE_META.items()}
    if missing := [archives[part].name for part in needed if not archives[part].exists()]:
        raise ScanError(
            f"data.name is imagenet; {folder} lacks the folders {' and '.join(sorted({*needed} - {'devkit'}))} with a "
            f"folder per class, or else {some(missing)} from image-net.org, which needs an account; put them there, or "
            f"use another folder of data sets than {home}"
        )
    with FileLock(folder / ".unpack.lock"):
        for part in _needed(folder):  # none if this run has waited for another
            _unpack(part, archives[part], imagenet.ARCHIVE_META[part][1])


def _needed(folder: Path) -> list[str]:
    """torchvision's words for the archives from which the missing folders are made."""
    splits = [split for split in ("val", "train") if not (folder / split).is_dir()]
    return ["devkit", *splits] if "val" in splits else splits


def _unpack(part: str, archive: Path, md5: str) -> None:
    from torchvision.datasets import imagenet

    folder = archive.parent
    part_folder = folder / f".{part}.part"  # always the same name, so that killed runs cannot fill the disk
    shutil.rmtree(part_folder, ignore_errors=True)
    try:
        if part == "devkit":
            imagenet.parse_devkit_archive(folder)
            return
        parse = imagenet.parse_val_archive if part == "val" else imagenet.parse_train_archive
        parse(folder, folder=part_folder.name)
        for path in (*part_folder.iterdir(), part_folder):
            os.utime(path, (UNPACKED, UNPACKED))
        os.rename(part_folder, folder / part)
    except (RuntimeError, *BROKEN) as error:  # torchvision raises RuntimeError if a checksum is wrong
        check_md5(archive, md5)
        raise ScanError(f"{archive} cannot be unpacked ({one_line(error)}); download it again") from error
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)
