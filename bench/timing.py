"""Ratios that can be trusted on a machine that others use: sides take turns in short spells, and medians count."""

import multiprocessing
import os
import re
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scan_core.compute import device

Work = Callable[[], int]  # does a piece of work; how many images (rows, ...) that was


@dataclass
class Row:
    """One line of the results: a thing, its speed, and what it is compared with in the same process."""

    what: str
    rate: float  # images (rows, commands) a second, the median of all spells
    peer: str = ""  # what it is compared with
    ratios: list[float] = field(default_factory=list)  # speed over the peer's, spell by spell
    bar: str = ""
    outside: float | None = None  # share of a step that is not the model's
    mib: float | None = None  # peak memory of the process; 0 where it was others that computed
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median."""
        return statistics.median(self.ratios)


def in_turn(sides: dict[str, Work], seconds: float, spells: int) -> dict[str, list[float]]:
    """Images a second of each side in each of ``spells`` rounds of ``seconds`` a side, after one piece to warm up.

    Processes that a side starts with its first piece, such as a data loader's workers, stand still in the others'
    turns: otherwise they would fill their queue then, at the others' cost.
    """
    helpers: dict[str, list[int]] = {}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for name, work in sides.items():
            others = {child.pid for child in multiprocessing.active_children()}
            work()
            helpers[name] = [child.pid for child in multiprocessing.active_children() if child.pid not in others]
            _signal(helpers[name], signal.SIGSTOP)
        for _ in range(spells):
            for name, work in sides.items():
                _signal(helpers[name], signal.SIGCONT)
                count, started = 0, time.perf_counter()
                while (passed := time.perf_counter() - started) < seconds:
                    count += work()
                _signal(helpers[name], signal.SIGSTOP)
                rates[name].append(count / passed)
    finally:
        for processes in helpers.values():
            _signal(processes, signal.SIGCONT)
    return rates


@dataclass(frozen=True)
class Side:
    """What makes a side's work in a process of its own."""

    make: Callable[..., Work]
    args: tuple[Any, ...] = ()
    ours: bool = True  # freed memory is kept, as in our stages; otherwise malloc is as it is in any program


def apart(sides: dict[str, Side], seconds: float, spells: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """As ``in_turn``, each spell in a new process, after one of the same length that does not count: what a side
    allocates, and how, is no help to another.

    The second are the sides' peaks of memory, in MiB.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0.0)
    for _ in range(spells):
        for name, side in sides.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rate, mib = pool.submit(_spell, side, seconds).result()
            rates[name].append(rate)
            peaks[name] = max(peaks[name], mib)
    return rates, peaks


def _spell(side: Side, seconds: float) -> tuple[float, float]:
    if side.ours:
        device.keep_freed_memory()
    else:
        device.keep_freed_memory = lambda: None
    # Only the second counts: in the first, workers that were just started get memory of their own, page by page.
    rates = in_turn({"": side.make(*side.args)}, seconds, 2)
    return rates[""][1], peak()


def peak() -> float:
    """MiB of memory that this program has had at most; ``getrusage`` has its parent's, where that had more."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) / 1024


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)


def compared(what: str, rates: dict[str, list[float]], name: str, peer: str, **others: Any) -> Row:
    """The row of side ``name`` beside side ``peer``."""
    ratios = [one / other for one, other in zip(rates[name], rates[peer], strict=True)]
    return Row(what, statistics.median(rates[name]), peer, ratios, **others)


def alone(function: Callable[..., list[Row]], *args: Any) -> list[Row]:
    """The rows of ``function`` in a process of its own, whose peak memory they get where they have none."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows, mib = pool.submit(_with_memory, function, args).result()
    for row in rows:
        row.mib = mib if row.mib is None else row.mib
    return rows


def _with_memory(function: Callable[..., list[Row]], args: tuple[Any, ...]) -> tuple[list[Row], float]:
    rows = function(*args)
    return rows, peak()
