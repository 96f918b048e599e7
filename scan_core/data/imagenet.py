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
from scan_core.data.sources import Finding, Item, Source, Split, printable
from scan_core.errors import ScanError
from scan_core.settings import Data

WNID = re.compile(r"n\d{8}")
SUFFIXES = (".jpeg", ".jpg", ".png")
UNPACKED = 1_325_376_000  # 2012, in seconds: the time of folders that hold what a checked archive holds


def open_imagenet(settings: Data, home: Path) -> Source:
    """``home/imagenet``, of which ``settings.subset`` are to be clustered. See ``open_named``."""
    folder = home / "imagenet"
    _unpack_imagenet(folder, home)
    subset = None if settings.subset is None else _imagenet_subset(settings.subset)
    trained = {entry.name for entry in _listed(folder / "train") if _is_class(entry)}
    validated = {entry.name for entry in _listed(folder / "val") if _is_class(entry)}
    if subset is not None:
        if not validated:
            raise ScanError(
                f"data.subset is {settings.subset}; {folder / 'val'} has no class folders to choose from; sort its "
                "images into them, or set data.subset to null"
            )
        for official, present in (("train", trained), ("val", validated)):
            if missing := [wnid for wnid in subset if wnid not in present]:
                raise ScanError(
                    f"data.subset is {settings.subset}; {folder / official} lacks {some(missing)}; "
                    "complete it, or set data.subset to another or null"
                )

    def read() -> Iterator[Item | Finding]:
        yield from _imagenet_split(folder, "train", subset, settings.extra != "none")
        yield from _imagenet_split(folder, "val", subset, False)

    # Listing 1.3 million names takes seconds, and says now what is missing.
    counts = Counter(str(thing.split) for thing in read() if isinstance(thing, Item))
    for official in ("train", "val"):
        if not counts[official]:
            raise ScanError(
                f"{folder / official} has no images of imagenet; put class folders (n01440764) with .JPEG files there, "
                "or delete it and put the original archives beside it"
            )
    return Source(read, subset or sorted(trained | validated), counts.total())


def imagenet_listing(home: Path) -> dict[str, Any]:
    """What tells whether ``home/imagenet`` has changed: its class folders, their times and how many files they hold.

    Folders as they were unpacked here are left out, so that having unpacked them is no change. A file that is changed
    in place goes unnoticed: a look at each of 1.3 million would take too long.
    """
    digest, without_times = hashlib.sha256(), hashlib.sha256()
    for folder in (home / "imagenet" / "train", home / "imagenet" / "val"):
        if not folder.is_dir():
            continue
        for path in [folder, *(Path(entry.path) for entry in _listed(folder) if _is_class(entry))]:
            found = path.stat()
            if found.st_mtime == UNPACKED:
                continue
            name_and_count = f"{path.relative_to(folder.parent)}\0{len(os.listdir(path))}\0".encode()
            digest.update(name_and_count + f"{found.st_mtime_ns}\0".encode())
            without_times.update(name_and_count)
    return {"names_and_counts": without_times.hexdigest(), "sha256": digest.hexdigest()}


def _imagenet_split(folder: Path, split: Split, subset: list[str] | None, extra: bool) -> Iterator[Item | Finding]:
    """Files of one split, sorted by the bytes of their names; a file outside a class folder counts in a flat one."""
    entries = _listed(folder / split)
    flat = split == "val" and not any(_is_class(entry) for entry in entries)
    for entry in entries:
        name = f"imagenet/{split}/{printable(entry.name)}"
        if _is_class(entry):
            clustered = subset is None or entry.name in subset
            if not clustered and not extra:
                continue
            for file in _listed(Path(entry.path)):
                if reason := _no_image(file):
                    yield Finding(f"{name}/{printable(file.name)}", "ignored", reason)
                else:
                    label = entry.name if clustered else None  # of classes that are not clustered nothing may be known
                    yield Item(f"{name}/{printable(file.name)}", file.path, label, split if clustered else "extra")
        elif reason := _no_image(entry):
            yield Finding(name, "ignored", reason)
        elif flat:
            yield Item(name, entry.path, None, split)
        else:
            yield Finding(name, "ignored", "not in a class folder")


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _is_class(entry: os.DirEntry[str]) -> bool:
    return WNID.fullmatch(entry.name) is not None and entry.is_dir()


def _no_image(entry: os.DirEntry[str]) -> str | None:
    """Why ``entry`` is not taken for an image. A link to nothing is: that it cannot be read must come to light."""
    if entry.is_dir():
        return "a folder that is no class"
    return None if entry.name.lower().endswith(SUFFIXES) else "not a JPEG or PNG file"


def _imagenet_subset(classes: int) -> list[str]:
    """The wnids of the paper's 50, 100 or 200 classes, sorted."""
    return sorted((Path(__file__).parent / "imagenet_subsets" / f"{classes}.txt").read_text().split())


def _unpack_imagenet(folder: Path, home: Path) -> None:
    """Makes ``train`` and ``val`` from the original archives where they are missing, while other runs wait."""
    needed = _needed(folder)
    if not needed:
        return
    from torchvision.datasets import imagenet

    archives = {part: folder / filename for part, (filename, _) in imagenet.ARCHIVE_META.items()}
    if missing := [archives[part].name for part in needed if not archives[part].exists()]:
        raise ScanError(
            f"data.name is imagenet; {folder} lacks the folders {' and '.join(sorted({*needed} - {'devkit'}))} with a "
            f"folder per class, or else {some(missing)} from image-net.org, which needs an account; put them there, or "
            f"point SCAN_DATA, now {home}, at another folder"
        )
    with FileLock(folder / ".unpack.lock"):
        for part in _needed(folder):  # none, where this has waited for another run
            _unpack(part, archives[part], imagenet.ARCHIVE_META[part][1])


def _needed(folder: Path) -> list[str]:
    """The archives, by torchvision's words for them, from which folders that are missing are made."""
    wanted = [split for split in ("val", "train") if not (folder / split).is_dir()]
    return ["devkit", *wanted] if "val" in wanted else wanted


def _unpack(part: str, archive: Path, md5: str) -> None:
    from torchvision.datasets import imagenet

    folder = archive.parent
    part_folder = folder / f".{part}.part"  # one fixed name: what a killed run left must not fill the disk
    shutil.rmtree(part_folder, ignore_errors=True)
    try:
        if part == "devkit":
            imagenet.parse_devkit_archive(folder)
        elif part == "val":
            imagenet.parse_val_archive(folder, folder=part_folder.name)
        else:
            imagenet.parse_train_archive(folder, folder=part_folder.name)
        if part != "devkit":
            for path in (*part_folder.iterdir(), part_folder):
                os.utime(path, (UNPACKED, UNPACKED))
            os.rename(part_folder, folder / part)
    except (RuntimeError, *BROKEN) as error:  # torchvision's word for a wrong checksum is RuntimeError
        check_md5(archive, md5)
        raise ScanError(f"{archive} cannot be unpacked ({one_line(error)}); download it again") from error
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)
