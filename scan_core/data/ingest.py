"""A source's images, decoded in worker processes into chunks on disk: in memory that does not grow with the source.

A chunk is whole when its .npz is there, so a run that was killed carries on with the chunks that are missing.
What comes out depends neither on the number of processes nor on which chunks an earlier run has left.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np

from scan_core.data.chunks import Chunk, decode_chunk, load_chunk
from scan_core.data.decode import Target
from scan_core.data.settings import SOURCES_WITH_PATH, Data
from scan_core.data.sources import Finding, Item, Source
from scan_core.errors import ScanError

CHUNK_ITEMS = 512
CHUNK_BYTES = 8 * 2**20  # of pixels or encoded images: what is in flight stays small
PIXELS_A_BYTE = 8  # of a JPEG, at a guess
PR_SET_PDEATHSIG = 1

Report = Callable[[int, int], None]  # images taken, files not taken, so far


@dataclass(frozen=True)
class Piece:
    """One chunk's worth of a source, in its order."""

    number: int
    items: list[Item]
    findings: list[Finding]  # what the source itself refused


def pieces(source: Source, target: Target) -> Iterator[Piece]:
    """``source`` cut by count and by bytes, always in the same places; an empty one is one empty piece."""
    pixel_bytes = 3 * target.size**2 // (1 if target.stored == "array" else PIXELS_A_BYTE)
    number, size = 0, 0
    items: list[Item] = []
    findings: list[Finding] = []
    for each in source.read():
        if isinstance(each, Finding):
            findings.append(each)
        else:
            items.append(each)
            size += pixel_bytes
            size += len(each.data) if isinstance(each.data, bytes) else getattr(each.data, "nbytes", 0)
        if size >= CHUNK_BYTES or len(items) + len(findings) >= CHUNK_ITEMS:
            yield Piece(number, items, findings)
            number, size, items, findings = number + 1, 0, [], []
    if items or findings or not number:
        yield Piece(number, items, findings)


def ingest(source: Source, target: Target, folder: Path, workers: int, report: Report) -> int:
    """Decodes all of ``source`` into chunks in ``folder`` and returns how many chunks there are."""
    taken = refused = count = 0
    waiting: deque[tuple[Piece, Future[tuple[int, int]]]] = deque()
    pool = _pool(workers)

    def start(piece: Piece) -> Future[tuple[int, int]]:
        try:
            return pool.submit(_decode, piece, target, folder)
        except BrokenProcessPool as error:  # through a chunk that is waiting: seen when its turn comes
            broken: Future[tuple[int, int]] = Future()
            broken.set_exception(error)
            return broken

    def finish_first() -> None:
        nonlocal taken, refused, pool
        piece, future = waiting.popleft()
        try:
            done = future.result()
        except BrokenProcessPool:  # a decoder has taken its process with it, and all that was under way
            pool.shutdown(wait=True)
            done = _carefully(piece, target, folder)
            pool = _pool(workers)
            for position, (other, under_way) in enumerate(waiting):
                if isinstance(under_way.exception(), BrokenProcessPool):
                    waiting[position] = other, start(other)
        taken, refused = taken + done[0], refused + done[1]
        report(taken, refused)

    try:
        for piece in pieces(source, target):
            count = piece.number + 1
            chunk = _finished(piece, folder)
            if chunk is not None:
                taken, refused = taken + len(chunk.names), refused + len(chunk.findings)
                report(taken, refused)
                continue
            waiting.append((piece, start(piece)))
            if len(waiting) > 2 * workers:
                finish_first()
        while waiting:
            finish_first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return count


def _finished(piece: Piece, folder: Path) -> Chunk | None:
    """The chunk that an earlier run has made of ``piece``, if it is whole."""
    file = folder / f"{piece.number:06d}.npz"
    try:
        chunk = load_chunk(file)
        size = file.with_suffix(".bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):  # missing, or cut off when the power was
        return None
    names = sorted([*(item.name for item in piece.items), *(finding.name for finding in piece.findings)])
    same = names == sorted([*chunk.names, *(finding.name for finding in chunk.findings)])
    return chunk if same and size == (int(chunk.ends[-1]) if len(chunk.ends) else 0) else None


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked workers start in no time and need nothing but what is imported here; elsewhere than on Linux forking a
    # process that uses system frameworks is unsafe.
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker, (os.getpid(),))


def _start_worker(parent: int) -> None:
    gc.set_threshold(50_000)  # decoding makes many objects and few cycles: collecting every 700 costs some percent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says it in one line
    if sys.platform == "linux":
        # Workers of a parent that was killed would wait for ever, and with them the next run: a fork holds its locks.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _decode(piece: Piece, target: Target, folder: Path) -> tuple[int, int]:
    return decode_chunk(piece.items, piece.findings, target, folder, piece.number)


def _carefully(piece: Piece, target: Target, folder: Path) -> tuple[int, int]:
    """``piece`` in a process of its own, without the images that kill it."""
    try:
        return _alone(piece, target, folder)
    except BrokenProcessPool:
        # Trials leave chunks that are not whole, so they are made elsewhere.
        with TemporaryDirectory(dir=folder) as trials:
            good, bad = _part(piece.items, target, Path(trials))
    crashed = [Finding(item.name, "rejected", "its decoder crashed") for item in bad]
    try:
        return _alone(Piece(piece.number, good, [*piece.findings, *crashed]), target, folder)
    except BrokenProcessPool:
        raise ScanError(
            f"decoding {len(good)} images from {good[0].name} on ends their process, though none does by itself; is "
            "there memory enough?"
        ) from None


def _alone(piece: Piece, target: Target, folder: Path) -> tuple[int, int]:
    with _pool(1) as pool:
        return pool.submit(_decode, piece, target, folder).result()


def _part(items: list[Item], target: Target, trials: Path) -> tuple[list[Item], list[Item]]:
    """``items`` that can be decoded and those that kill their process, found by halving."""
    try:
        _alone(Piece(0, items, []), target, trials)
        return items, []
    except BrokenProcessPool:
        if len(items) == 1:
            return [], items
    halves = [_part(half, target, trials) for half in (items[: len(items) // 2], items[len(items) // 2 :])]
    return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]


def load_chunks(folder: Path, count: int) -> tuple[Chunk, np.ndarray]:
    """What is known of all N images, the chunks one after the other, and where each image's bytes lie.

    The second is (N,3) int64: chunk, start, end.
    """
    chunks = [load_chunk(folder / f"{number:06d}.npz") for number in range(count)]
    values = {name: [getattr(chunk, name) for chunk in chunks] for name in vars(chunks[0])}
    joined: dict[str, Any] = {
        name: np.concatenate(parts) if isinstance(parts[0], np.ndarray) else list(chain.from_iterable(parts))
        for name, parts in values.items()
    }
    where = [
        np.stack([np.full(len(ends), number), np.r_[0, ends][:-1], ends], axis=1)
        for number, ends in enumerate(values["ends"])
    ]
    return Chunk(**joined), np.concatenate(where).astype(np.int64)


def check_rejected(known: Chunk, settings: Data, home: Path) -> None:
    """Raises ``ScanError`` where nothing was taken, or more than ``data.max_rejected`` of the files was refused."""
    rejected = sum(finding.kind == "rejected" for finding in known.findings)
    where = "see .scan/rejected.csv"
    if not known.names:
        named = f"data.name is {settings.name}, in {home}"
        place = f"data.path is {settings.path}" if settings.name in SOURCES_WITH_PATH else named
        raise ScanError(f"{place}: no image there can be read ({len(known.findings)} files; {where})")
    share = rejected / (rejected + len(known.names))
    if share > settings.max_rejected:
        raise ScanError(
            f"data.max_rejected is {settings.max_rejected:g}, and {rejected:,} of {rejected + len(known.names):,} "
            f"images ({100 * share:.1f} %) cannot be used; {where}, mend them or raise it"
        )
