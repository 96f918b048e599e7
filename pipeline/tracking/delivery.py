"""Delivers a spool of events to MLflow, in a process of its own.

``python -m pipeline.tracking.delivery ROOT SPOOL`` follows the spool until its standard input ends, that is until the stage
has ended; a server that is away meanwhile is tried again. What has been delivered is noted beside the events, so that
sending again repeats nothing. Spools may come in any order, days late.
"""

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.tracking.mlflow_runs import Delivery, connect
from pipeline.tracking.spool import DELIVERY_LOCK, STAGE_LOCK, spools, spools_folder
from scan_core.errors import ScanError

SECONDS_BETWEEN_TRIES = (1.0, 60.0)  # at first, and at most


class Followed:
    """Events of a stage as it writes them, until standard input ends; then those that are left."""

    def __init__(self, folder: Path) -> None:
        self._path, self._alive = folder / "events.jsonl", True
        self._wait = SECONDS_BETWEEN_TRIES[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open(encoding="utf-8") as file:
            line = ""
            while True:
                line += file.readline()
                if line.endswith("\n"):
                    yield json.loads(line)
                    line, self._wait = "", SECONDS_BETWEEN_TRIES[0]
                elif self._alive:
                    self._listen(0.2)
                else:
                    return

    def wait(self) -> bool:
        """After an event that did not arrive: waits, longer each time, and says whether the stage is still alive."""
        self._listen(self._wait)
        self._wait = min(2 * self._wait, SECONDS_BETWEEN_TRIES[1])
        return self._alive

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        self._alive = not (ready and not sys.stdin.buffer.read(1))


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The whole events of a spool; the last line of a killed stage may be cut and is left out."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def send(root: Path, folder: Path, events: Iterable[dict[str, Any]], wait: Callable[[], bool] | None = None) -> None:
    """Delivers what has not arrived yet and deletes the spool. A stage that was killed is marked so.

    An event that does not arrive is sent again for as long as ``wait``, which is called in between, is true; then, and
    without it, what MLflow raised is raised.
    """
    delivery = Delivery(root, folder)
    ended = False
    for number, record in enumerate(events):
        ended = record["event"] == "end"
        while number >= delivery.done:
            try:
                delivery.deliver(record)
            except Exception:  # mlflow and its HTTP client raise many kinds
                if not (wait and wait()):
                    raise
    if not ended and delivery.runs:
        delivery.deliver({"event": "end", "time": time.time_ns() // 1_000_000, "status": "KILLED"})
    shutil.rmtree(folder)


def send_waiting(root: Path) -> int:
    """Delivers every spool that waits, oldest first; returns how many. Spools of running stages are left to them.

    Raises what MLflow raises where it cannot be reached, and ``ScanError`` at the end, naming a spool that it did not
    take and why.
    """
    sent, left = 0, {}
    waiting = spools(root)
    if waiting:
        connect(root)  # or every spool would wait for a server that is away
    for folder in waiting:
        try:
            with free(folder / STAGE_LOCK), free(folder / DELIVERY_LOCK):
                send(root, folder, recorded(folder))
                sent += 1
        except Timeout:  # it is being written or delivered
            continue
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            left[folder.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if left:
        first, reason = next(iter(left.items()))
        others = f", and {len(left) - 1} more," if len(left) > 1 else ""
        raise ScanError(
            f"{sent} of {sent + len(left)} spools were taken; {spools_folder(root) / first}{others} not ({reason}): "
            "call scan send again, or delete what cannot be delivered"
        )
    return sent


def free(lock: Path) -> FileLock:
    """A context that holds ``lock``, or raises ``Timeout`` where somebody else does."""
    return FileLock(lock, timeout=0)


def main(root: Path, folder: Path) -> None:
    """Follows one spool, as its stage writes it."""
    with FileLock(folder / DELIVERY_LOCK):
        events = Followed(folder)
        send(root, folder, events, events.wait)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 (whatever it is, the stage prints it as one line and the spool stays)
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # the stage waits for this end, and an interpreter that has imported mlflow takes half a second to it
