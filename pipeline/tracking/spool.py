"""Tracking that cannot stop training: a stage writes events to a spool, a process of its own takes them to MLflow.

The spool is a folder ``.scan/tracking/<time>-<stage>-<pid>/`` with ``events.jsonl`` and copies of the artifacts. It is
deleted when all of it has been delivered; a server that is away leaves it there, for ``scan send``.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.environment import allowed
from pipeline.progress import say

# In the spool's folder: held while a stage writes events, and while a process delivers them. A process that dies,
# however it dies, lets go of them.
STAGE_LOCK, DELIVERY_LOCK = "stage.lock", "delivery.lock"
SECONDS_TO_WAIT = 60.0  # after a stage has ended, for what MLflow has not taken yet


def tracking_address(root: Path) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, otherwise the SQLite file of the project, by its absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def spools_folder(root: Path) -> Path:
    """Where spools lie."""
    return root / ".scan" / "tracking"


def spools(root: Path) -> list[Path]:
    """Spools there are, oldest first; a stage may still be writing to one, or a process delivering it."""
    return sorted(path.parent for path in spools_folder(root).glob("*/events.jsonl"))


class Tracker:
    """Writes the events of one stage and starts the process that delivers them as they come."""

    def __init__(self, root: Path, stage: str) -> None:
        deliver = not allowed("SCAN_TRACKING", "spool")
        self.stage = stage
        self.folder = spools_folder(root) / f"{time.time_ns()}-{stage}-{os.getpid()}"
        self.folder.mkdir(parents=True)
        self._lock = FileLock(self.folder / STAGE_LOCK)
        self._lock.acquire()
        self._events = (self.folder / "events.jsonl").open("a", encoding="utf-8")
        self._copies, self._broken = 0, False
        self._delivery: subprocess.Popen[bytes] | None = None
        if deliver:
            self._delivery = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.delivery", str(root), str(self.folder)],
                stdin=subprocess.PIPE,  # its end tells the process that this one has ended, however it ended
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / "delivery.log").open("wb"),
                start_new_session=True,  # Ctrl-C ends the stage, not the delivery of what it has logged
            )

    def event(self, kind: str, **values: Any) -> None:
        """Appends one event, with its time, and flushes it."""
        record = {"event": kind, "time": time.time_ns() // 1_000_000, **values}

        def append() -> None:
            self._events.write(json.dumps(record, sort_keys=True) + "\n")
            self._events.flush()

        self._harmlessly(append)

    def _harmlessly(self, write: Callable[[], None]) -> None:
        """A full disk costs the records that come after it, and one warning; nothing else."""
        if self._broken:
            return
        try:
            write()
        except OSError as error:
            self._broken = True
            reason = " ".join(str(error).split())[:160]
            say(f"{self.stage}: warning: nothing more is recorded for MLflow ({reason})")

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Numbers of one epoch."""
        self.event("metrics", values=values, step=step)

    def copy(self, path: Path) -> str:
        """Copies a file or folder into the spool, where no later run changes it; returns the copy's name there."""
        self._copies += 1
        target = self.folder / "files" / str(self._copies) / path.name

        def write() -> None:
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)

        self._harmlessly(write)
        return target.relative_to(self.folder).as_posix()

    def save(self, name: str, content: bytes) -> str:
        """A small file that stands nowhere else; returns its name in the spool."""

        def write() -> None:
            (self.folder / name).write_bytes(content)

        self._harmlessly(write)
        return name

    def artifact(self, path: Path, parent: bool = False) -> None:
        """A file for the stage's own row or, with ``parent``, for that of the whole run."""
        if path.exists():
            self.event("artifact", file=self.copy(path), parent=parent)

    def text(self, name: str, text: str, parent: bool = False) -> None:
        """A small text file that stands nowhere else."""
        self.event("artifact", file=self.save(name, text.encode()), parent=parent)

    def close(self, status: str) -> None:
        """Ends the row with ``FINISHED`` or ``FAILED`` and waits a while for the delivery."""
        self.event("end", status=status)
        with contextlib.suppress(OSError):  # what a full disk has not taken
            self._events.close()
        self._lock.release()
        if self._delivery is None:
            return
        assert self._delivery.stdin is not None
        self._delivery.stdin.close()
        try:
            self._delivery.wait(timeout=SECONDS_TO_WAIT)
        except subprocess.TimeoutExpired:
            self._delivery.kill()
            self._delivery.wait()
        if self.folder.exists():
            log = self.folder / "delivery.log"
            reason = (log.read_text(errors="replace").strip().splitlines() or ["it did not answer in time"])[-1]
            say(f"{self.stage}: warning: MLflow did not take the records ({reason[:160]}); kept, send with: scan send")


class NullTracker(Tracker):
    """For the processes of a training that are not the first: records nothing."""

    def __init__(self) -> None:
        pass

    def event(self, kind: str, **values: Any) -> None:
        """Nothing."""

    def close(self, status: str) -> None:
        """Nothing."""
