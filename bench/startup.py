"""What a stage takes before it computes: whole stages on few small images, against the bare imports."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.timing import Row
from tests.project import STAGES, environment, make_dvc_project, run

TRAINING = ("pretext", "cluster", "selflabel")
# What a stage itself imports. It never imports MLflow: the process that delivers its records does.
IMPORTS = {
    "prepare": "numpy, pyarrow.parquet",
    "neighbors": "numpy, faiss",
    "evaluate": "torch, sklearn.cluster, matplotlib.pyplot, pyarrow.parquet",
}
SETTINGS = {
    "data": {"size": 8},
    "pretext": {"epochs": 1, "batch_size": 512},
    "cluster": {"epochs": 1, "heads": 1, "batch_size": 512},
    "selflabel": {"epochs": 0, "batch_size": 512},
}


def measure(rounds: int) -> list[Row]:
    """Each stage's seconds beyond bare imports, the two taking turns.

    A stage runs first with MLflow, against importing torch, mlflow and, if it trains, lightning_fabric, as the target
    says; then without (``SCAN_TRACKING=spool``), against its own imports.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        project = make_dvc_project(Path(folder) / "project", SETTINGS)
        run(project, "dvc", "repro", "--quiet")
        rows = []
        for stage in STAGES:
            fabric = ", lightning_fabric" if stage in TRAINING else ""
            for what, imports, target, variables in (
                (f"stage {stage}", f"torch, mlflow{fabric}", " (target: ≤ 1 s)", {}),
                (f"stage {stage} without MLflow", IMPORTS.get(stage, f"torch{fabric}"), "", {"SCAN_TRACKING": "spool"}),
            ):
                rows.append(_compare_with_imports(project, what, stage, f"import {imports}", target, rounds, variables))
        idle = sorted(_seconds(project, ["dvc", "repro"], {}) for _ in range(rounds + 1))[rounds // 2]
        rows.append(Row("`dvc repro` with nothing to do", 1 / idle, note=f"{idle:.2f} s", mib=0))
        return rows


def _compare_with_imports(
    project: Path, what: str, stage: str, imports: str, target: str, rounds: int, variables: dict[str, str]
) -> Row:
    pairs = [
        (
            _seconds(project, [sys.executable, "-m", f"stages.{stage}"], variables),
            _seconds(project, [sys.executable, "-c", imports], variables),
        )
        for _ in range(rounds + 1)
    ][1:]  # the first round reads everything from disk
    beyond = statistics.median(whole - bare for whole, bare in pairs)
    whole, bare = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratios = [bare / whole for whole, bare in pairs]
    return Row(
        f"{what}, whole, on 1,797 images of 8x8", 1 / whole, f"`{imports}`", ratios,
        note=f"{whole:.2f} s against {bare:.2f} s: {beyond:+.2f} s{target}", mib=0,
    )  # fmt: skip


def _seconds(project: Path, command: list[str], variables: dict[str, str]) -> float:
    """Seconds of a command in a user's environment: compiled files are kept, and all cores are used."""
    kept = environment(**variables)
    for name in ("SCAN_THREADS", "PYTHONDONTWRITEBYTECODE"):
        kept.pop(name, None)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=kept, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - started
