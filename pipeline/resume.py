"""Unfinished training, so that a killed stage resumes where it was. ``Stage.train`` uses it for a ``TrainingState``.

The order: the stage takes the lock of its fingerprint; it loads a state that was saved under the same fingerprint in
the same environment; it trains, and saves its state after any step, each time completely or not at all; when its
outputs are in place, it deletes the states. Each fingerprint has its own folder, so a changed setting starts anew. Each
environment has its own file there, so that starting anew by mistake destroys nothing. If another run waits for the
lock, the last state is left to that run, which resumes at the end.
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

from pipeline.artifacts import replace_text
from pipeline.environment import allowed, seconds_between_saves
from pipeline.progress import say
from scan_core.errors import exhausted

DAYS_KEPT = 7  # decoded images of another source may take hours to make, and much room


class ScratchFolder:
    """The folder of one stage and fingerprint, locked until ``close``."""

    def __init__(self, root: Path, stage: str, fingerprint: str) -> None:
        self.folder = root / ".scan" / "resume" / f"{stage}-{fingerprint[:16]}"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._saved = time.monotonic()
        self._every = seconds_between_saves()
        self._left_for_waiter = self._full = False
        self._lock = FileLock(self.folder.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            say(f"{stage}: another run ({holder(Path(self._lock.lock_file))}) does the same; waiting for it")
            with FileLock(self.folder.with_suffix(f".waiting-{uuid.uuid4().hex[:8]}")):
                self._lock.acquire()
        self.folder.mkdir(parents=True, exist_ok=True)

    def delete_stale(self, stage: str) -> None:
        """Deletes unfinished work of ``stage`` on other inputs that is a week old, unless a run holds its lock."""
        for folder in self.folder.parent.glob(f"{stage}-*"):
            old = folder.is_dir() and time.time() - folder.stat().st_mtime > DAYS_KEPT * 86_400
            if old and folder != self.folder:
                delete_unused(folder)

    def file(self, environment: dict[str, Any]) -> Path:
        """The file of the state that was made in ``environment``."""
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()
        return self.folder / f"state-{digest[:8]}.pt"

    def load(self, environment: dict[str, Any]) -> dict[str, Any] | None:
        """A saved state that this environment continues bit for bit, or any one if ``SCAN_RESUME=any`` is set."""
        import torch

        whatever, file = allowed("SCAN_RESUME", "any"), self.file(environment)
        if not file.exists():
            others = sorted(self.folder.glob("state-*.pt"), key=lambda path: path.stat().st_mtime)
            if not others:
                return None
            file = others[-1]
        try:
            if (sums := _sums(file)) and _sha256(file) not in sums:
                raise ValueError
            saved = torch.load(file, map_location="cpu", weights_only=True)
            state, made_in = saved["state"], saved["environment"]
        except Exception:  # noqa: BLE001 (torch raises many kinds for a damaged file)
            damaged = file.with_suffix(".damaged")
            os.replace(file, damaged)
            say(f"the saved state is damaged and is put aside as {damaged}; starting anew")
            return None
        epoch, step = state["epoch"], state["step"]
        reached = f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"
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
        """True if ``SCAN_SAVE_SECONDS`` have passed since the last save."""
        return time.monotonic() - self._saved >= self._every

    def save(self, state: dict[str, Any], environment: dict[str, Any]) -> None:
        """Writes the state to another file, which then replaces the old one, and its SHA-256 beside it.

        Raises ``OSError`` or ``RuntimeError`` if there is no room; the old state is left as it was, and nothing else.
        """
        import torch

        self._saved = time.monotonic()
        file = self.file(environment)
        partial = file.with_suffix(".partial")
        try:
            with partial.open("wb") as opened:
                torch.save({"state": state, "environment": environment}, opened)
                opened.flush()
                os.fsync(opened.fileno())
            # Earlier ones, too, because the old state stands there until it is replaced, and a kill may come before.
            replace_text(file.with_suffix(".sha256"), "\n".join([*_sums(file)[-8:], _sha256(partial)]))
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    def save_if_room(self, state: dict[str, Any], environment: dict[str, Any]) -> None:
        """``save``; if there is no room, training goes on without, and one line says so."""
        try:
            self.save(state, environment)
            self._full = False
        except (OSError, RuntimeError) as error:  # torch says it by a RuntimeError
            if not self._full:
                reason = exhausted(error) or " ".join(str(error).split())[:120]
                say(f"the state of the training is not saved in {self.folder} ({reason}); training goes on without")
            self._full = True

    def save_for_waiter(self, state: dict[str, Any], environment: dict[str, Any]) -> None:
        """Saves the last state if another run waits for the lock, so that it need not train again."""
        if any(locked(file) for file in self.folder.parent.glob(f"{self.folder.name}.waiting-*")):
            try:
                self.save(state, environment)
                self._left_for_waiter = True
            except (OSError, RuntimeError) as error:  # the outputs of this run are worth more than the other run's time
                say(f"the run that waits for this one has to train again ({error})")

    def close(self, finished: bool) -> None:
        """Releases the lock; deletes all states if the stage has finished and no other run waits."""
        if finished and not self._left_for_waiter:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


def delete_unused(folder: Path) -> None:
    """Deletes a scratch folder, unless a run holds its lock."""
    try:
        with FileLock(folder.with_suffix(".lock")).acquire(timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        pass


def holder(lock: Path) -> str:
    """The process that holds ``lock``, in words; ``another process`` where the system does not say which."""
    try:
        inode, held = str(lock.stat().st_ino), Path("/proc/locks").read_text().splitlines()
    except OSError:  # not Linux
        return "another process"
    of_file = [line.split() for line in held if line.split()[5].rpartition(":")[2] == inode and "->" not in line]
    return f"process {of_file[0][4]}" if of_file and int(of_file[0][4]) > 0 else "another process"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sums(file: Path) -> list[str]:
    """The SHA-256 that a state has or had before, the newest last."""
    sums = file.with_suffix(".sha256")
    return sums.read_text().split() if sums.exists() else []


def locked(file: Path) -> bool:
    """True if a process holds the lock ``file``; a lock that no process holds is deleted."""
    try:
        with FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def launched() -> tuple[int, int]:
    """The number of this process, from 0, and how many torchrun has started; 0 and 1 without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def training_environment(precision: str, device: str, processes: int = 1) -> dict[str, Any]:
    """What the bytes of a training depend on besides the fingerprint."""
    import torch

    processor = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "precision": precision,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
