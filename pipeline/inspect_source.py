"""``scan data PATH``: inspects a source of images and suggests settings. It reads all of it and changes nothing."""

import io
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.presets import as_yaml
from pipeline.progress import CountProgress
from scan_core.data.decode import Refused, Target, open_header, open_image, square
from scan_core.data.folder import is_junk
from scan_core.data.ingest import ingest, load_chunks
from scan_core.data.labels import numbered
from scan_core.data.open import open_source, resolve
from scan_core.data.settings import Data
from scan_core.data.splits import content_order, official
from scan_core.data.store import find_duplicates
from scan_core.data.types import Finding, Item, Split
from scan_core.errors import ScanError

HASHED_AT = 32  # pixels: enough to tell images apart
TILES, COLUMNS, TILE, GAP = 96, 12, 96, 6  # of the contact sheet; tile and gap in pixels
SPLIT_NAMES: dict[Split | None, str] = {"train": "train", "val": "val", "extra": "unlabeled", None: "train"}


@dataclass
class Inspection:
    """What a source holds."""

    path: str
    settings: Data
    findings: list[Finding] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height) of each readable header
    sample: list[Item] = field(default_factory=list)  # drawn uniformly, for the contact sheet
    images: int = 0
    all_gray: bool = False
    copies: int = 0  # images that equal, or nearly equal, an earlier one
    classes: list[str] = field(default_factory=list)
    labeled: int = 0
    splits: Counter[str] = field(default_factory=Counter)


def kind_of(path: Path) -> str:
    """``data.name`` for a path. Raises ``ScanError`` if there is nothing at the path."""
    if not path.exists():
        raise ScanError(f"there is nothing at {path}")
    if path.is_dir():
        tables = (file.relative_to(path).as_posix() for file in path.rglob("*.parquet"))
        return "folder" if all(map(is_junk, tables)) else "parquet"
    return {".parquet": "parquet", ".npy": "npy"}.get(path.suffix.lower(), "archive")


def inspect_source(path: str, base: Data, root: Path, scratch: Path, workers: int) -> Inspection:
    """Decodes all of ``path`` in ``workers`` processes. ``base`` holds the limits for decoding."""
    values = dict(base) | {"name": kind_of(resolve(path, root)), "path": path, "labels": "folders", "store": "array"}
    found = Inspection(path, Data(**values))
    source = open_source(found.settings, root, root)
    watched = replace(source, read=lambda: _watched(source.read(), found))
    target = Target(HASHED_AT, "crop", "array", found.settings.max_pixels)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, CountProgress("data", source.total) as progress:
        chunks = ingest(watched, target, Path(folder), workers, progress.update)
        known, places = load_chunks(Path(folder), chunks)
        found.findings, found.images, found.all_gray = known.findings, len(known.names), bool(known.gray.all())
        if known.names:
            labels, splits = source.layout(known.names) if source.layout else (known.labels, known.splits)
            pairs = find_duplicates(known, places, content_order(known.digests), Path(folder))
            found.copies = len(np.unique(np.concatenate(pairs)[:, 1]))
            found.classes, numbers = numbered(labels, source)
            found.labeled = int((numbers >= 0).sum())
            own = official(splits)
            found.splits = Counter(SPLIT_NAMES[split] if own else "no split of its own" for split in splits)
    return found


def _watched(items: Iterator[Item | Finding], found: Inspection) -> Iterator[Item | Finding]:
    """Yields ``items``; notes their headers and keeps a uniform sample of them (algorithm R, Vitter 1985)."""
    draw, seen = random.Random(0), 0
    for item in items:
        if isinstance(item, Item):
            _note_header(item, found)
            place = seen if seen < TILES else draw.randrange(seen + 1)
            if place < TILES:
                found.sample[place : place + 1] = [item]
            seen += 1
        yield item


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


def write_contact_sheet(found: Inspection, path: Path) -> int:
    """Writes a picture of the sampled images and returns how many it shows."""
    target = Target(TILE, "crop", "array", found.settings.max_pixels)
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


def print_inspection(found: Inspection, suggested: dict[str, Any], sheet: Path, shown: int) -> None:
    """Prints what the source holds and the suggested settings."""
    from rich.console import Console
    from rich.table import Table

    rejected = [finding for finding in found.findings if finding.kind == "rejected"]
    reasons = _counted(Counter(finding.reason for finding in rejected))
    rows = {
        "images": f"{found.images:,}",
        "width": _range([width for width, _ in found.sizes]),
        "height": _range([height for _, height in found.sizes]),
        "formats": _counted(found.formats),
        "modes": _counted(found.modes),
        "splits": _counted(found.splits),
        "labels": f"{len(found.classes):,} classes, {found.labeled:,} of {found.images:,} images have one",
        "copies": f"{found.copies:,} images equal, or nearly equal, an earlier one",
        "rejected": f"{len(rejected):,}" + (f": {reasons}" if rejected else ""),
        "ignored": f"{len(found.findings) - len(rejected):,} other files",
        "sheet": f"{sheet} ({shown} images)",
    }
    table = Table("", "", title=found.path, title_justify="left", title_style="bold", box=None, show_header=False)
    table.columns[0].style, table.columns[1].overflow = "dim", "fold"
    for row in rows.items():
        table.add_row(*row)
    console = Console(highlight=False, markup=False)  # names may hold brackets
    console.print(table)
    for finding in rejected[:10]:
        console.print(f"  {finding.name}: {finding.reason}", style="yellow")
    if len(rejected) > 10:
        console.print(f"  and {len(rejected) - 10:,} more; prepare lists all of them in data/items/findings.csv")
    if found.images:
        console.print("\nSuggested settings for params.yaml (--use puts them there):\n", style="bold")
        print(as_yaml(suggested).strip())  # not through rich, which would break long lines


def _range(values: list[int]) -> str:
    if not values:
        return "none"
    low, middle, high = min(values), statistics.median_low(values), max(values)
    return f"{low:,} pixels" if low == high else f"{low:,} to {high:,} pixels, median {middle:,}"


def _counted(counts: Counter[str]) -> str:
    shown = [f"{count:,} {name}" for name, count in counts.most_common(8)] or ["none"]
    return ", ".join(shown) + ("…" if len(counts) > 8 else "")
