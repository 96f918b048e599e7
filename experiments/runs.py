"""Runs of the pipeline as DVC experiments, in clones of the project that share its cache.

A run is one validated set of parameters. Its scores and curves are kept in ``.scan/experiments/results``, under the
hash of parameters, code, the source's files and package versions, so an interrupted ledger continues with the runs that
are missing.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.machine import machine, packages
from experiments.workers import FOLDER, check_committed, make_worker, run_command, worker_environment
from pipeline import artifacts
from pipeline.code import stage_code
from pipeline.environment import data_home
from pipeline.fingerprint import run_key, stage_entries
from pipeline.params import PARAMS_FILE, Params, read_yaml
from pipeline.presets import BASE, PRESETS, complete, preset_values
from pipeline.tracking.spool import tracking_address
from pipeline.weights import named_weights, sign_weights, weights_file
from scan_core.data.open import resolve
from scan_core.data.signature import signature
from scan_core.errors import ScanError

LABELED = Path("experiments/labeled.py")
SWEEP = "digits_quick"  # the preset of most runs, and the shortest
CURVES = (
    "pretext",
    "cluster",
    "selflabel",
    "accuracy_cluster",
    "accuracy_selflabel",
    "purity",
    "confusion",
    "accuracy_at_coverage",
    "candidates",
)


@dataclass(frozen=True)
class Run:
    """A preset with changes and one seed. ``labeled`` runs a command that uses labels after the pipeline's stages."""

    preset: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # dotted name and value; a mapping replaces a mapping
    labeled: tuple[str, ...] = ()  # arguments of ``python -m experiments.labeled``

    def __hash__(self) -> int:
        return hash((self.preset, self.seed, repr(self.changes), self.labeled))  # a change may hold a mapping

    def params(self) -> Params:
        """The validated settings. ``data.split_seed`` is the seed, so each seed has its own split.

        Raises ``ScanError`` if the preset does not allow the changes.
        """
        values = preset_values(PRESETS / f"{self.preset}.yaml")
        for name, value in (("seed", self.seed), ("data.split_seed", self.seed), *self.changes):
            *groups, last = name.split(".")
            inner = values
            for group in groups:
                inner = inner[group]
            inner[last] = value
        # What is relative to the project: a worker has another folder.
        if values["data"]["path"]:
            values["data"]["path"] = str(resolve(values["data"]["path"], Path.cwd()))
        if values["backbone"]["weights"]:
            values["backbone"]["weights"] = str(weights_file(values["backbone"]["weights"], Path.cwd()))
        values = complete(values, read_yaml(PRESETS / BASE), drop=True)  # another method has other settings
        try:
            return Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            reason = " ".join(error.errors()[0]["msg"].removeprefix("Value error, ").split())
            raise ScanError(f"preset {self.preset} does not allow this experiment's settings: {reason}") from None


@dataclass
class Result:
    """What a run leaves."""

    metrics: dict[str, Any]
    curves: dict[str, list[dict[str, str]]]  # plot data by name: rows of a CSV file
    clusters: list[int]  # of each image, ordered by id
    labeled: dict[str, float] = field(default_factory=dict)  # scores that a command with labels printed
    seconds: float = 0.0
    machine: dict[str, str] = field(default_factory=dict)  # where it ran, with date, commit and package versions


def run_all(runs: Iterable[Run], jobs: int, say: Callable[[str], None]) -> dict[Run, Result]:
    """All results, after ``jobs`` workers have executed the runs that have none.

    One worker executes all runs of a pretext task, so the task is trained once. Raises ``ScanError`` if files that a
    run depends on are not committed, or if a run fails.
    """
    runs = list(dict.fromkeys(runs))
    missing = list({_result_file(run): run for run in runs if not _result_file(run).exists()}.values())
    if missing:
        check_committed()
        _execute_all(missing, jobs, say)
    return {run: Result(**json.loads(_result_file(run).read_text(encoding="utf-8"))) for run in runs}


def _execute_all(runs: list[Run], jobs: int, say: Callable[[str], None]) -> None:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_pretext_key(run), []).append(run)
    # The longest groups come first so that no core is idle at the end: presets other than the sweeps', and pretext
    # tasks that most runs share.
    waiting = sorted(groups.values(), key=lambda group: (group[0].preset == SWEEP, -len(group)))
    lock, failed, started = threading.Lock(), threading.Event(), time.monotonic()
    environment, done = worker_environment(jobs), 0

    def work(number: int) -> None:
        nonlocal done
        folder = make_worker(number)
        while True:
            with lock:
                if not waiting:
                    return
                group = waiting.pop(0)
            for run in group:
                try:
                    _execute(run, folder, environment)
                except BaseException:  # the other workers stop after their current run
                    failed.set()
                    raise
                if failed.is_set():
                    return
                with lock:
                    done += 1
                    left = (time.monotonic() - started) / done * (len(runs) - done)
                    say(f"{done} of {len(runs)} runs, about {left / 60:.0f} min left")

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work, number) for number in range(jobs)]:
            future.result()


def _execute(run: Run, folder: Path, environment: dict[str, str]) -> None:
    import pyarrow.parquet as pq
    from ruamel.yaml import YAML

    started, name = time.monotonic(), _key(run)
    with (folder / PARAMS_FILE).open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(run.params().model_dump(mode="json"), file)
    run_command(["dvc", "repro", "--quiet"], folder, environment)
    run_command(["dvc", "exp", "save", "--force", "--name", f"scan-{name}"], folder, environment)
    labeled: dict[str, float] = {}
    if run.labeled:
        printed = run_command(["python", "-m", "experiments.labeled", *run.labeled], folder, environment)
        labeled = json.loads(printed.splitlines()[-1])
    head = run_command(["git", "rev-parse", "HEAD"], folder).strip()
    predictions = pq.read_table(folder / artifacts.PREDICTIONS, columns=["id", "cluster"]).drop_null().sort_by("id")
    result = {
        "metrics": artifacts.load_json(folder / artifacts.METRICS),
        "curves": {curve: artifacts.load_csv(folder / artifacts.PLOTS / f"{curve}.csv") for curve in CURVES},
        "clusters": predictions["cluster"].to_pylist(),
        "labeled": labeled,
        "seconds": time.monotonic() - started,
        "machine": {**machine(), "commit": head[:7]},
    }
    saved = f"refs/exps/{head[:2]}/{head[2:]}/scan-{name}"  # in full, because an older commit may have the same name
    run_command(["git", "push", "--quiet", "--force", "origin", f"{saved}:{saved}"], folder)  # for dvc exp show
    target = _result_file(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, target)


def _key(run: Run) -> str:
    """Equal for runs that give the same result, whatever their changes look like."""
    params, root = run.params(), Path.cwd()
    files = signature(params.data, root, data_home(root))["content"]
    signed = {key: sign_weights(key, name, root) for key, name in named_weights(params)}
    code = {stage: stage_code(stage) for stage in stage_entries()}
    key = run_key(params, {**files, "weights": signed, "code": code, "packages": packages()})[:16]
    if run.labeled:  # its code belongs to no stage, so ``run_key`` does not cover it
        script = hashlib.sha256(LABELED.read_bytes()).hexdigest()[:8]
        key = "-".join([key, *run.labeled, script])
    return key


def _result_file(run: Run) -> Path:
    return FOLDER / "results" / f"{_key(run)}.json"


def _pretext_key(run: Run) -> str:
    """Equal for runs that can share the pretext task, or the features of frozen networks, whatever the seed."""
    frozen = run.params().pretext.method == "frozen"
    values = (replace(run, seed=0) if frozen else run).params().model_dump(mode="json")
    groups = ("data", "embed") if frozen else ("seed", "precision", "data", "backbone", "pretext")
    return json.dumps({group: values[group] for group in groups}, sort_keys=True)


def deliver_to_mlflow(say: Callable[[str], None]) -> None:
    """Delivers the workers' records. It is optional because it takes about five seconds per run."""
    from pipeline.tracking.delivery import send_waiting
    from pipeline.tracking.execution import project_name
    from pipeline.tracking.mlflow_runs import connect

    os.environ["MLFLOW_TRACKING_URI"] = tracking_address(Path.cwd())
    os.environ["MLFLOW_EXPERIMENT_NAME"] = project_name(Path.cwd())
    for folder in sorted(FOLDER.glob("worker-*")):
        try:
            connect(Path.cwd())  # makes MLflow's experiment, whose artifacts are where its maker is: in the project
            send_waiting(folder)
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            reason = " ".join(str(error).split())[:200]
            say(f"MLflow does not take the records of {folder}: {reason}; call this again with --to-mlflow")
