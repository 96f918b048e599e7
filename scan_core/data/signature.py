"""Whether a source has changed, told without reading its images."""

import hashlib
import os
from pathlib import Path
from typing import Any

from scan_core.data.folder import walk
from scan_core.data.open import located, resolve
from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.errors import ScanError


def signature(settings: Data, root: Path, home: Path) -> dict[str, Any]:
    """What tells without reading a source whether it has changed: ``{"content": {...}, "mtimes": "<SHA-256>"}``.

    ``content`` holds the number, names and sizes of the files, so that it is equal for a copy. ``mtimes`` covers all
    else that the file system tells: modification times, modes and targets of links.
    Of the named sets in ``home`` only imagenet is looked at (``imagenet_listing``). The others are their names: CIFAR's
    and STL-10's files are not read unless their checksums are right; MNIST's and Fashion-MNIST's have a checksum only
    as they are downloaded, so that a change to an unpacked file goes unnoticed.
    Raises ``ScanError`` if there is nothing at ``data.path``, or no file ``data.labels`` or ``data.boxes``.
    """
    mtimes = hashlib.sha256()
    content: dict[str, Any] = {"name": settings.name}
    if settings.name in SOURCES_WITH_PATH:
        content["source"] = _listing(located(settings, root), mtimes)
    elif settings.name == "imagenet":
        from scan_core.data.imagenet import imagenet_listing

        content["source"] = imagenet_listing(home, mtimes)
    if settings.labels.endswith(".csv"):
        labels = resolve(settings.labels, root)
        if not labels.is_file():
            raise ScanError(f"data.labels is {settings.labels}; there is no file {labels}")
        content["labels"] = _listing(labels, mtimes)
    if settings.boxes is not None:
        boxes = resolve(settings.boxes, root)
        if not boxes.is_file():
            raise ScanError(f"data.boxes is {settings.boxes}; there is no file {boxes}")
        content["boxes"] = hashlib.sha256(boxes.read_bytes()).hexdigest()  # the pixels of all images depend on it
    return {"content": content, "mtimes": mtimes.hexdigest()}


def _listing(path: Path, mtimes: Any) -> dict[str, Any]:
    names_and_sizes, count, total = hashlib.sha256(), 0, 0
    folder, entries = (path, walk(path)) if path.is_dir() else (path.parent, [(path.name, None)])
    for name, error in entries:
        mtimes.update(os.fsencode(name) + b"\0")
        if error:
            continue
        file = os.path.join(folder, name)
        if os.path.islink(file):
            mtimes.update(os.fsencode(os.readlink(file)) + b"\0")
        try:
            status = os.stat(file)  # of the file that a link leads to
        except OSError:  # a link to nothing
            continue
        mtimes.update(f"{status.st_mode}\0{status.st_mtime_ns}\0".encode())
        names_and_sizes.update(os.fsencode(name) + f"\0{status.st_size}\0".encode())
        count, total = count + 1, total + status.st_size
    return {"files": count, "bytes": total, "names_and_sizes": names_and_sizes.hexdigest()}
