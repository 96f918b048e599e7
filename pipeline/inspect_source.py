"""What a source of images holds: all names, and a sample that is decoded as ``prepare`` would. Nothing is changed.

It takes seconds for any folder. What only all pixels tell, such as copies, is found by ``prepare``.
"""

import io
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from scan_core.data.decode import Refused, Target, open_header, open_image, square
from scan_core.data.depth import Range, common_range
from scan_core.data.folder import is_junk, walk
from scan_core.data.ingest import ingest, load_chunks
from scan_core.data.labels import images_of, numbered, read_labels
from scan_core.data.open import open_source, resolve
from scan_core.data.parquet import has_images
from scan_core.data.settings import ARRAY_UP_TO, Data
from scan_core.data.splits import official
from scan_core.data.types import IMAGE_SUFFIXES, Finding, Item, Source, Split
from scan_core.errors import ScanError

SAMPLE = 96  # images that are decoded
SHARP = (32, 64, 96, 128, 160, 224)  # pixels stored
OBLONG, LOOKED_AT = 1.5, 64  # long side per short side, of which cutting may lose much; pixels of its long side
COLUMNS, TILE, GAP = 12, 96, 6  # of the contact sheet; tile and gap in pixels
SPLIT_NAMES: dict[Split | None, str] = {"train": "train", "val": "val", "extra": "unlabeled", None: "train"}


@dataclass
class Inspection:
    """What a source holds."""

    path: str
    settings: Data
    images: int = 0  # that call themselves images by their names
    left_out: Counter[str] = field(default_factory=Counter)  # other files by kind, most of which prepare will ignore
    notes: dict[str, int] = field(default_factory=dict)  # what the source says of itself: on how many images
    classes: list[str] = field(default_factory=list)
    labeled: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    # Of the sample, which is drawn uniformly:
    sample: list[Item] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of each readable header
    refused: list[Finding] = field(default_factory=list)
    all_gray: bool = False
    range: Range | None = None  # of images of more than 8 bits
    paged: int = 0  # files with several pages or frames
    cut: float = 0.0  # share of readable images of whose detail a central square would hold less than half
    seconds: float = 0.0  # to decode an image with all workers
    read_seconds: float = 0.0  # to go through all of the source without decoding it

    @property
    def others(self) -> int:
        """How many files are left out."""
        return sum(self.left_out.values())

    @property
    def short_side(self) -> int:
        """Pixels of the images' short side: half of them do not exceed it."""
        return sorted(map(min, self.sizes))[(len(self.sizes) - 1) // 2] if self.sizes else 0

    @property
    def side(self) -> int:
        """Pixels to store: the smallest of ``SHARP`` that holds the short side."""
        return next((side for side in SHARP if side >= self.short_side), SHARP[-1])


def kind_of(path: Path) -> str:
    """``data.name`` for a path. Raises ``ScanError`` if there is nothing at the path, or a .npz file."""
    if not path.exists():
        raise ScanError(f"there is nothing at {path}")
    if path.is_dir():
        return "parquet" if holds_tables(path) else "folder"
    return {".parquet": "parquet", ".npy": "npy", ".npz": "npy"}.get(path.suffix.lower(), "archive")


def holds_tables(folder: Path) -> bool:
    """Whether the images of a folder are in tables: beside photos, a table without images is another program's."""
    names = [name for name, _ in walk(folder) if not is_junk(name)]
    suffixes = {Path(name).suffix.lower() for name in names}
    if ".parquet" not in suffixes:
        return False
    return suffixes.isdisjoint(IMAGE_SUFFIXES) or all(has_images(folder / n) for n in names if n.endswith(".parquet"))


def inspect_source(
    path: str,
    base: Data,
    root: Path,
    scratch: Path,
    workers: int,
    kind: str | None = None,
    labels: str = "none",
    split: Literal["source", "none"] = "source",
) -> Inspection:
    """Looks at all names of ``path``, and decodes a sample in ``workers`` processes.

    ``base`` holds the limits for decoding. ``kind``, ``labels`` and ``split`` are ``data.name``, ``data.labels`` and
    ``data.split``: None tells the kind by the path, and none shows what folders or a table would be as labels. Raises
    ``ScanError`` if there is no image.
    """
    place = resolve(path, root)
    name = kind or kind_of(place)
    if place.is_dir() and name not in ("folder", "parquet"):
        raise ScanError(f"--as is {name}, but {path} is a folder; folder or parquet is allowed")
    values = dict(base) | {"name": name, "path": path, "labels": "folders", "split": split, "boxes": None}
    values["store"] = "array"
    found = Inspection(path, Data(**values))
    source = open_source(found.settings, root, root)
    started = time.monotonic()
    names, own_labels, splits = _read_names(source, found)
    found.read_seconds = time.monotonic() - started
    if not found.images:
        raise ScanError(
            f"{path} holds no image among its {found.others:,} files; give a folder, a zip or tar, a .parquet or a .npy"
        )
    if source.layout:
        own_labels, splits = source.layout(names)
    if labels.endswith(".csv"):
        given = read_labels(resolve(labels, root))
        image_of = images_of(given, names)
        if not image_of:
            raise ScanError(f"--labels is {labels}, which names no image of {path}, such as {names[0]!r}")
        label_of = {name: given[source] for source, name in image_of.items()}
        own_labels = [label_of.get(name) for name in names]
    found.classes, numbers = numbered(own_labels, source)
    found.labeled, found.notes = int((numbers >= 0).sum()), dict(source.notes)
    own = official(splits)
    found.splits = Counter(SPLIT_NAMES[split] if own else "no split of its own" for split in splits)
    for item in found.sample:
        _note_header(item, found)
    _decode_sample(found, scratch, workers)
    _note_cut(found)
    return found


def _read_names(source: Source, found: Inspection) -> tuple[list[str], list[str | None], list[Split | None]]:
    """Name, label and split of each image. Counts files, and samples images uniformly (algorithm R, Vitter 1985)."""
    draw = random.Random(0)
    images: list[tuple[str, str | None, Split | None]] = []
    for item in source.read():
        if isinstance(item, Finding) or not _claims_to_be_an_image(item):
            suffix = Path(item.name).suffix.lower() or "without a suffix"
            found.left_out[item.reason if isinstance(item, Finding) else suffix] += 1
            continue
        place = len(images) if len(images) < SAMPLE else draw.randrange(len(images) + 1)
        if place < SAMPLE:
            found.sample[place : place + 1] = [item]
        images.append((item.name, item.label, item.split))
    found.images = len(images)
    names, labels, splits = map(list, zip(*images, strict=True)) if images else ([], [], [])
    return names, labels, splits


def _claims_to_be_an_image(item: Item) -> bool:
    named = Path(item.name).suffix.lower() in IMAGE_SUFFIXES
    return named or item.is_declared_image or isinstance(item.data, np.ndarray)


def _decode_sample(found: Inspection, scratch: Path, workers: int) -> None:
    """Decodes the sample as prepare would, and notes how long that took and what could not be read."""
    target = Target(found.side, "crop", "array" if found.side <= ARRAY_UP_TO else "jpeg", found.settings.max_pixels)
    scratch.mkdir(parents=True, exist_ok=True)
    part = -(-len(found.sample) // (2 * workers))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        started = time.monotonic()
        chunks = ingest(Source(lambda: iter(found.sample)), target, Path(folder), workers, lambda *_: None, part)
        found.seconds = (time.monotonic() - started) / len(found.sample)
        known, _ = load_chunks(Path(folder), chunks)
    found.refused, found.all_gray = known.findings, bool(len(known.gray) and known.gray.all())
    found.range, found.paged = found.settings.range or common_range(known.extents), int(known.paged.sum())


def _note_header(item: Item, found: Inspection) -> None:
    if isinstance(item.data, np.ndarray):
        kind, mode = "array", "gray" if item.data.ndim == 2 else "color"
        height, width = item.data.shape[:2]
    else:
        try:
            opened = io.BytesIO(item.data) if isinstance(item.data, bytes) else open(item.data, "rb")  # noqa: SIM115 (closed by the with)
            with opened, open_header(opened, found.settings.max_pixels) as image:
                kind, mode, (width, height) = image.format or "?", image.mode, image.size
        except Exception:  # noqa: BLE001 (decoding will report what is wrong with it)
            return
    found.formats[kind] += 1
    found.modes[mode] += 1
    found.sizes.append((width, height))


def _note_cut(found: Inspection) -> None:
    """Measures how much of the images a central square would cut away: not pixels, but what is to be seen there.

    A portrait in front of a wide wall loses nothing that matters; a tall bottle loses its head and foot.
    """
    if not found.sizes or not any(max(size) > OBLONG * min(size) for size in found.sizes):
        return
    target, badly, seen = Target(LOOKED_AT, "stretch", "array", found.settings.max_pixels), 0, 0
    for item in found.sample:
        try:
            image = open_image(item.data, target)
        except Refused:
            continue
        seen += 1
        if max(image.size) > OBLONG * min(image.size):
            badly += detail_outside(image) > 0.5
    found.cut = badly / max(seen, 1)


def detail_outside(image: Image.Image) -> float:
    """The share of the changes of brightness in ``image`` that lie outside its central square."""
    scale = LOOKED_AT / max(image.size)
    size = max(round(image.width * scale), 2), max(round(image.height * scale), 2)
    gray = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.float64)
    down, across = np.abs(np.diff(gray, axis=0))[:, :-1], np.abs(np.diff(gray, axis=1))[:-1]
    change = down + across
    height, width = change.shape
    side, (top, left) = min(height, width), ((height - min(height, width)) // 2, (width - min(height, width)) // 2)
    total = change.sum()
    return float(1 - change[top : top + side, left : left + side].sum() / total) if total else 0.0


def write_contact_sheet(found: Inspection, path: Path) -> int:
    """Writes a picture of the sampled images and returns how many it shows."""
    target = Target(TILE, "crop", "array", found.settings.max_pixels, range=found.range)
    tiles = []
    for item in found.sample:
        try:
            tiles.append(square(open_image(item.data, target), target))
        except Refused:
            continue
    rows, step = max(-(-len(tiles) // COLUMNS), 1), TILE + GAP
    sheet = Image.new("RGB", (COLUMNS * step + GAP, rows * step + GAP), (255, 255, 255))
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + place % COLUMNS * step, GAP + place // COLUMNS * step))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return len(tiles)
