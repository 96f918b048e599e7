"""The store that training reads: the images once, in an order that only their content decides, in shards.

Written from the chunks that ``ingest`` has left, a block of rows at a time.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scan_core.data.chunks import Chunk, load_thumbs, to_colour
from scan_core.data.duplicates import THUMB, exact_groups, joining, near_pairs, rows_to_keep
from scan_core.data.settings import Data
from scan_core.data.sources import Finding, Split
from scan_core.data.splits import channel_statistics, choose_rows, content_order, official
from scan_core.errors import ScanError

OPEN_FILES = 128  # macOS allows a process 256
SPLITS = (None, "train", "val", "extra")
BLOCK = 64  # rows written at a time


@dataclass(frozen=True)
class Plan:
    """Which images the store holds, in which order, and what they are for."""

    order: np.ndarray  # (N,) int64: rows of what was ingested
    rows: dict[str, np.ndarray]  # pretext, train, val: rows of the store
    channels: int
    mean: list[float]
    std: list[float]
    findings: list[Finding]  # duplicates
    across: int  # val images that are also in train, or nearly so


def plan_store(known: Chunk, where: np.ndarray, splits: list[Split | None], settings: Data, folder: Path) -> Plan:
    """Orders the ingested images, finds duplicates and splits.

    ``known`` and ``where`` are ``load_chunks``'s, ``splits`` (N,) the source's own, ``folder`` holds the chunks.
    Raises ``ScanError`` where too few images are left.
    """
    channels = 1 if known.gray.all() else 3
    wanted = np.array([settings.extra != "none" or split != "extra" for split in splits], dtype=bool)
    # Equal images of several splits come in the splits' order: in the source's, rows would depend on names.
    by_split = np.argsort([SPLITS.index(split) for split in splits], kind="stable")
    by_split = by_split[wanted[by_split]]
    found = by_split[content_order(known.digests[by_split])]
    equal, near = find_duplicates(known, where, found, folder)
    drop = settings.duplicates == "drop" and not official(splits)
    keep = rows_to_keep(len(found), np.concatenate([near, equal])) if drop else np.ones(len(found), dtype=bool)
    if drop:
        keep[equal[:, 1]] = False  # copies go even if the first of them goes
    order = found[keep]
    rows = choose_rows([splits[row] for row in order], known.digests[order], settings)
    train = order[rows["train"]]
    pixels = int(known.shapes[train].astype(np.int64).prod(axis=1).sum())
    measured = channel_statistics(known.sums[train, :channels], known.squares[train, :channels], pixels)
    for name, given in (("mean", settings.mean), ("std", settings.std)):
        if given is not None and len(given) != channels:
            raise ScanError(
                f"data.{name} has {len(given)} values; one for each channel, {channels}, is allowed, or null"
            )
    mean, std = list(settings.mean or measured[0]), list(settings.std or measured[1])
    flat = [channel for channel, spread in enumerate(std) if spread == 0]
    if flat:
        which = "the images are all of one colour" if len(flat) == channels else f"channel {flat[0]} is the same in all"
        raise ScanError(f"{which}: its standard deviation is 0; check the source, or set data.std")
    in_train, in_val = (np.isin(found, order[rows[split]]) for split in ("train", "val"))
    if settings.protocol == "all":  # val is a part of train
        in_val[:] = False
    findings = duplicate_findings([known.names[row] for row in found], equal, near, in_train, in_val)
    across = int((_also_in(in_train, equal, near) & in_val).sum())
    return Plan(order, rows, channels, mean, std, findings, across)


def find_duplicates(known: Chunk, where: np.ndarray, order: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of positions in ``order``, each (P,2) int64: of equal images, then of images that are nearly the same.

    An image is paired with the first that equals it. Of equal images only the first is paired with what is near it.
    """
    first = exact_groups(known.digests[order])
    firsts = np.flatnonzero(first == np.arange(len(first)))
    near = firsts[near_pairs(known.hashes[order[firsts]], _Thumbs(folder, where, order[firsts]))]
    equal = np.stack([first, np.arange(len(first))], axis=1)[first != np.arange(len(first))]
    return equal, near


def duplicate_findings(
    names: list[str], equal: np.ndarray, near: np.ndarray, in_train: np.ndarray, in_val: np.ndarray
) -> list[Finding]:
    """One finding for each image that a group has beyond its first, not for each of ``find_duplicates``'s pairs.

    ``names``, ``in_train`` and ``in_val`` are of the N positions. A finding says if its two images are on two sides.
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
    """(N,) bool: positions that are the same or nearly the same image as one of ``rows`` (N,) bool."""
    first = np.arange(len(rows))
    first[equal[:, 1]] = equal[:, 0]
    same = np.zeros(len(rows), dtype=bool)
    same[first[rows]] = True
    alike = same.copy()
    for a, b in (near.T, near.T[::-1]):
        alike[a[same[b]]] = True
    found: np.ndarray = alike[first]
    return found


class _Thumbs:
    """Thumbnails of positions in ``order``, memory-mapped in that order: pairs lie anywhere in the source."""

    def __init__(self, folder: Path, where: np.ndarray, order: np.ndarray) -> None:
        self.folder, self.where, self.order = folder, where, order
        self.thumbs: np.ndarray | None = None

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        if not len(positions):  # most sources hold nothing that is alike
            return np.empty((0, THUMB, THUMB, 3), np.uint8)
        if self.thumbs is None:
            self.thumbs = self._gathered()
        return np.asarray(self.thumbs[positions])

    def _gathered(self) -> np.ndarray:
        path, shape = self.folder / "thumbs.npy", (len(self.order), THUMB, THUMB, 3)
        thumbs = np.lib.format.open_memmap(path, "w+", dtype=np.uint8, shape=shape)
        chunk_of = self.where[self.order, 0]
        first = np.searchsorted(self.where[:, 0], np.arange(chunk_of.max(initial=0) + 1))
        by_chunk = np.argsort(chunk_of, kind="stable")
        for places in np.split(by_chunk, np.flatnonzero(np.diff(chunk_of[by_chunk])) + 1):
            chunk = int(chunk_of[places[0]])
            thumbs[places] = load_thumbs(self.folder / f"{chunk:06d}.npz")[self.order[places] - first[chunk]]
        path.unlink()  # the mapping keeps it as long as it is needed
        return thumbs


def write_store(
    plan: Plan, known: Chunk, where: np.ndarray, settings: Data, folder: Path, target: Path
) -> dict[str, Any]:
    """Writes the shards into the folder ``target`` and returns what stats.json says of them.

    Array: ``pixels-00000.npy`` ... (rows,size,size,channels) uint8. JPEG: ``jpeg-00000.bin`` ... with the table
    ``jpeg-00000.npy`` (rows,4) int64 of start, end, height, width.
    """
    target.mkdir(parents=True, exist_ok=True)
    shards = [
        plan.order[start : start + settings.shard_rows] for start in range(0, len(plan.order), settings.shard_rows)
    ]
    with _Chunks(folder, where) as chunks:
        for number, rows in enumerate(shards):
            if settings.stored == "array":
                _write_array(target / f"pixels-{number:05d}.npy", rows, chunks, settings.size, plan.channels)
            else:
                _write_jpeg(target / f"jpeg-{number:05d}", rows, chunks, known.shapes)
    return {
        "count": len(plan.order),
        "channels": plan.channels,
        "store": settings.stored,
        "rows": [len(rows) for rows in shards],
        "size": settings.size,
        "view": settings.side,
        "mean": plan.mean,
        "std": plan.std,
    }


class _Chunks:
    """The images' bytes, wherever they lie, with a limited number of files open. A context manager."""

    def __init__(self, folder: Path, where: np.ndarray) -> None:
        self.folder, self.where = folder, where
        self.files: OrderedDict[int, int] = OrderedDict()

    def __enter__(self) -> "_Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            os.close(file)

    def read(self, rows: np.ndarray) -> Iterator[bytes]:
        """The bytes of each of ``rows``."""
        for chunk, start, end in self.where[rows].tolist():
            data = os.pread(self._open(chunk), end - start, start)
            if len(data) != end - start:
                raise ScanError(f"{self.folder}/{chunk:06d}.bin is cut off; delete {self.folder} and run dvc repro")
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
            # Joined, for as many small writes take twice as long.
            file.write(
                b"".join(
                    data if len(data) == channels * size**2 else to_colour(data)
                    for data in chunks.read(rows[start : start + BLOCK])
                )
            )


def _write_jpeg(path: Path, rows: np.ndarray, chunks: _Chunks, shapes: np.ndarray) -> None:
    with path.with_suffix(".bin").open("wb") as file:
        file.writelines(chunks.read(rows))
    ends = np.cumsum(chunks.where[rows, 2] - chunks.where[rows, 1])
    table = np.column_stack([np.r_[0, ends][:-1], ends, shapes[rows]]).astype(np.int64)
    np.save(path.with_suffix(".npy"), np.ascontiguousarray(table), allow_pickle=False)
