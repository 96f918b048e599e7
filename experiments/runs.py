"""Many runs of the pipeline, each a DVC experiment, in copies of the project that share its cache.

A run is one validated set of parameters. Its scores and curves are kept in ``.scan/experiments/results``, named by the
hash of parameters and code, so that a ledger that was interrupted goes on with what is missing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.warm import WarmPython
from pipeline import artifacts
from pipeline.fingerprint import run_key
from pipeline.params import PARAMS_FILE, Params, read_yaml
from pipeline.tracking import tracking_address
from scan_core.errors import ScanError

FOLDER = Path(".scan/experiments")
CODE = ("scan_core", "pipeline", "stages", "experiments", "presets", "dvc.yaml")
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
        values = read_yaml(Path("presets") / f"{self.preset}.yaml")
        for name, value in (("seed", self.seed), ("data.split_seed", self.seed), *self.changes):
            *groups, last = name.split(".")
            inner = values
            for group in groups:
                inner = inner[group]
            inner[last] = value
        for group, key in (("data", "path"), ("backbone", "weights")):
            if values[group][key]:  # a worker's folder is not the project's
                values[group][key] = str(Path(values[group][key]).expanduser().resolve())
        try:
            return Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            said = " ".join(error.errors()[0]["msg"].removeprefix("Value error, ").split())
            raise ScanError(f"preset {self.preset} does not allow this experiment's settings: {said}") from None


@dataclass
class Result:
    """What a run has left: scores, curves, each image's cluster by id, what a labelled command printed, its seconds."""

    metrics: dict[str, Any]
    curves: dict[str, list[dict[str, str]]]
    clusters: list[int]
    labelled: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def results(runs: Iterable[Run], jobs: int, say: Callable[[str], None]) -> dict[Run, Result]:
    """Executes what has no result yet, ``jobs`` at a time, and gives all results.

    Runs with the same pretext task go to one worker one after the other, so that it is trained once. Raises
    ``ScanError`` where files that a run depends on are not committed, or where a run fails.
    """
    wanted = list(dict.fromkeys(runs))
    missing = list({_file(run): run for run in wanted if not _file(run).exists()}.values())  # however it is spelled
    if missing:
        _check_committed()
        groups: dict[str, list[Run]] = {}
        for run in missing:
            groups.setdefault(_pretext_key(run), []).append(run)
        # What takes long comes first, so that no core waits for it at the end: other presets than the sweeps', and
        # the pretext tasks that most runs share.
        waiting = sorted(groups.values(), key=lambda group: (group[0].preset == SWEEP, -len(group)))
        done, lock, failed, started = [0], threading.Lock(), threading.Event(), time.monotonic()

        environment = _environment(jobs)
        warm = WarmPython({**os.environ, **environment})

        def work(number: int) -> None:
            folder = _worker(number)
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
    key = run_key(run.params())[:16]
    if run.labelled:  # no stage's code, so that the key does not cover it
        code = hashlib.sha256(LABELLED.read_bytes()).hexdigest()[:8]
        key = "-".join([key, *run.labelled, code])
    return key


def _file(run: Run) -> Path:
    return FOLDER / "results" / f"{_key(run)}.json"


def _pretext_key(run: Run) -> str:
    """Equal where the pretext task can be shared."""
    params = run.params()
    groups = ("seed", "precision", "data", "backbone", "pretext")
    return json.dumps({group: params.model_dump(mode="json")[group] for group in groups}, sort_keys=True)


def _check_committed() -> None:
    changed = [line[3:] for line in _call(["git", "status", "--porcelain", "--", *CODE], Path()).splitlines()]
    if changed:
        raise ScanError(f"{', '.join(changed[:5])} differ from the last commit; experiments run what is committed")


def _worker(number: int) -> Path:
    """A clone of the last commit that shares DVC's cache, and remembers its own workspace between calls."""
    folder = (FOLDER / f"worker-{number}").resolve()
    commit = _call(["git", "rev-parse", "HEAD"], Path()).strip()
    if not (folder / ".git").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _call(["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(folder)], Path())
        for key, value in (("user.name", "experiments"), ("user.email", "experiments@localhost")):
            _call(["git", "config", key, value], folder)
    _call(["git", "fetch", "--quiet", "origin"], folder)
    _call(["git", "checkout", "--quiet", "--force", "--detach", commit], folder)
    _call(["dvc", "cache", "dir", "--local", str(Path(".dvc/cache").resolve())], folder)
    return folder


def _environment(jobs: int) -> dict[str, str]:
    """What a run's commands find in theirs: their share of the cores, the project's data and MLflow."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return {
        "SCAN_THREADS": os.environ.get("SCAN_THREADS", threads),
        "OMP_NUM_THREADS": threads,
        "SCAN_DATA": os.environ.get("SCAN_DATA", str(Path("datasets").resolve())),
        "SCAN_TRACKING": "spool",
        "MLFLOW_TRACKING_URI": tracking_address(Path.cwd()),
    }


def _execute(run: Run, folder: Path, bin_folder: Path, environment: dict[str, str]) -> None:
    """``bin_folder`` holds the ``python`` to be used."""
    import pyarrow.parquet as pq
    from ruamel.yaml import YAML

    started, name, python = time.monotonic(), _key(run), str(bin_folder / "python")
    environment = {**environment, "PATH": f"{bin_folder}{os.pathsep}{_path()}"}
    with (folder / PARAMS_FILE).open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(run.params().model_dump(mode="json"), file)
    _call([python, "-m", "dvc", "repro", "--quiet"], folder, environment)
    _call([python, "-m", "dvc", "exp", "save", "--force", "--name", f"scan-{name}"], folder, environment)
    labelled: dict[str, float] = {}
    if run.labelled:
        printed = _call([python, "-m", "experiments.labelled", *run.labelled], folder, environment)
        labelled = json.loads(printed.splitlines()[-1])
    result = {
        "metrics": artifacts.load_json(folder / artifacts.METRICS),
        "curves": {curve: artifacts.load_csv(folder / artifacts.PLOTS / f"{curve}.csv") for curve in CURVES},
        "clusters": pq.read_table(folder / artifacts.PREDICTIONS, columns=["id", "cluster"])
        .sort_by("id")["cluster"]
        .to_pylist(),
        "labelled": labelled,
        "seconds": time.monotonic() - started,
    }
    head = _call(["git", "rev-parse", "HEAD"], folder).strip()  # an older commit may have one of the same name
    saved = f"refs/exps/{head[:2]}/{head[2:]}/scan-{name}"
    _call(["git", "push", "--quiet", "--force", "origin", f"{saved}:{saved}"], folder)  # so dvc exp show lists it
    target = _file(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, target)


def send(say: Callable[[str], None]) -> None:
    """Delivers the workers' records to MLflow: about five seconds a run, so it is a command of its own."""
    from pipeline.delivery import send_waiting

    os.environ["MLFLOW_TRACKING_URI"] = tracking_address(Path.cwd())
    for folder in sorted(FOLDER.glob("worker-*")):
        try:
            send_waiting(folder)
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            reason = " ".join(str(error).split())[:200]
            say(f"MLflow does not take the records of {folder}: {reason}; call this again with --to-mlflow")


def _path() -> str:
    """PATH with this environment's commands first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _call(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """The output of a command. Raises ``ScanError`` with its last lines where it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": _path(), **(environment or {})}, capture_output=True, text=True
    )
    if done.returncode:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
        raise ScanError(f"{' '.join(command[:4])} failed in {folder}: {last[-600:]}")
    return done.stdout
