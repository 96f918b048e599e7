"""What a stage takes before it computes: on images so few and small that the rest is nothing, beside bare imports."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.timing import Row
from tests.project import STAGES, environment, make_dvc_project, run

IMPORTS = {"pretext": ", lightning_fabric", "cluster": ", lightning_fabric", "selflabel": ", lightning_fabric"}
FEW = {
    "data": {"size": 8},
    "pretext": {"epochs": 1, "batch_size": 512},
    "cluster": {"epochs": 1, "heads": 1, "batch_size": 512},
    "selflabel": {"epochs": 0, "batch_size": 512},
}


def _seconds(project: Path, *command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=project, env=_environment(), check=True, capture_output=True)
    return time.perf_counter() - started


def _environment() -> dict[str, str]:
    """As a user has it: compiled files are kept, all cores are used."""
    kept = environment()
    kept.pop("SCAN_THREADS")
    return {name: value for name, value in kept.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(spells: int) -> list[Row]:
    """Each stage's seconds beyond the imports' (torch, mlflow, and lightning_fabric where it trains), in turn."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        project = make_dvc_project(Path(folder) / "project", FEW)
        run(project, "dvc", "repro", "--quiet")
        rows = []
        for stage in STAGES:
            imports = "import torch, mlflow" + IMPORTS.get(stage, "")
            pairs = [
                (
                    _seconds(project, sys.executable, "-m", f"stages.{stage}"),
                    _seconds(project, sys.executable, "-c", imports),
                )
                for _ in range(spells + 1)
            ][1:]  # the first has read everything from disk
            beyond = sorted(whole - bare for whole, bare in pairs)
            whole, bare = (sorted(each)[spells // 2] for each in zip(*pairs, strict=True))
            row = Row(f"stage {stage}, whole, on 1,797 images of 8x8", 1 / whole, f"`{imports}`")
            row.ratios = [bare / whole for whole, bare in pairs]
            row.note = f"{whole:.2f} s against {bare:.2f} s: {beyond[spells // 2]:+.2f} s (bar: ≤ 1 s)"
            rows.append(row)
        idle = sorted(_seconds(project, "dvc", "repro") for _ in range(spells + 1))[spells // 2]
        rows.append(Row("`dvc repro` with nothing to do", 1 / idle, note=f"{idle:.2f} s"))
        return rows
