"""``scan data PATH``: what lies there, and which settings fit it. Reads everything once and changes nothing."""

import io
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.params import Params
from pipeline.presets import as_yaml, find_preset, read_preset
from pipeline.progress import CountProgress
from scan_core.data.decode import Refused, Target, open_header, open_image, square
from scan_core.data.folder import is_junk
from scan_core.data.ingest import ingest, load_chunks
from scan_core.data.labels import numbered
from scan_core.data.sources import Finding, Item, Source, Split, open_source, resolve
from scan_core.data.splits import FIXED_SHARE, content_order, fewest, official
from scan_core.data.store import find_duplicates
from scan_core.errors import ScanError
from scan_core.settings import Data

HASHED_AT = 32  # pixels: enough to tell images apart
SHEET_ROWS, SHEET_COLUMNS, TILE, GAP = 8, 12, 96, 6
SHOWN: dict[Split | None, str] = {"train": "train", "val": "val", "extra": "unlabelled", None: "train"}
NEIGHBORS = 50  # mined, where there are as many images
SIZES = (32, 64, 96, 128)  # that are suggested: one array, and a network trains on them from scratch
LARGE = 64  # pixels; of images beyond, two views of 512 take tens of GiB in training
PHOTOS = "cifar10"  # the preset whose views suit colour images


@dataclass
class Look:
    """What was found."""

    source: str
    settings: Data
    findings: list[Finding] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    sample: list[Item] = field(default_factory=list)
    seen: int = 0
    images: int = 0
    gray: bool = False  # all of them
    copies: int = 0  # images that are the same as, or nearly the same as, an earlier one
    classes: list[str] = field(default_factory=list)
    labelled: int = 0
    splits: Counter[str] = field(default_factory=Counter)


def kind_of(path: Path) -> str:
    """``data.name`` for a path. Raises ``ScanError`` where it is none of them."""
    if not path.exists():
        raise ScanError(f"there is nothing at {path}")
    if path.is_dir():
        tables = (file.relative_to(path).as_posix() for file in path.rglob("*.parquet"))
        return "folder" if all(map(is_junk, tables)) else "parquet"
    return {".parquet": "parquet", ".npy": "npy"}.get(path.suffix.lower(), "archive")


def look(path: str, base: Data, root: Path, scratch: Path, workers: int) -> Look:
    """Decodes all of ``path``, in ``workers`` processes, and counts. ``base`` has the limits that apply."""
    where = resolve(path, root)
    values = dict(base) | {"name": kind_of(where), "path": path, "labels": "folders", "store": "array"}
    settings = Data(**values)
    source, found = open_source(settings, root, root), Look(path, settings)
    chosen = random.Random(0)
    peeking = Source(lambda: _peeked(source.read(), found, chosen), source.classes, source.total, source.layout)
    target = Target(HASHED_AT, "crop", "array", settings.max_pixels)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, CountProgress("data", source.total) as progress:
        count = ingest(peeking, target, Path(folder), workers, progress.update)
        if not count:
            raise ScanError(f"there is no file in {path}")
        known, places = load_chunks(Path(folder), count)
        found.findings, found.images, found.gray = known.findings, len(known.names), bool(known.gray.all())
        if known.names:
            labels, splits = source.layout(known.names) if source.layout else (known.labels, known.splits)
            pairs = find_duplicates(known, places, content_order(known.digests), Path(folder))
            found.copies = len(np.unique(np.concatenate(pairs)[:, 1]))
            found.classes, numbers = numbered(labels, source)
            found.labelled = int((numbers >= 0).sum())
            found.splits = Counter(
                (SHOWN[split] for split in splits) if official(splits) else ["no split of its own"] * len(splits)
            )
    return found


def _peeked(items: Iterator[Item | Finding], found: Look, chosen: random.Random) -> Iterator[Item | Finding]:
    """``items`` unchanged, their headers noted, some of them kept for the contact sheet (Vitter's algorithm R)."""
    for item in items:
        if isinstance(item, Item):
            _note(item, found)
            found.seen += 1
            room = SHEET_ROWS * SHEET_COLUMNS
            place = len(found.sample) if len(found.sample) < room else chosen.randrange(found.seen)
            if place < room:
                found.sample[place : place + 1] = [item]
        yield item


def _note(item: Item, found: Look) -> None:
    if isinstance(item.data, np.ndarray):
        found.formats["array"] += 1
        found.modes["grey" if item.data.ndim == 2 else "colour"] += 1
        height, width = item.data.shape[:2]
    else:
        try:
            opened = io.BytesIO(item.data) if isinstance(item.data, bytes) else open(item.data, "rb")  # noqa: SIM115 (closed by the with)
            with opened, open_header(opened, found.settings.max_pixels) as image:
                found.formats[image.format or "?"] += 1
                found.modes[image.mode] += 1
                width, height = image.size
        except Exception:  # noqa: BLE001 (whatever is wrong with it, decoding will say)
            return
    found.heights.append(height)
    found.widths.append(width)


def suggest(found: Look, present: Params) -> dict[str, Any]:
    """Settings that fit, as groups of params.yaml, and go with those of ``present`` that they leave out.

    A network is trained from scratch: what ``present`` has of another data set, or of imported weights, does not stay.
    """
    short = sorted(min(pair) for pair in zip(found.heights, found.widths, strict=True)) or [HASHED_AT]
    median = statistics.median_low(short)
    size = next((size for size in SIZES if size >= median), SIZES[-1])
    long_ones = sum(max(pair) > 2 * min(pair) for pair in zip(found.heights, found.widths, strict=True))
    own_split, labelled = found.splits["val"] > 0, found.labelled > 0
    drop, protocol = found.copies > 0 and not own_split, "split" if labelled or own_split else "all"
    kept = found.images - found.copies * drop
    share = FIXED_SHARE if protocol == "all" else found.settings.val_fraction
    train, val = kept if protocol == "all" else fewest(kept, 1 - share), fewest(kept, share)
    if own_split:
        train, val = found.splits["train"], found.splits["val"]
    stem = "stl" if size > 32 else "small"
    batch, classes = max(min(256 if size > LARGE else 512, train // 4), 2), len(found.classes)
    k = max(min(train, val, NEIGHBORS + 1) - 1, 1)
    method, groups = present.pretext.method, getattr(present.pretext, "key_groups", 1)
    if method == "none" or (method == "moco" and (batch % groups or batch < 2 * groups)):  # moco needs equal groups
        method = "simclr"
    suggested: dict[str, Any] = {
        "data": {
            "name": found.settings.name,
            "path": found.source,
            "labels": "folders" if labelled else "none",
            "size": size,
            "view": None,
            "fit": "pad" if long_ones > 0.2 * len(short) else "crop",
            "store": "auto",
            "duplicates": "drop" if drop else "keep",
            "protocol": protocol,
            "mean": None,
            "std": None,
        },
        "backbone": {"name": "resnet18", "width": 64, "stem": stem, "model": None, "weights": None},
        "pretext": {"method": method, "batch_size": batch},
        "neighbors": {"k": k, "smoothing": min(present.neighbors.smoothing, k)},
        "cluster": {
            "num_clusters": classes if classes > 1 else 10,
            "neighbors": min(20, k),
            "val_neighbors": min(5, k),
            "prior": None,
            "train": "all",
            "batch_size": min(128, batch),
        },
        "selflabel": {"train": "all", "batch_size": batch},
    }
    # A grey image may be a digit, of which a mirrored one is none: it keeps the views that are there.
    fitting = present if found.gray else read_preset(find_preset(PHOTOS))
    for name in ("pretext", "cluster", "selflabel"):
        own, views = _views(present, name), _views(fitting, name)
        if views.get("kind") == "none":  # which was for a network that is not trained
            views = _views(present, "pretext") or {"kind": "simclr"}
        if "cutout" in views:
            views["cutout"] = min(views["cutout"], size // 3) if found.gray else size // 3
        if views != own:
            suggested[name]["augmentation"] = views
    return suggested


def _views(params: Params, step: str) -> dict[str, Any]:
    """The augmentation of a step; {} if ``pretext.method`` is none."""
    augmentation = getattr(getattr(params, step), "augmentation", None)
    return augmentation.model_dump(mode="json") if augmentation else {}


def contact_sheet(found: Look, path: Path) -> int:
    """Writes a PNG with some of the images and returns how many it shows."""
    target = Target(TILE, "crop", "array", found.settings.max_pixels)
    tiles = []
    for item in found.sample:
        try:
            tiles.append(square(open_image(item.data, target), target))
        except Refused:
            continue
    rows = max(-(-len(tiles) // SHEET_COLUMNS), 1)
    width = SHEET_COLUMNS * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, rows * (TILE + GAP) + GAP), (255, 255, 255))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, SHEET_COLUMNS)
        sheet.paste(tile, (GAP + column * (TILE + GAP), GAP + row * (TILE + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return len(tiles)


def show(found: Look, suggested: dict[str, Any], sheet: Path, shown: int) -> None:
    """Prints what was found and what would be chosen."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)  # names may hold brackets
    rejected = [finding for finding in found.findings if finding.kind == "rejected"]
    ignored = len(found.findings) - len(rejected)
    table = Table(
        title=found.source, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("images", f"{found.images:,}")
    if found.heights:
        table.add_row("width", _range(found.widths))
        table.add_row("height", _range(found.heights))
        table.add_row("formats", _counted(found.formats))
        table.add_row("modes", _counted(found.modes))
    table.add_row("splits", _counted(found.splits) if found.images else "none")
    known = f"{len(found.classes):,} classes, {found.labelled:,} of {found.images:,} images have one"
    table.add_row("labels", known if found.labelled else "none")
    table.add_row("copies", f"{found.copies:,} images are the same as, or nearly the same as, another")
    table.add_row(
        "rejected", f"{len(rejected):,}" + (": " + _counted(Counter(f.reason for f in rejected)) if rejected else "")
    )
    table.add_row("ignored", f"{ignored:,} other files")
    table.add_row("sheet", f"{sheet} ({shown} images)")
    console.print(table)
    for finding in rejected[:10]:
        console.print(f"  {finding.name}: {finding.reason}", style="yellow")
    if len(rejected) > 10:
        console.print(f"  and {len(rejected) - 10:,} more; prepare lists them all in data/items/findings.csv")
    if found.images:
        console.print("\nSettings that would fit, for params.yaml (--use puts them there):\n", style="bold")
        print(as_yaml(suggested).strip())  # not through rich, which would break long lines


def _range(values: list[int]) -> str:
    low, middle, high = min(values), statistics.median_low(values), max(values)
    return f"{low:,} pixels" if low == high else f"{low:,} to {high:,} pixels, half of them up to {middle:,}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(8)) + ("…" if len(counts) > 8 else "")
