"""The spool: a stage writes events to disk, and a separate process delivers them to MLflow. Neither can stop training.

A spool is a folder ``.scan/tracking/<time>-<stage>-<pid>/`` with ``events.jsonl`` and copies of the artifacts. It is
deleted once MLflow has everything. If the server is away, the spool stays, and ``scan runs --send`` delivers it later.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from filelock import FileLock

from pipeline.environment import allowed
from pipeline.passwords import in_values, without_passwords
from pipeline.progress import say

# Files in the spool. One is locked while a stage writes events, the other while a process delivers them; the system
# releases both when that process dies, however it dies.
STAGE_LOCK, DELIVERY_LOCK = "stage.lock", "delivery.lock"
SQLITE = "sqlite:///"
SECONDS_TO_WAIT = 60.0  # for the delivery, after the stage has ended


class Event(TypedDict):
    """A line of ``events.jsonl``. ``mlflow_runs.HANDLERS`` has a handler for each ``event``."""

    event: str
    time: int  # milliseconds since 1970
    parent: NotRequired[bool]  # whether it is for the pipeline's run and not for the stage's


class Start(Event):
    """The first event: opens the stage's run and, if there is none yet, the pipeline's, its parent."""

    stage: str
    key: str  # names the execution of the pipeline: the tag scan.run
    name: str  # shown for the pipeline's run
    params: dict[str, str]  # all settings, for the pipeline's run
    own: dict[str, str]  # the stage's settings
    tags: dict[str, str]  # of the stage's run
    about: NotRequired[dict[str, str]]  # tags of the pipeline's run


class Metrics(Event):
    """Numbers of one ``step``."""

    values: dict[str, float]
    step: int  # the epoch


class Tags(Event):
    """Tags of a run."""

    values: dict[str, str]


class Artifact(Event):
    """A ``file`` or folder in the spool."""

    file: str


class Model(Event):
    """The model of the whole pipeline, as files in the spool; registered as ``name``."""

    files: dict[str, str]  # what ``served_model`` loads: a name there to a file, or to the folder of frozen networks
    code: list[str]
    example: str  # .json: a table with some images
    requirements: list[str]
    name: str
    about: NotRequired[dict[str, str]]  # tags of its version


class DataSet(Event):
    """The images that the pipeline's run has read."""

    name: str
    digest: str
    source: str  # where they are
    counts: dict[str, int]


class Note(Event):
    """What the pipeline's run came to, as Markdown; ``{run}`` stands for its id."""

    text: str


class Complete(Event):
    """The fingerprint of each of the pipeline's stages, also of those that DVC restored from its cache."""

    stages: dict[str, str]


class End(Event):
    """The last event. ``status``: FINISHED, FAILED or KILLED."""

    status: str


def tracking_address(root: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, otherwise the absolute address of the project's SQLite file.

    A relative path in it starts at ``root``, also in the copies of a project in which DVC runs experiments.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return SQLITE + _as_database(str((root / "mlflow.db").resolve()))
    path, mark, options = given.removeprefix(SQLITE).partition("?")
    if not given.startswith(SQLITE) or path.startswith(("/", ":", "file:")) or not path:
        return given
    return SQLITE + _as_database(str((root / path).resolve())) + mark + options


def _as_database(path: str) -> str:
    """A path as SQLAlchemy reads it back from an address, in which ? begins the options and % a character's number."""
    return path.replace("%", "%25").replace("?", "%3F")


def spools_folder(root: Path) -> Path:
    """The folder that holds all spools."""
    return root / ".scan" / "tracking"


def spools(root: Path) -> list[Path]:
    """All spools, oldest first, including those that are being written or delivered."""
    return sorted(path.parent for path in spools_folder(root).glob("*/events.jsonl"))


class Tracker:
    """Writes the events of one stage and starts the process that delivers them while the stage runs."""

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
                stdin=subprocess.PIPE,  # end of file tells the process that the stage has ended, however it ended
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / "delivery.log").open("wb"),
                start_new_session=True,  # Ctrl-C ends the stage, not the delivery of what it has logged
            )

    def event(self, kind: str, **values: Any) -> None:
        """Appends one event with the current time. ``values`` are the other keys of that event's type above."""
        if not self._broken:  # after a line that was cut, no further line could be read
            with self._without_raising():
                record = {"event": kind, "time": time.time_ns() // 1_000_000, **in_values(values)}
                self._events.write(json.dumps(record, sort_keys=True) + "\n")
                self._events.flush()

    @contextlib.contextmanager
    def _without_raising(self) -> Iterator[None]:
        """If the disk is full, the stage prints one warning and records no further events."""
        try:
            yield
        except OSError as error:
            if not self._broken:
                reason = " ".join(str(error).split())[:160]
                say(f"{self.stage}: warning: nothing more is recorded for MLflow ({reason})")
            self._broken = True

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Logs numbers to the stage's run; ``step`` is the epoch."""
        self.event("metrics", values=values, step=step)

    def copy(self, path: Path) -> str:
        """Copies a file or folder into the spool, where no later run changes it; returns the copy's name there."""
        self._copies += 1
        target = self.folder / "files" / str(self._copies) / path.name
        with self._without_raising():
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)
        return target.relative_to(self.folder).as_posix()

    def save(self, name: str, content: bytes) -> str:
        """Writes a small file into the spool; returns its name there."""
        with self._without_raising():
            (self.folder / name).write_bytes(content)
        return name

    def artifact(self, path: Path, parent: bool = False) -> None:
        """Logs a file or folder, if it exists, to the stage's run or, with ``parent``, to the pipeline's."""
        if path.exists():
            self.event("artifact", file=self.copy(path), parent=parent)

    def text(self, name: str, text: str, parent: bool = False) -> None:
        """Logs ``text`` as a file ``name``."""
        self.event("artifact", file=self.save(name, without_passwords(text).encode()), parent=parent)

    def close(self, status: str, seconds: float | None = None) -> None:
        """Ends the stage's run as ``FINISHED`` or ``FAILED`` and waits ``seconds``, by default 60, for the delivery.

        A delivery that takes longer is left alone: it goes on, and ends by itself.
        """
        self.event("end", status=status)
        with contextlib.suppress(OSError):  # closing flushes what a full disk did not take
            self._events.close()
        self._lock.release()
        if self._delivery is None:
            return
        assert self._delivery.stdin is not None
        self._delivery.stdin.close()
        seconds = SECONDS_TO_WAIT if seconds is None else seconds
        again = "send with: scan runs --send"
        try:
            self._delivery.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            say(
                f"{self.stage}: warning: MLflow has not taken the records yet (it did not answer in time); they are "
                f"sent in the background; what stays after that, {again}"
            )
            return
        if self.folder.exists():
            log = (self.folder / "delivery.log").read_text(errors="replace").strip().splitlines()
            reason = (log or ["no reason is given"])[-1]
            say(f"{self.stage}: warning: MLflow did not take the records ({reason[:160]}); kept, {again}")


class NullTracker(Tracker):
    """Records nothing. For every process of a distributed training but the first."""

    def __init__(self) -> None:
        pass

    def event(self, kind: str, **values: Any) -> None:
        """Does nothing."""

    def close(self, status: str, seconds: float | None = None) -> None:
        """Does nothing."""
