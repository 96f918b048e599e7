"""Decodes a source in worker processes into chunks on disk. Memory does not grow with the source.

A chunk is whole if its .npz exists, so a run that was killed resumes with the missing chunks. The output depends
neither on the number of processes nor on which chunks an earlier run has left.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np

from scan_core.data.chunks import Chunk, decode_chunk, has_digests, load_chunk, load_thumbs
from scan_core.data.decode import Target
from scan_core.data.pool import Pool, Stuck
from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.data.types import Finding, Item, Source
from scan_core.data.workers import SECONDS_PER_IMAGE
from scan_core.errors import ScanError

CHUNK_ITEMS = 512
CHUNK_BYTES = 8 * 2**20  # of pixels or encoded images, so that little is in memory at a time
PIXEL_BYTES_PER_JPEG_BYTE = 8  # a guess
ENDLESS = f"its decoder did not end in {SECONDS_PER_IMAGE:g} s"

Counts = tuple[int, int]  # images taken, files not taken


@dataclass(frozen=True)
class Piece:
    """The part of a source that becomes one chunk, in the source's order."""

    number: int
    items: list[Item]
    findings: list[Finding]  # what the source itself refused

    def without(self, position: int) -> "Piece":
        """The piece without an image whose decoder does not come back, and its other parts."""
        data = self.items[position].data
        endless = [Finding(item.name, "rejected", ENDLESS) for item in self.items if item.data is data]
        rest = [item for item in self.items if item.data is not data]
        return Piece(self.number, rest, [*self.findings, *endless])


def pieces(source: Source, target: Target, most: int | None = None) -> Iterator[Piece]:
    """``source`` cut by count and by bytes, always in the same places. An empty source is one empty piece."""
    image_bytes = 3 * target.size**2 // (1 if target.stored == "array" else PIXEL_BYTES_PER_JPEG_BYTE)
    number, size = 0, 0
    items: list[Item] = []
    findings: list[Finding] = []
    for each in source.read():
        if isinstance(each, Finding):
            findings.append(each)
        else:
            items.append(each)
            size += image_bytes
            size += len(each.data) if isinstance(each.data, bytes) else getattr(each.data, "nbytes", 0)
        if size >= CHUNK_BYTES or len(items) + len(findings) >= (most or CHUNK_ITEMS):
            yield Piece(number, items, findings)
            number, size, items, findings = number + 1, 0, [], []
    if items or findings or not number:
        yield Piece(number, items, findings)


def ingest(
    source: Source,
    target: Target,
    folder: Path,
    workers: int,
    report: Callable[[int, int], None],
    most: int | None = None,
) -> int:
    """Decodes ``source`` into chunks in ``folder`` and returns how many chunks there are.

    ``report`` is called after each chunk with the totals so far: images taken, files not taken. A chunk has at ``most``
    that many items, by default ``CHUNK_ITEMS``.
    """
    taken = refused = chunks = 0
    for counts in decoded(pieces(source, target, most), target, folder, workers):
        taken, refused, chunks = taken + counts[0], refused + counts[1], chunks + 1
        report(taken, refused)
    return chunks


def decoded(source: Iterable[Piece], target: Target, folder: Path, workers: int) -> Iterator[Counts]:
    """The counts of each piece of ``source``, in order, as soon as its chunk is in ``folder``.

    Few pieces are read ahead, so whoever takes a chunk and deletes it keeps the folder small.
    """
    with _Decoder(target, folder, workers) as decoder:
        yield from decoder.run(source)


class _Decoder:
    """Worker processes that decode pieces into chunks. A context manager."""

    def __init__(self, target: Target, folder: Path, workers: int) -> None:
        self.target, self.folder, self.workers = target, folder, workers
        self.pool = Pool(workers)

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:  # also Ctrl-C: what is being decoded is not waited for
            self.pool.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, source: Iterable[Piece]) -> Iterator[Counts]:
        """The counts of every piece, in order. Few pieces are read ahead; chunks that exist are not made again."""
        waiting: deque[tuple[Piece, Future[Counts]]] = deque()
        for piece in source:
            waiting.append((piece, _finished(piece, self.target, self.folder) or self._submit(piece)))
            if len(waiting) > 2 * self.workers:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def _submit(self, piece: Piece) -> Future[Counts]:
        try:
            return self.pool.submit(_decode, piece, self.target, self.folder)
        except BrokenProcessPool as error:  # another piece broke the pool
            broken: Future[Counts] = Future()
            broken.set_exception(error)
            return broken

    def _result(self, piece: Piece, future: Future[Counts]) -> Counts:
        try:
            return self.pool.wait(piece.number, future)
        except Stuck as stuck:
            self.pool = Pool(self.workers)
            rest = piece.without(stuck.position)
            return self._result(rest, self._submit(rest))
        except BrokenProcessPool:  # a decoder killed its process, maybe that of another piece
            self.pool.shutdown(wait=True)
            self.pool = Pool(self.workers)
            return _decode_without_crashes(piece, self.target, self.folder)


def _finished(piece: Piece, target: Target, folder: Path) -> Future[Counts] | None:
    """The counts of the chunk that an earlier run has made of ``piece``, if it is whole and has ``target``'s range."""
    file = folder / f"{piece.number:06d}.npz"
    try:
        chunk, _ = load_chunk(file), load_thumbs(file)  # zip compares its checksums
        data = file.with_suffix(".bin").read_bytes()
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):  # missing, or cut off by a power failure
        return None
    names = sorted([*(item.name for item in piece.items), *(finding.name for finding in piece.findings)])
    same = names == sorted([*chunk.names, *(finding.name for finding in chunk.findings)])
    if not same or not has_digests(chunk, target, data):
        return None
    deep = np.isfinite(chunk.extents[:, 0])
    if target.range is not None and (chunk.ranges[deep] != target.range).any():
        return None
    done: Future[Counts] = Future()
    done.set_result((len(chunk.names), len(chunk.findings)))
    return done


def _decode(piece: Piece, target: Target, folder: Path) -> Counts:
    return decode_chunk(piece.items, piece.findings, target, folder, piece.number)


def _decode_without_crashes(piece: Piece, target: Target, folder: Path) -> Counts:
    """Decodes ``piece`` in a process of its own, without the images that kill that process."""
    with contextlib.suppress(BrokenProcessPool), Pool(1) as pool:  # another piece may have broken the workers' pool
        return pool.wait(piece.number, pool.submit(_decode, piece, target, folder))
    good, crashed, pool = [], [], Pool(1)
    with TemporaryDirectory(dir=folder) as trials:  # elsewhere, because a trial's chunk is not that of the piece
        for item in piece.items:
            try:
                trial = Piece(0, [item], [])
                pool.wait(trial.number, pool.submit(_decode, trial, target, Path(trials)))
                good.append(item)
            except Stuck:
                crashed.append(Finding(item.name, "rejected", ENDLESS))
                pool = Pool(1)
            except BrokenProcessPool:
                crashed.append(Finding(item.name, "rejected", "its decoder crashed"))
                pool = Pool(1)
    try:
        return pool.submit(_decode, Piece(piece.number, good, [*piece.findings, *crashed]), target, folder).result()
    except BrokenProcessPool:
        raise ScanError(
            f"decoding {len(good)} images, the first of which is {good[0].name}, ends their process, but none does by "
            "itself; check whether the memory is enough"
        ) from None
    finally:
        pool.shutdown()


def load_chunks(folder: Path, count: int) -> tuple[Chunk, np.ndarray]:
    """The catalog: the first ``count`` chunks joined. And the locations of its N images' bytes.

    The locations are (N,3) int64: number of the chunk, start and end in its .bin.
    """
    chunks = [load_chunk(folder / f"{number:06d}.npz") for number in range(count)]
    values = {name: [getattr(chunk, name) for chunk in chunks] for name in vars(chunks[0])}
    joined: dict[str, Any] = {
        name: np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(chain.from_iterable(parts))
        for name, parts in values.items()
    }
    locations = [
        np.stack([np.full(len(ends), number), np.r_[0, ends][:-1], ends], axis=1)
        for number, ends in enumerate(values["ends"])
    ]
    return Chunk(**joined), np.concatenate(locations).astype(np.int64)


def check_rejected(catalog: Chunk, settings: Data, home: Path) -> None:
    """Raises ``ScanError`` if no image was taken, or if more than ``data.max_rejected`` of the images were rejected.

    ``home`` is the folder of named sets, for the message.
    """
    rejected = sum(finding.kind == "rejected" for finding in catalog.findings)
    images = rejected + len(catalog.names)
    if not catalog.names:
        named = f"data.name is {settings.name}, in {home}"
        place = f"data.path is {settings.path}" if settings.name in SOURCES_WITH_PATH else named
        raise ScanError(f"{place}: none of the {len(catalog.findings)} files there is an image that can be read")
    share = rejected / images
    if share > settings.max_rejected:
        raise ScanError(
            f"data.max_rejected is {settings.max_rejected:g}, but {rejected:,} of {images:,} images "
            f"({100 * share:.1f} %) cannot be used; repair or remove them, or raise it"
        )
