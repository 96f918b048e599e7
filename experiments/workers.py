"""Where experiments run: clones of the last commit that share the project's cache, and what commands find there."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.machine import packages
from pipeline.environment import data_home
from pipeline.tracking.spool import tracking_address
from scan_core.errors import ScanError

FOLDER = Path(".scan/experiments")
CODE = ("scan_core", "pipeline", "stages", "experiments", "presets", "dvc.yaml")


def check_committed() -> None:
    """Raises ``ScanError`` where code or settings are not as in the last commit, which is what workers have."""
    changed = [line[3:] for line in call(["git", "status", "--porcelain", "--", *CODE], Path()).splitlines()]
    if changed:
        raise ScanError(f"{', '.join(changed[:5])} differ from the last commit; experiments run what is committed")


def make_worker(number: int) -> Path:
    """A clone of the last commit that shares DVC's cache, and remembers its own workspace between calls."""
    folder = (FOLDER / f"worker-{number}").resolve()
    commit = call(["git", "rev-parse", "HEAD"], Path()).strip()
    if not (folder / ".git").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        call(["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(folder)], Path())
        for key, value in (("user.name", "experiments"), ("user.email", "experiments@localhost")):
            call(["git", "config", key, value], folder)
    call(["git", "fetch", "--quiet", "origin"], folder)
    call(["git", "checkout", "--quiet", "--force", "--detach", commit], folder)
    (folder / "dvc.lock").unlink(missing_ok=True)  # names outputs of the project, of whatever package versions
    call(["dvc", "cache", "dir", "--local", str(_cache())], folder)
    return folder


def _cache() -> Path:
    """The project's cache of files, and a run cache of these package versions alone, which DVC does not look at."""
    cache = (FOLDER / f"cache-{hashlib.sha256(packages().encode()).hexdigest()[:8]}").resolve()
    files = Path(".dvc/cache/files").resolve()
    for each in (cache, files):
        each.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # of an earlier call, or of another worker
        (cache / "files").symlink_to(files)
    return cache


def worker_environment(jobs: int) -> dict[str, str]:
    """What a run's commands find in theirs: their share of the cores, the project's data and MLflow."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return {
        "SCAN_THREADS": os.environ.get("SCAN_THREADS", threads),
        "OMP_NUM_THREADS": threads,
        "SCAN_DATA": str(data_home(Path.cwd())),
        "SCAN_TRACKING": "spool",
        "MLFLOW_TRACKING_URI": tracking_address(Path.cwd()),
    }


def search_path() -> str:
    """PATH with this environment's commands first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def call(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """The output of a command. Raises ``ScanError`` with its last lines where it fails."""
    variables = {**os.environ, "PATH": search_path(), **(environment or {})}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
        raise ScanError(f"{' '.join(command[:4])} failed in {folder}: {last[-600:]}")
    return done.stdout
