"""A small copy of the project for tests that run stages."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import Result
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.params import read_yaml
from pipeline.presets import BASE, complete

ROOT = Path(__file__).resolve().parent.parent
CODE = ("scan_core", "pipeline", "stages", "dvc.yaml", ".dvcignore", ".gitignore")
STAGES = ("prepare", "pretext", "embed", "neighbors", "groups", "cluster", "selflabel", "evaluate")
LABEL_STAGES = {"prepare", "evaluate"}
TINY: dict[str, Any] = {
    "precision": "fp32",
    "data": {"size": 8},
    "backbone": {"width": 4},
    "pretext": {"epochs": 3, "batch_size": 256, "projection": 16},
    "neighbors": {"k": 20},
    "cluster": {"epochs": 2, "heads": 2, "neighbors": 5, "batch_size": 256},
    "selflabel": {"epochs": 2, "batch_size": 256, "threshold": 0.12},
    "evaluate": {"kmeans_runs": 2},
}
SOURCE_OUTPUTS = {
    "data/source.json",
    "data/weights.json",
    "data/spaces.json",
    *(f"data/code/{stage}.json" for stage in STAGES),
}
OUTPUTS = {
    *SOURCE_OUTPUTS,
    *(f"data/images/{name}.npy" for name in ("pixels-00000", "copies", "digests", "pretext", "train", "val")),
    *("data/images/stats.json", "data/groups.json"),
    *("data/items/items.parquet", "data/items/findings.csv", "data/labels/labels.npy", "data/labels/classes.json"),
    *(f"data/embeddings/{split}{kind}.npy" for split in ("train", "val") for kind in ("", "_first")),
    *(f"data/embeddings/{name}.npy" for name in ("bank", "bank_lengths", "train_bank", "val_bank")),
    *(f"data/embeddings/{split}_bank_similarity.npy" for split in ("train", "val")),
    *(f"data/neighbors/{split}{kind}.npy" for split in ("train", "val") for kind in ("", "_similarity")),
    *(f"data/assignments/{name}.npy" for name in ("cluster", "heads", "selflabel")),
    *(f"models/{name}.safetensors" for name in ("pretext", "cluster", "selflabel")),
    *("models/selflabel.json", "models/belonging.safetensors"),
    *(f"reports/{name}.json" for name in ("headline", "metrics", "verdict")),
    *("reports/predictions.parquet", "reports/report.html"),
    *("reports/clusters.png", "reports/neighbors.png"),
    *(f"reports/plots/{name}.csv" for name in ("pretext", "cluster", "cluster_heads", "selflabel")),
    *(f"reports/plots/{name}.csv" for name in ("accuracy_cluster", "accuracy_selflabel", "candidates", "confusion")),
    *(f"reports/plots/{name}.csv" for name in ("accuracy_at_coverage", "numbers", "purity", "sizes", "tree")),
}  # fmt: skip


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` put in, group by group."""
    merged = dict(values)
    for key, change in changes.items():
        both = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], change) if both else change
    return merged


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` whose method or kind has changed, with the settings that it has: those it lacks are the base's."""
    settings: dict[str, Any] = complete(values, read_yaml(ROOT / "presets" / BASE), drop=True)
    return settings


def set_params(project: Path, changes: dict[str, Any], source: Path | None = None) -> None:
    """Rewrites the project's params.yaml: those of ``source`` (its own by default) with ``changes``."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((source or project / "params.yaml").read_text(encoding="utf-8"))
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        changed = merge(values, changes)
        methods = [name for name in ("pretext", "cluster") if "method" in changes.get(name, {})]
        yaml.dump(completed(changed) if methods else changed, file)


def make_project(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """The real code and the real params.yaml, made tiny, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    set_params(folder, merge(TINY, changes or {}), ROOT / "params.yaml")
    return folder


def make_dvc_project(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """``make_project`` under git and DVC, committed."""
    project = make_project(folder, changes)
    for line in (
        "git init -q", "git config user.name test", "git config user.email test@example.org", "dvc init -q",
        "dvc config core.analytics false", "git add -A", "git commit -qm start",
    ):  # fmt: skip
        run(project, *line.split())
    return project


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with its own interpreter first, no settings of the caller's, and ``extra``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SCAN_", "MLFLOW_", "DVC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "SCAN_THREADS": "1", "SCAN_DEVICE": "cpu", "DVC_NO_ANALYTICS": "1", **extra}


def run(project: Path, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
    """A command in ``project``; its output is text. Raises with that output if it fails and ``check`` is set."""
    done = subprocess.run(command, cwd=project, env=environment(**extra), capture_output=True, text=True, timeout=900)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def run_stage(project: Path, stage: str, *arguments: str, check: bool = True, **extra: str) -> Result:
    """One stage by itself, inside this process (imports take longer than tiny stages), without MLflow."""
    app = importlib.import_module(f"stages.{stage}").app
    env = environment(SCAN_TRACKING="spool", **extra)
    with contextlib.chdir(project), mock.patch.dict(os.environ, env, clear=True):
        done = CliRunner().invoke(app, arguments)
    if check and done.exit_code:
        raise AssertionError(f"{stage} ended with {done.exit_code}\n{done.output}")
    return done


def run_stages(project: Path, *stages: str) -> None:
    """``run_stage`` of one after the other."""
    for stage in stages:
        run_stage(project, stage)


def error_of(project: Path, stage: str, **extra: str) -> str:
    """The one line in which a stage fails."""
    done = run_stage(project, stage, check=False, **extra)
    (error,) = (line for line in done.stderr.splitlines() if "error" in line.lower())
    assert done.exit_code == 1 and "Traceback" not in done.stderr and done.stderr.endswith(f"{error}\n")
    assert error.startswith(f"{stage}: error: ")
    return error


def half_done(project: Path, command: str, saved: str = "state-*.pt", **extra: str) -> subprocess.Popen[str]:
    """A stage's command, in a process group of its own, that has saved some of its work, each in a file ``saved``."""
    env = environment(**{"SCAN_TRACKING": "spool", "SCAN_SAVE_SECONDS": "0", **extra})
    # A signal that is ignored, as in a background job, would stay so in what is started there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command.split(), cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not list((project / ".scan" / "resume").rglob(saved)):
        assert process.poll() is None and time.monotonic() < deadline, "nothing was saved before the end"
        time.sleep(0.002)
    return process


def report_of(project: Path) -> dict[str, Any]:
    """The data in reports/report.html."""
    text = (project / "reports" / "report.html").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return found


def stages_run(output: str) -> list[str]:
    """The stages that a ``dvc repro`` has executed, without ``source``, which looks at every run."""
    found = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    return [stage for stage in found if stage != "source"]


def files(project: Path) -> set[str]:
    """Files under data/, models/ and reports/."""
    return {
        path.relative_to(project).as_posix()
        for folder in ("data", "models", "reports")
        for path in (project / folder).rglob("*")
        if path.is_file()
    }


PERMUTE_LABELS = """
import numpy as np
import sklearn.datasets as datasets

original = datasets.load_digits

def load_digits(*args, **kwargs):
    digits = original(*args, **kwargs)
    digits.target = np.random.default_rng(0).permutation(digits.target)
    return digits

datasets.load_digits = load_digits
"""


def permuted_labels(folder: Path) -> str:
    """A PYTHONPATH under which scikit-learn's digits carry one another's labels."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(PERMUTE_LABELS)
    return str(folder)
