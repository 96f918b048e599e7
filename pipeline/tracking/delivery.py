"""Delivers spools to MLflow, in a separate process.

``python -m pipeline.tracking.delivery ROOT SPOOL`` follows a spool until standard input ends, because then the stage
has ended. If the server is away, it tries again. The spool notes what has been delivered, so
that sending again repeats nothing. Spools may be delivered in any order, also days later.
"""

import json
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.passwords import WithoutPasswords, without_passwords
from pipeline.tracking.mlflow_runs import Delivery, connect
from pipeline.tracking.spool import DELIVERY_LOCK, STAGE_LOCK, End, Event, spools, spools_folder, tracking_address
from scan_core.errors import ScanError

SECONDS_BETWEEN_TRIES = (1.0, 60.0)  # the first time, and at most
SECONDS_AFTER_STAGE = 900  # after which a delivery gives up; the stage has long gone on


SENT = ".sent-"  # begins the name of a spool that is about to be deleted


class SpoolFollower:
    """Yields a stage's events as it writes them until standard input ends, and then the remaining ones."""

    def __init__(self, folder: Path) -> None:
        self._path, self._alive = folder / "events.jsonl", True
        self._wait = SECONDS_BETWEEN_TRIES[0]

    def __iter__(self) -> Iterator[Event]:
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
        """Waits after a failed try, twice as long each time; returns whether the stage is still running."""
        self._listen(self._wait)
        self._wait = min(2 * self._wait, SECONDS_BETWEEN_TRIES[1])
        return self._alive

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        self._alive = not (ready and not sys.stdin.buffer.read(1))


def recorded(folder: Path) -> list[Event]:
    """All events of a spool. The last line of a killed stage may be cut off; such a line is left out."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def send(root: Path, folder: Path, events: Iterable[Event], wait: Callable[[], bool] = lambda: False) -> None:
    """Delivers the events that have not arrived yet, and deletes the spool.

    If an event does not arrive, it is sent again as long as ``wait`` returns true; then what MLflow raised is raised.
    Without an end event the stage was killed, and its run is marked so.
    """
    delivery = Delivery(root, folder)
    ended = False
    for number, event in enumerate(events):
        ended = event["event"] == "end"
        while number >= delivery.done:
            try:
                delivery.deliver(event)
            except Exception:  # mlflow and its HTTP client raise many kinds
                if not wait():
                    raise
    if not ended and delivery.runs:
        delivery.deliver(End(event="end", time=time.time_ns() // 1_000_000, status="KILLED"))
    os.replace(folder, folder.with_name(SENT + folder.name))  # of half a spool nobody could say that it has been sent
    delete_sent(root)


def delete_sent(root: Path) -> None:
    """Deletes spools that have been delivered, also those in whose deletion a process was killed."""
    for sent in spools_folder(root).glob(f"{SENT}*"):
        shutil.rmtree(sent, ignore_errors=True)


def send_waiting(root: Path) -> int:
    """Delivers every spool except those of running stages, oldest first; returns how many.

    Raises ``ScanError`` if MLflow cannot be reached or, at the end, if a spool could not be delivered.
    """
    delete_sent(root)
    sent, failed = 0, {}
    waiting = spools(root)
    if waiting:
        try:
            connect(root)  # if the server is away, this fails once, and not once per spool
        except Exception as error:  # mlflow and its HTTP client raise many kinds
            raise ScanError(
                f"MLflow at {without_passwords(tracking_address(root))} does not take the records ({_reason(error)}); "
                "run scan runs --send again when it does"
            ) from error
    for folder in waiting:
        try:
            with try_lock(folder / STAGE_LOCK), try_lock(folder / DELIVERY_LOCK):
                send(root, folder, recorded(folder))
                sent += 1
        except Timeout:  # the spool is being written or delivered
            continue
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            failed[folder] = _reason(error)
    if failed:
        first, reason = next(iter(failed.items()))
        raise ScanError(
            f"{len(failed)} of {sent + len(failed)} spools could not be delivered; the first is "
            f"{first} ({reason}); run scan runs --send again, or delete the spool"
        )
    return sent


def try_lock(lock: Path) -> FileLock:
    """A context that holds ``lock``. Entering it raises ``Timeout`` if another process holds the lock."""
    return FileLock(lock, timeout=0)


def _reason(error: Exception) -> str:
    return without_passwords(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]


def main(root: Path, folder: Path) -> None:
    """Delivers one spool while its stage writes it."""
    with FileLock(folder / DELIVERY_LOCK):
        events = SpoolFollower(folder)
        send(root, folder, events, events.wait)


def give_up() -> None:
    """Ends this process some time after the stage, whatever a server or a disk does. What has not arrived stays."""
    select.select([sys.stdin], [], [])  # nothing is ever written to it, so it is at its end
    time.sleep(SECONDS_AFTER_STAGE)
    print(f"MLflow did not take the records in {SECONDS_AFTER_STAGE} s after the stage's end", file=sys.stderr)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=give_up, daemon=True).start()
    sys.stderr = WithoutPasswords(sys.stderr)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 (the stage prints it in one line, and the spool stays)
        print(_reason(error), file=sys.stderr)
        sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # the stage waits for this end, and after importing mlflow an orderly exit takes half a second
