"""Where experiments run: clones of the last commit that share the project's cache, and the environment of commands."""

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
    """Raises ``ScanError`` if code or settings differ from the last commit, which is what workers run."""
    changed = [line[3:] for line in run_command(["git", "status", "--porcelain", "--", *CODE], Path()).splitlines()]
    if changed:
        raise ScanError(f"{', '.join(changed[:5])} differ from the last commit; experiments run what is committed")


def make_worker(number: int) -> Path:
    """A clone of the last commit that shares DVC's cache. It keeps its workspace between calls."""
    folder = (FOLDER / f"worker-{number}").resolve()
    commit = run_command(["git", "rev-parse", "HEAD"], Path()).strip()
    if not (folder / ".git").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_command(["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(folder)], Path())
        for key, value in (("user.name", "experiments"), ("user.email", "experiments@localhost")):
            run_command(["git", "config", key, value], folder)
    run_command(["git", "fetch", "--quiet", "origin"], folder)
    run_command(["git", "checkout", "--quiet", "--force", "--detach", commit], folder)
    (folder / "dvc.lock").unlink(missing_ok=True)  # it names the project's outputs, of any package versions
    run_command(["dvc", "cache", "dir", "--local", str(_cache_folder())], folder)
    return folder


def _cache_folder() -> Path:
    """A cache with the project's files, and a run cache of its own per package versions, which DVC does not track."""
    cache = (FOLDER / f"cache-{hashlib.sha256(packages().encode()).hexdigest()[:8]}").resolve()
    files = Path(".dvc/cache/files").resolve()
    for folder in (cache, files):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # an earlier call or another worker made the link
        (cache / "files").symlink_to(files)
    return cache


def worker_environment(jobs: int) -> dict[str, str]:
    """Variables of a run's commands: their share of the cores, and the project's data and MLflow."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return {
        "SCAN_THREADS": os.environ.get("SCAN_THREADS", threads),
        "OMP_NUM_THREADS": threads,
        "SCAN_DATA": str(data_home(Path.cwd())),
        "SCAN_TRACKING": "spool",
        "MLFLOW_TRACKING_URI": tracking_address(Path.cwd()),
    }


def run_command(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """The output of a command of this Python environment. Raises ``ScanError`` with its last lines if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, **(environment or {})}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
        raise ScanError(f"{' '.join(command[:4])} failed in {folder}: {last[-600:]}")
    return done.stdout
