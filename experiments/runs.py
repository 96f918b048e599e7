"""Many runs of the pipeline, each a DVC experiment, in copies of the project that share its cache.

A run is one validated set of parameters. Its scores and curves are kept in ``.scan/experiments/results``, named by the
hash of parameters, code, the source's files and package versions, so that a ledger that was interrupted goes on with
what is missing.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.machine import machine, packages
from experiments.warm import WarmPython
from experiments.workers import FOLDER, call, check_committed, make_worker, search_path, worker_environment
from pipeline import artifacts
from pipeline.code import stage_code
from pipeline.environment import data_home
from pipeline.fingerprint import run_key, stage_entries, without_times
from pipeline.params import PARAMS_FILE, Params, read_yaml
from pipeline.presets import BASE, PRESETS, complete, preset_values
from pipeline.tracking.spool import tracking_address
from scan_core.data.folder import signature
from scan_core.errors import ScanError
from stages.source import weights_signature

LABELLED = Path("experiments/labelled.py")
SWEEP = "digits_quick"  # the preset of most runs, and the shortest
CURVES = ("pretext", "cluster", "selflabel", "accuracy_cluster", "accuracy_selflabel", "purity", "confusion", "surest")


@dataclass(frozen=True)
class Run:
    """A preset with changes, one seed, and commands that use labels, to be run beside the pipeline's stages."""

    preset: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # dotted name and value; a mapping replaces a mapping
    labelled: tuple[str, ...] = ()  # arguments of ``python -m experiments.labelled``

    def __hash__(self) -> int:
        return hash((self.preset, self.seed, repr(self.changes), self.labelled))  # a change may hold a mapping

    def params(self) -> Params:
        """The validated settings. ``data.split_seed`` is the seed: each seed has its own split.

        Raises ``ScanError`` where the preset does not allow the changes.
        """
        values = preset_values(PRESETS / f"{self.preset}.yaml")
        for name, value in (("seed", self.seed), ("data.split_seed", self.seed), *self.changes):
            *groups, last = name.split(".")
            inner = values
            for group in groups:
                inner = inner[group]
            inner[last] = value
        for group, key in (("data", "path"), ("backbone", "weights")):
            if values[group][key]:  # a worker's folder is not the project's
                values[group][key] = str(Path(values[group][key]).expanduser().resolve())
        values = complete(values, read_yaml(PRESETS / BASE), drop=True)  # another method has other settings
        try:
            return Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            said = " ".join(error.errors()[0]["msg"].removeprefix("Value error, ").split())
            raise ScanError(f"preset {self.preset} does not allow this experiment's settings: {said}") from None


@dataclass
class Result:
    """What a run has left: scores, curves, each image's cluster by id, what a labelled command printed, its seconds.

    ``machine`` is where it ran, with date, commit and package versions.
    """

    metrics: dict[str, Any]
    curves: dict[str, list[dict[str, str]]]
    clusters: list[int]
    labelled: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    machine: dict[str, str] = field(default_factory=dict)


def results(runs: Iterable[Run], jobs: int, say: Callable[[str], None]) -> dict[Run, Result]:
    """Executes what has no result yet, ``jobs`` at a time, and gives all results.

    Runs with the same pretext task go to one worker one after the other, so that it is trained once. Raises
    ``ScanError`` where files that a run depends on are not committed, or where a run fails.
    """
    wanted = list(dict.fromkeys(runs))
    missing = list({_file(run): run for run in wanted if not _file(run).exists()}.values())  # however it is spelled
    if missing:
        check_committed()
        groups: dict[str, list[Run]] = {}
        for run in missing:
            groups.setdefault(_pretext_key(run), []).append(run)
        # What takes long comes first, so that no core waits for it at the end: other presets than the sweeps', and
        # the pretext tasks that most runs share.
        waiting = sorted(groups.values(), key=lambda group: (group[0].preset == SWEEP, -len(group)))
        done, lock, failed, started = [0], threading.Lock(), threading.Event(), time.monotonic()

        environment = worker_environment(jobs)
        warm = WarmPython({**os.environ, **environment})

        def work(number: int) -> None:
            folder = make_worker(number)
            while True:
                with lock:
                    if not waiting:
                        return
                    group = waiting.pop(0)
                for run in group:
                    try:
                        _execute(run, folder, warm.folder, environment)
                    except BaseException:  # the other workers end after their run
                        failed.set()
                        raise
                    if failed.is_set():
                        return
                    with lock:
                        done[0] += 1
                        left = (time.monotonic() - started) / done[0] * (len(missing) - done[0])
                        say(f"{done[0]} of {len(missing)} runs, about {left / 60:.0f} min left")

        try:
            with ThreadPoolExecutor(jobs) as pool:
                for future in [pool.submit(work, number) for number in range(jobs)]:
                    future.result()
        finally:
            warm.close()
    return {run: Result(**json.loads(_file(run).read_text(encoding="utf-8"))) for run in wanted}


def _key(run: Run) -> str:
    params, root = run.params(), Path.cwd()
    files = without_times(signature(params.data, root, data_home(root)))
    weights = weights_signature(params.backbone.weights, root)
    code = {stage: stage_code(stage) for stage in stage_entries()}
    key = run_key(params, {**files, "weights": weights, "code": code, "packages": packages()})[:16]
    if run.labelled:  # no stage's code, so that the key does not cover it
        labelled = hashlib.sha256(LABELLED.read_bytes()).hexdigest()[:8]
        key = "-".join([key, *run.labelled, labelled])
    return key


def _file(run: Run) -> Path:
    return FOLDER / "results" / f"{_key(run)}.json"


def _pretext_key(run: Run) -> str:
    """Equal where the pretext task can be shared."""
    params = run.params()
    groups = ("seed", "precision", "data", "backbone", "pretext")
    return json.dumps({group: params.model_dump(mode="json")[group] for group in groups}, sort_keys=True)


def _execute(run: Run, folder: Path, bin_folder: Path, environment: dict[str, str]) -> None:
    """``bin_folder`` holds the ``python`` to be used."""
    import pyarrow.parquet as pq
    from ruamel.yaml import YAML

    started, name, python = time.monotonic(), _key(run), str(bin_folder / "python")
    environment = {**environment, "PATH": f"{bin_folder}{os.pathsep}{search_path()}"}
    with (folder / PARAMS_FILE).open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(run.params().model_dump(mode="json"), file)
    call([python, "-m", "dvc", "repro", "--quiet"], folder, environment)
    call([python, "-m", "dvc", "exp", "save", "--force", "--name", f"scan-{name}"], folder, environment)
    labelled: dict[str, float] = {}
    if run.labelled:
        printed = call([python, "-m", "experiments.labelled", *run.labelled], folder, environment)
        labelled = json.loads(printed.splitlines()[-1])
    head = call(["git", "rev-parse", "HEAD"], folder).strip()
    result = {
        "metrics": artifacts.load_json(folder / artifacts.METRICS),
        "curves": {curve: artifacts.load_csv(folder / artifacts.PLOTS / f"{curve}.csv") for curve in CURVES},
        "clusters": pq.read_table(folder / artifacts.PREDICTIONS, columns=["id", "cluster"])
        .sort_by("id")["cluster"]
        .to_pylist(),
        "labelled": labelled,
        "seconds": time.monotonic() - started,
        "machine": {**machine(), "commit": head[:7]},
    }
    saved = f"refs/exps/{head[:2]}/{head[2:]}/scan-{name}"  # an older commit may have one of the same name
    call(["git", "push", "--quiet", "--force", "origin", f"{saved}:{saved}"], folder)  # so dvc exp show lists it
    target = _file(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, target)


def send(say: Callable[[str], None]) -> None:
    """Delivers the workers' records to MLflow: about five seconds a run, so it is a command of its own."""
    from pipeline.tracking.delivery import send_waiting
    from pipeline.tracking.mlflow_runs import connect

    os.environ["MLFLOW_TRACKING_URI"] = tracking_address(Path.cwd())
    for folder in sorted(FOLDER.glob("worker-*")):
        try:
            connect(Path.cwd())  # who makes MLflow's experiment says where artifacts lie: not in a worker's folder
            send_waiting(folder)
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            reason = " ".join(str(error).split())[:200]
            say(f"MLflow does not take the records of {folder}: {reason}; call this again with --to-mlflow")
