"""The store that training reads: each image once, ordered by content, in shards. Made from ``ingest``'s chunks."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scan_core.data.chunks import Chunk, load_thumbs, to_color
from scan_core.data.depth import Range, common_range
from scan_core.data.duplicates import THUMB, exact_groups, first_of_copies, joining, near_pairs
from scan_core.data.npy import create_array
from scan_core.data.settings import Data
from scan_core.data.splits import channel_statistics, choose_rows, content_order, official
from scan_core.data.types import Finding, Split
from scan_core.errors import ScanError

OPEN_FILES = 128  # macOS allows a process 256
SPLITS = (None, "train", "val", "extra")
BLOCK = 64  # images per write: single writes take twice as long


@dataclass(frozen=True)
class Plan:
    """Which images the store holds, in which order, and what they are for."""

    order: np.ndarray  # (N,) int64: rows of the catalog
    rows: dict[str, np.ndarray]  # pretext, train, val: rows of the store
    copies: np.ndarray  # (N,) int64: the row of the store that each row is a copy of, or itself
    channels: int
    mean: list[float]
    std: list[float]
    findings: list[Finding]  # duplicates
    across: int  # val images that have a copy or near copy in train
    range: Range | None  # the values of images of more than 8 bits that became 0 and 255; None: all have 8


def plan_store(catalog: Chunk, locations: np.ndarray, splits: list[Split | None], settings: Data, folder: Path) -> Plan:
    """Orders the images, finds duplicates and splits.

    ``catalog`` and ``locations`` are what ``load_chunks`` returned for ``folder``, ``splits`` the source's own, one per
    image. Raises ``ScanError`` if too few images are left, or if the images' mean and deviation cannot be used.
    """
    wanted = np.array([settings.extra != "none" or split != "extra" for split in splits], dtype=bool)
    # Equal images are ordered by their splits. In the source's order, names would decide which row is in which split.
    by_split = np.argsort([SPLITS.index(split) for split in splits], kind="stable")
    by_split = by_split[wanted[by_split]]
    candidates = by_split[content_order(catalog.digests[by_split])]
    equal, near = find_duplicates(catalog, locations, candidates, folder)
    first = np.arange(len(candidates))
    if settings.duplicates != "keep":
        first = first_of_copies(len(candidates), equal, near)
    stays = np.ones(len(candidates), dtype=bool)
    if settings.duplicates == "drop" and not official(splits):
        stays[equal[:, 1]] = False
    order, copies = candidates[stays], (np.cumsum(stays) - 1)[first[stays]]
    rows = choose_rows([splits[row] for row in order], catalog.digests[order], settings)
    channels = 1 if catalog.gray.all() else 3
    mean, std = _mean_and_std(catalog, order[rows["train"]], channels, settings)
    in_train, in_val = (np.isin(candidates, order[rows[split]]) for split in ("train", "val"))
    if settings.protocol == "all":  # val is a part of train
        in_val[:] = False
    findings = duplicate_findings([catalog.names[row] for row in candidates], equal, near, in_train, in_val)
    across = int((_also_in(in_train, equal, near) & in_val).sum())
    return Plan(
        order, rows, copies, channels, mean, std, findings, across, settings.range or common_range(catalog.extents)
    )


def _mean_and_std(catalog: Chunk, train: np.ndarray, channels: int, settings: Data) -> tuple[list[float], list[float]]:
    """Of each channel in [0,1]: ``settings``' own, else those of the images ``train``, rows of the catalog."""
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if values is not None and len(values) != channels:
            raise ScanError(f"data.{name} has {len(values)} values; one per channel, {channels}, is allowed, or null")
    pixels = int(catalog.shapes[train].astype(np.int64).prod(axis=1).sum())
    measured = channel_statistics(catalog.sums[train, :channels], catalog.squares[train, :channels], pixels)
    mean, std = list(settings.mean or measured[0]), list(settings.std or measured[1])
    flat = [channel for channel, deviation in enumerate(std) if deviation == 0]
    if flat:
        which = "all images have one and the same color" if len(flat) == channels else f"channel {flat[0]} is constant"
        raise ScanError(f"{which}: its standard deviation is 0; check the source, or set data.std")
    return mean, std


def find_duplicates(
    catalog: Chunk, locations: np.ndarray, order: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of equal images, (P,2), and of near duplicates, (P',2), int64 positions in ``order``, the smaller first.

    An image is paired with the first image that equals it. Only that first one is paired with its near duplicates,
    and only if it has as many pixels as a thumbnail. ``order`` (N,) are rows of the catalog, ordered by content.
    """
    positions = np.arange(len(order))
    first = exact_groups(catalog.digests[order])
    is_first = first == positions
    firsts = positions[is_first & (catalog.shapes[order].min(axis=1) >= THUMB)]
    near = firsts[near_pairs(catalog.hashes[order[firsts]], _Thumbs(folder, locations, order[firsts]))]
    return np.stack([first, positions], axis=1)[~is_first], near


def duplicate_findings(
    names: list[str], equal: np.ndarray, near: np.ndarray, in_train: np.ndarray, in_val: np.ndarray
) -> list[Finding]:
    """One finding per image that a group has beyond its first, fewer than ``find_duplicates`` has pairs.

    ``names``, ``in_train`` and ``in_val`` (N,) are those of the positions. A finding says if the split separates them.
    """

    def reason(words: str, a: int, b: int) -> str:
        crosses = (in_train[a] and in_val[b]) or (in_val[a] and in_train[b])
        return f"{words} {names[a]}" + (", which is on the other side of the split" if crosses else "")

    return [
        *(Finding(names[b], "duplicate", reason("the same image as", a, b)) for a, b in equal.tolist()),
        *(
            Finding(names[b], "near_duplicate", reason("nearly the same image as", a, b))
            for a, b in joining(len(names), near).tolist()
        ),
    ]


def _also_in(rows: np.ndarray, equal: np.ndarray, near: np.ndarray) -> np.ndarray:
    """(N,) bool: the positions whose image has a copy or near copy among ``rows`` (N,) bool."""
    first = np.arange(len(rows))
    first[equal[:, 1]] = equal[:, 0]
    copied = np.zeros(len(rows), dtype=bool)  # at the first of equal images
    copied[first[rows]] = True
    reached = copied.copy()
    for a, b in (near.T, near.T[::-1]):
        reached[a[copied[b]]] = True
    also: np.ndarray = reached[first]
    return also


class _Thumbs:
    """Thumbnails by position in ``order``, gathered into a memory-mapped file, because pairs can be anywhere."""

    def __init__(self, folder: Path, locations: np.ndarray, order: np.ndarray) -> None:
        self.folder, self.locations, self.order = folder, locations, order
        self.thumbs: np.ndarray | None = None

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        if not len(positions):  # most sources have no duplicates, and nothing is gathered
            return np.empty((0, THUMB, THUMB, 3), np.uint8)
        if self.thumbs is None:
            self.thumbs = self._gather()
        return np.asarray(self.thumbs[positions])

    def _gather(self) -> np.ndarray:
        path, shape = self.folder / "thumbs.npy", (len(self.order), THUMB, THUMB, 3)
        thumbs = create_array(path, np.uint8, shape)
        chunk_of = self.locations[self.order, 0]
        first_row = np.searchsorted(self.locations[:, 0], np.arange(chunk_of.max(initial=0) + 1))
        by_chunk = np.argsort(chunk_of, kind="stable")
        for positions in np.split(by_chunk, np.flatnonzero(np.diff(chunk_of[by_chunk])) + 1):
            chunk = int(chunk_of[positions[0]])
            rows = self.order[positions] - first_row[chunk]
            thumbs[positions] = load_thumbs(self.folder / f"{chunk:06d}.npz")[rows]
        path.unlink()  # the mapping keeps the content until it is dropped
        return thumbs


def write_store(
    plan: Plan, catalog: Chunk, locations: np.ndarray, settings: Data, folder: Path, target: Path
) -> dict[str, Any]:
    """Writes the shards into the folder ``target`` and returns their description for stats.json.

    Array: ``pixels-00000.npy`` ... (rows,size,size,channels) uint8. JPEG: ``jpeg-00000.bin`` ... with the table
    ``jpeg-00000.npy`` (rows,4) int64 of start, end, height, width. ``folder`` holds the chunks.
    """
    target.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(plan.order), settings.shard_rows)
    shards = [plan.order[start : start + settings.shard_rows] for start in starts]
    with _Chunks(folder, locations) as chunks:
        for number, rows in enumerate(shards):
            if settings.stored == "array":
                _write_array(target / f"pixels-{number:05d}.npy", rows, chunks, settings.size, plan.channels)
            else:
                _write_jpeg(target / f"jpeg-{number:05d}", rows, chunks, catalog.shapes)
    return {
        "count": len(plan.order),
        "channels": plan.channels,
        "store": settings.stored,
        "rows": [len(rows) for rows in shards],
        "size": settings.size,
        "fit": settings.fit,
        "view": settings.side,
        "mean": plan.mean,
        "std": plan.std,
        **({} if plan.range is None else {"range": list(plan.range)}),
    }


class _Chunks:
    """The images' bytes, read from the chunks with a limited number of files open. A context manager."""

    def __init__(self, folder: Path, locations: np.ndarray) -> None:
        self.folder, self.locations = folder, locations
        self.files: OrderedDict[int, int] = OrderedDict()  # file descriptors by chunk

    def __enter__(self) -> "_Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            os.close(file)

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """The bytes of each of ``rows``, rows of the catalog. Raises ``ScanError`` if a chunk is too short."""
        for chunk, start, end in self.locations[rows].tolist():
            data = os.pread(self._open(chunk), end - start, start)
            if len(data) != end - start:
                raise ScanError(f"{self.folder}/{chunk:06d}.bin is cut off; delete {self.folder} to decode it again")
            yield data

    def _open(self, chunk: int) -> int:
        if chunk not in self.files:
            if len(self.files) == OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            self.files[chunk] = os.open(self.folder / f"{chunk:06d}.bin", os.O_RDONLY)
        return self.files[chunk]


def _write_array(path: Path, rows: np.ndarray, chunks: _Chunks, size: int, channels: int) -> None:
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), size, size, channels)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), BLOCK):
            block = chunks.read(rows[start : start + BLOCK])
            file.write(b"".join(data if len(data) == channels * size**2 else to_color(data) for data in block))


def _write_jpeg(path: Path, rows: np.ndarray, chunks: _Chunks, shapes: np.ndarray) -> None:
    with path.with_suffix(".bin").open("wb") as file:
        file.writelines(chunks.read(rows))
    ends = np.cumsum(chunks.locations[rows, 2] - chunks.locations[rows, 1])
    table = np.column_stack([np.r_[0, ends][:-1], ends, shapes[rows]]).astype(np.int64)
    np.save(path.with_suffix(".npy"), np.ascontiguousarray(table), allow_pickle=False)
