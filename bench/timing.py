"""Ratios that hold on a shared machine: the candidates take turns in short rounds, and the median round counts."""

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

Work = Callable[[], int]  # does one piece of work and returns how many images (or rows) that was


@dataclass
class Row:
    """One line of the results: what was measured, its speed, and what the speed is compared with."""

    what: str
    rate: float  # images (or rows, or commands) per second, the median over rounds
    peer: str = ""  # what it is compared with
    ratios: list[float] = field(default_factory=list)  # its speed over the peer's, one per round
    target: str = ""
    overhead: float | None = None  # share of a step that is not the model's
    mib: float | None = None  # peak memory of the process; 0 if other processes did the work
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return statistics.median(self.ratios)


def alternate(candidates: dict[str, Work], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Images per second of each candidate in each round, after one piece of work to warm up.

    A candidate works for ``seconds`` per round. Processes that it starts with its first piece of work, such as the
    workers of a data loader, are stopped during the others' turns. Otherwise they would fill their queue then.
    """
    helpers: dict[str, list[int]] = {}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    try:
        for name, work in candidates.items():
            before = {child.pid for child in multiprocessing.active_children()}
            work()
            helpers[name] = [child.pid for child in multiprocessing.active_children() if child.pid not in before]
            _signal(helpers[name], signal.SIGSTOP)
        for _ in range(rounds):
            for name, work in candidates.items():
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
class Candidate:
    """How a process makes the work that it measures."""

    make: Callable[..., Work]
    args: tuple[Any, ...] = ()
    keep_memory: bool = True  # malloc keeps freed memory, as in the pipeline's stages; other programs return it


def alternate_processes(
    candidates: dict[str, Candidate], seconds: float, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """``alternate`` with a new process per turn, so that no candidate profits from another's memory.

    A turn lasts twice ``seconds``, and its second half counts. Returns the rates, and the candidates' peak memory in
    MiB.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    peaks = dict.fromkeys(candidates, 0.0)
    for _ in range(rounds):
        for name, candidate in candidates.items():
            rate, mib = in_new_process(_turn, candidate, seconds)
            rates[name].append(rate)
            peaks[name] = max(peaks[name], mib)
    return rates, peaks


def _turn(candidate: Candidate, seconds: float) -> tuple[float, float]:
    if candidate.keep_memory:
        device.keep_freed_memory()
    else:
        device.keep_freed_memory = lambda: None
    # The first round does not count because new workers get their memory page by page then.
    rates = alternate({"": candidate.make(*candidate.args)}, seconds, 2)
    return rates[""][1], peak_mib()


def peak_mib() -> float:
    """The process's peak memory in MiB. ``getrusage`` is no use: it starts from the parent's peak."""
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert high_water
    return int(high_water[1]) / 1024


def compare(what: str, rates: dict[str, list[float]], name: str, peer: str, **fields: Any) -> Row:
    """The row of candidate ``name``, with its ratios to candidate ``peer``."""
    ratios = [rate / peers for rate, peers in zip(rates[name], rates[peer], strict=True)]
    return Row(what, statistics.median(rates[name]), peer, ratios, **fields)


def measure_alone(function: Callable[..., list[Row]], *args: Any) -> list[Row]:
    """The rows of ``function``, run in its own process. Rows without a peak memory get that of the process."""
    rows, mib = in_new_process(_with_memory, function, args)
    for row in rows:
        row.mib = mib if row.mib is None else row.mib
    return rows


def _with_memory(function: Callable[..., list[Row]], args: tuple[Any, ...]) -> tuple[list[Row], float]:
    rows = function(*args)
    return rows, peak_mib()


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a process that has only just started."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)
