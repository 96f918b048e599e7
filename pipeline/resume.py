"""Unfinished training, so that a killed stage goes on where it was.

Order: the stage takes the lock of its fingerprint; a saved state of the same fingerprint and the same environment is
loaded; training goes on and saves at epoch boundaries, each time whole or not at all; when the outputs are in place
the states are deleted. Any other fingerprint has a folder of its own, so a changed setting starts afresh, and any other
environment a file of its own there, so that starting afresh by mistake destroys nothing. Where another run waits for
the lock, the state of the last epoch is left to it: it resumes at the end.
"""

import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.environment import allowed, seconds_between_saves
from pipeline.progress import say
from scan_core.errors import ScanError

DAYS_KEPT = 7  # decoded images of a source that was left for another: they may take hours to make, and much room


class Scratch:
    """The folder of one stage and fingerprint, locked until ``close``."""

    def __init__(self, root: Path, stage: str, fingerprint: str) -> None:
        self.folder = root / ".scan" / "resume" / f"{stage}-{fingerprint[:16]}"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._saved = time.monotonic()
        self._every = seconds_between_saves()
        self._handed_over = False
        self._lock = FileLock(self.folder.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            say(f"{stage}: another run is doing the same thing; waiting for it")
            with FileLock(self.folder.with_suffix(f".waiting-{uuid.uuid4().hex[:8]}")):
                self._lock.acquire()
        self.folder.mkdir(parents=True, exist_ok=True)

    def delete_stale(self, stage: str) -> None:
        """Deletes what runs of ``stage`` on other inputs left unfinished a week ago or earlier, none being at work."""
        for folder in self.folder.parent.glob(f"{stage}-*"):
            old = folder.is_dir() and time.time() - folder.stat().st_mtime > DAYS_KEPT * 86_400
            if old and folder != self.folder:
                lock = FileLock(folder.with_suffix(".lock"))
                try:
                    with lock.acquire(timeout=0):
                        shutil.rmtree(folder, ignore_errors=True)
                except Timeout:
                    continue

    def file(self, environment: dict[str, Any]) -> Path:
        """Where a state lies that was made in ``environment``."""
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()
        return self.folder / f"state-{digest[:8]}.pt"

    def load(self, environment: dict[str, Any]) -> dict[str, Any] | None:
        """The saved state if there is one that this environment continues to the bit, or ``SCAN_RESUME=any`` is set."""
        import torch

        whatever, file = allowed("SCAN_RESUME", "any"), self.file(environment)
        if not file.exists():
            others = sorted(self.folder.glob("state-*.pt"), key=lambda path: path.stat().st_mtime)
            if not others:
                return None
            file = others[-1]
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state, made_in = saved["state"], saved["environment"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ScanError(f"{file} cannot be read ({type(error).__name__}); delete it to start afresh") from error
        reached = f"epoch {state['epoch']}" + (f" and {state['step']} steps of the next" if state["step"] else "")
        changed = [f"{k} {made_in.get(k)} -> {v}" for k, v in environment.items() if made_in.get(k) != v]
        if changed and not whatever:
            say(
                f"not resuming after {reached}, because the bytes would differ ({', '.join(changed)}); "
                "that state is kept until the stage is done, and SCAN_RESUME=any resumes from it"
            )
            return None
        if changed:
            say(f"resuming although the bytes will differ ({', '.join(changed)})")
        say(f"resuming after {reached}")
        return dict(state)

    def should_save(self) -> bool:
        """Whether it is time to save again (``SCAN_SAVE_SECONDS``, 10 by default)."""
        return time.monotonic() - self._saved >= self._every

    def save(self, state: dict[str, Any], environment: dict[str, Any]) -> None:
        """Writes the state beside the old one and then takes its place."""
        import torch

        file = self.file(environment)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as opened:
            torch.save({"state": state, "environment": environment}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, file)
        self._saved = time.monotonic()

    def save_for_waiter(self, state: dict[str, Any], environment: dict[str, Any]) -> None:
        """Saves the state of the last epoch if another run waits for it: the second need not train again."""
        if any(locked(file) for file in self.folder.parent.glob(f"{self.folder.name}.waiting-*")):
            try:
                self.save(state, environment)
                self._handed_over = True
            except (OSError, RuntimeError) as error:  # its own outputs are worth more than the other's time
                say(f"the run that waits for this one has to train again ({error})")

    def close(self, finished: bool) -> None:
        """Gives the lock back; deletes all states if the stage has finished and no other run waits for the last."""
        if finished and not self._handed_over:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def locked(file: Path) -> bool:
    """Whether a process holds the lock ``file``; one that nobody holds is deleted."""
    try:
        with FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def launched() -> tuple[int, int]:
    """Which process this is, from 0, and how many torchrun has started; 0 and 1 without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def training_environment(precision: str, device: str, processes: int = 1) -> dict[str, Any]:
    """What else the bytes of a training depend on, apart from the fingerprint."""
    import torch

    processor = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "precision": precision,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
