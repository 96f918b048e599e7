"""Stopping a stage: by Ctrl-C, by SIGTERM, and if the DVC that runs it is gone and nobody would take its outputs."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline.progress import say

SECONDS_BETWEEN_LOOKS = 1.0


@contextlib.contextmanager
def stoppable(name: str, watch: bool) -> Iterator[None]:
    """SIGTERM raises ``KeyboardInterrupt``; with ``watch`` so does the death of the DVC that started this process."""
    before, ended = signal.signal(signal.SIGTERM, signal.default_int_handler), threading.Event()
    if watch:
        threading.Thread(target=_watch, args=(name, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Collects the signals that would stop the stage, instead of being stopped by them."""
    heard: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda number, _: heard.append(number)) for each in signals]
    try:
        yield heard
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _watch(name: str, ended: threading.Event) -> None:
    """Sends SIGTERM to this process when one of its ancestors up to DVC is gone."""
    pids = ancestors()
    orphan = pids == [1] and not _is_dvc(1)  # it has died before this was looked at; in a container it may be 1 itself
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        if orphan or ancestors()[: len(pids)] != pids:
            say(f"{name:<9} stops, because the DVC that runs it is gone")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _is_dvc(pid: int) -> bool:
    try:
        return b"dvc" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # not Linux
        return False


def ancestors() -> list[int]:
    """The process ids from the parent up to DVC: shells and launchers between them have ``DVC_STAGE`` from it.

    Outside Linux, the parent's alone.
    """
    pids = [os.getppid()]
    try:
        while b"DVC_STAGE=" in Path(f"/proc/{pids[-1]}/environ").read_bytes():
            status = Path(f"/proc/{pids[-1]}/stat").read_text()
            pids.append(int(status.rpartition(")")[2].split()[1]))
    except (OSError, ValueError):  # not Linux, another user's process, or one that has just ended
        pass
    return pids
