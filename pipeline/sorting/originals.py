"""What the source has of the photos that are to be sorted, and the files that belong to them."""

import io
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.environment import data_home
from pipeline.progress import CountProgress
from pipeline.sorting.names import fold, split
from scan_core.data.chunks import content_of
from scan_core.data.folder import raw_files
from scan_core.data.open import open_source, resolve
from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.data.types import IMAGE_SUFFIXES, Finding, Item, Source

RAW = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
    ".x3f",
}  # fmt: skip
SIDECARS = {".xmp", ".aae", ".pp3", ".dop", ".thm", ".wav"}
VIDEOS = {".mov", ".mp4"}  # of Live Photos
COMPANIONS = RAW | SIDECARS | VIDEOS
EVERY = 64  # files between updates of the progress bar, which takes longer than to list one
VERSION = re.compile(r"_\d\d(?=\.[^.]+$)")  # darktable calls the edits of a photo IMG_01.JPG.xmp, IMG_02.JPG.xmp


@dataclass(frozen=True, slots=True)
class Original:
    """One file or image of the source."""

    name: str  # in the source
    path: str | None  # of the file; None: its bytes or pixels come when the source is read again
    inside: str | None  # the file that it is in: itself, an archive or a table; None: it is in a named set
    size: int  # bytes, about
    was: str  # another one if the file or image has changed
    suffix: str = ""  # that its name lacks


@dataclass
class Catalog:
    """The originals by their names."""

    source: Source
    photos: dict[str, Original] = field(default_factory=dict)
    others: dict[str, Original] = field(default_factory=dict)  # files that may belong to a photo


def read_catalog(data: Data, photos: Collection[str], images: Collection[str]) -> Catalog:
    """What the source of the last run has of ``photos``; of a folder also the files that are none of ``images``.

    Raises ``ScanError`` if there is nothing to read.
    """
    whole = Data(**{**dict(data), "boxes": None, "labels": "none"})
    catalog = Catalog(open_source(whole, Path.cwd(), data_home(Path.cwd())))
    located = resolve(data.path or "", Path.cwd()) if data.name in SOURCES_WITH_PATH else None
    with CountProgress("read", catalog.source.total) as progress:
        count = 0
        for count, item in enumerate(catalog.source.read(), 1):
            if not count % EVERY:
                progress.update(count, 0)
            if isinstance(item, Finding):
                continue
            wanted = item.name in photos  # of several in an archive the last, as after unpacking
            suffix = split(item.name)[1].lower()
            if not wanted and (data.name != "folder" or item.name in images or suffix not in COMPANIONS):
                continue
            if found := _original(item, located):
                (catalog.photos if wanted else catalog.others)[item.name] = found
        progress.update(count, 0)
    for item in raw_files(located) if located and data.name == "folder" else ():
        wanted = item.name in photos  # of a run of a program that read it beside its photo
        if (wanted or item.name not in images) and (found := _original(item, located)):
            (catalog.photos if wanted else catalog.others)[item.name] = found
    return catalog


def _original(item: Item, located: Path | None) -> Original | None:
    """None if the file has gone in this moment."""
    named = split(item.name)[1].lower() in IMAGE_SUFFIXES
    if isinstance(item.data, str):
        path = os.path.abspath(item.data)
        try:
            about = os.stat(path)
        except OSError:
            return None
        suffix = split(path)[1] if item.is_declared_image and not named else ""  # of a table's row
        return Original(item.name, path, path, about.st_size, f"{about.st_size}-{about.st_mtime_ns}", suffix)
    size = item.data.nbytes if isinstance(item.data, np.ndarray) else len(item.data)
    inside = None
    if located is not None:  # a folder of tables names its rows FILE/ROW
        inside = os.path.abspath(located / item.name.rpartition("/")[0] if located.is_dir() else located)
    suffix = "" if named else suffix_of(item.data)
    return Original(item.name, None, inside, size, content_of(item.data).hex(), suffix)


def suffix_of(data: bytes | np.ndarray) -> str:
    """The suffix that an image of these bytes or pixels usually has. Pixels become a PNG."""
    if isinstance(data, np.ndarray):
        return ".png"
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format or ""
    except Exception:  # noqa: BLE001 (decoders raise anything; a HEIC is known by its package alone)
        kind = "HEIF" if data[4:8] == b"ftyp" else ""
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic", "": ""}.get(
        kind, f".{kind.lower()}"
    )


def as_bytes(data: bytes | np.ndarray) -> bytes:
    """An image's own bytes, or its pixels as a PNG."""
    if isinstance(data, bytes):
        return data
    buffer = io.BytesIO()
    Image.fromarray(data).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that goes where its photo goes."""

    name: str  # in the source
    rest: str  # what follows the photo's stem: .CR2, .JPG.xmp


def companions_of(photos: Iterable[str], others: Iterable[str]) -> dict[str, list[Companion]]:
    """Photo → those of ``others`` that belong to it, by their names in the source.

    Of several photos with one stem, such as ``IMG.HEIC`` and ``IMG.JPG``, the first has what belongs to both; but
    ``IMG.xmp`` is a raw file's.
    """
    files: dict[tuple[str, str], str] = {}
    stems: dict[tuple[str, str], str] = {}
    raws: dict[tuple[str, str], str] = {}
    for photo in sorted(photos):
        folder, _, file = photo.rpartition("/")
        stem, suffix = split(file)
        files[folder, fold(file)] = photo
        stems.setdefault((folder, fold(stem)), photo)
        if suffix.lower() in RAW:
            raws.setdefault((folder, fold(stem)), photo)
    found: dict[str, list[Companion]] = {}
    for name in sorted(others):
        folder, _, file = name.rpartition("/")
        for base, rest, by_file in readings(file):
            key = folder, fold(base)
            owner = files.get(key) if by_file else raws.get(key) if rest.lower() == ".xmp" else None
            owner = owner or (None if by_file else stems.get(key))
            if owner:
                found.setdefault(owner, []).append(Companion(name, rest))
                break
    return found


def readings(file: str) -> Iterable[tuple[str, str, bool]]:
    """What a companion's name may mean: a photo's file or stem, what follows the stem, and whether it is the file."""
    before, suffix = split(file)
    if suffix.lower() in SIDECARS:
        for base in dict.fromkeys((before, VERSION.sub("", before))):
            stem, own = split(base)
            version = before[len(stem) : len(before) - len(own)]
            yield base, f"{version}{own}{suffix}", True
            if own.lower() in RAW | VIDEOS:
                yield stem, f"{version}{own}{suffix}", False
    yield before, suffix, False
