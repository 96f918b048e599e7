"""What a stage takes before it computes: on images so few and small that the rest is nothing, beside bare imports."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.timing import Row
from tests.project import STAGES, environment, make_dvc_project, run

TRAINS = ("pretext", "cluster", "selflabel")
# What a stage itself imports: MLflow is imported by the process that delivers its records, beside it.
OWN = {
    "prepare": "numpy, pyarrow.parquet",
    "neighbors": "numpy, faiss",
    "evaluate": "torch, sklearn.cluster, matplotlib.pyplot, pyarrow.parquet",
}
FEW = {
    "data": {"size": 8},
    "pretext": {"epochs": 1, "batch_size": 512},
    "cluster": {"epochs": 1, "heads": 1, "batch_size": 512},
    "selflabel": {"epochs": 0, "batch_size": 512},
}


def _run(project: Path, command: list[str], **extra: str) -> float:
    """Seconds of a command."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=_environment(**extra), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - started


def _environment(**extra: str) -> dict[str, str]:
    """As a user has it: compiled files are kept, all cores are used."""
    kept = environment(**extra)
    kept.pop("SCAN_THREADS")
    return {name: value for name, value in kept.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(spells: int) -> list[Row]:
    """Each stage's seconds beyond bare imports, in turn.

    First with MLflow, beside importing torch, mlflow and, where it trains, lightning_fabric, as the bar has it; then
    without (``SCAN_TRACKING=spool``), beside what it imports itself.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        project = make_dvc_project(Path(folder) / "project", FEW)
        run(project, "dvc", "repro", "--quiet")
        rows = []
        for stage in STAGES:
            fabric = ", lightning_fabric" if stage in TRAINS else ""
            for what, imports, bar, extra in (
                (f"stage {stage}", f"torch, mlflow{fabric}", " (bar: ≤ 1 s)", {}),
                (f"stage {stage} without MLflow", OWN.get(stage, f"torch{fabric}"), "", {"SCAN_TRACKING": "spool"}),
            ):
                rows.append(_beside(project, what, stage, f"import {imports}", bar, spells, extra))
        idle = sorted(_run(project, ["dvc", "repro"]) for _ in range(spells + 1))[spells // 2]
        rows.append(Row("`dvc repro` with nothing to do", 1 / idle, note=f"{idle:.2f} s", mib=0))
        return rows


def _beside(project: Path, what: str, stage: str, imports: str, bar: str, spells: int, extra: dict[str, str]) -> Row:
    pairs = [
        (
            _run(project, [sys.executable, "-m", f"stages.{stage}"], **extra),
            _run(project, [sys.executable, "-c", imports]),
        )
        for _ in range(spells + 1)
    ][1:]  # the first has read everything from disk
    beyond = statistics.median(whole - bare for whole, bare in pairs)
    whole, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [bare / whole for whole, bare in pairs]
    return Row(
        f"{what}, whole, on 1,797 images of 8x8", 1 / whole, f"`{imports}`", ratios,
        note=f"{whole:.2f} s against {bare:.2f} s: {beyond:+.2f} s{bar}", mib=0,
    )  # fmt: skip
