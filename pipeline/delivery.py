"""Delivers a spool of events to MLflow. The one module that imports mlflow, in a process of its own.

``python -m pipeline.delivery ROOT SPOOL`` follows the spool until its standard input ends, that is until the stage
has ended. What has been delivered is noted beside the events, so that sending again repeats nothing.
"""

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.tracking import DELIVERY_LOCK, STAGE_LOCK, spools, spools_folder, tracking_address
from scan_core.errors import ScanError

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

EXPERIMENT = "scan"


class Delivery:
    """One spool on its way. ``runs`` are the ids of its rows, ``done`` the events that have arrived."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._note = folder / "delivered.json"
        self.address = tracking_address(root)
        noted: dict[str, Any] = json.loads(self._note.read_text()) if self._note.exists() else {}
        if noted.get("address") != self.address:  # another server knows nothing of what the first one took
            noted = {}
        self.done: int = noted.get("done", 0)
        self.runs: dict[str, str] = noted.get("runs", {})
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The MLflow client, connected once."""
        if self._client is None:
            self._client, self.experiment = connect(self.root)
        return self._client

    def deliver(self, record: dict[str, Any]) -> None:
        """Applies one event and notes that it has arrived."""
        getattr(self, "_" + record.pop("event"))(**record)
        self.done += 1
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps({"address": self.address, "done": self.done, "runs": self.runs}))
        partial.replace(self._note)

    def _start(
        self, time: int, stage: str, key: str, name: str, params: dict[str, str], own: dict[str, str],
        tags: dict[str, str],
    ) -> None:  # fmt: skip
        client = self.client
        with FileLock(self.root / ".scan" / "mlflow.lock"):  # parallel stages of one run share its row
            parent = self._find(f"tags.`scan.run` = '{key}'")
            if parent is None:
                tags_of_run = {"scan.run": key, "scan.kind": "pipeline"}
                run = client.create_run(self.experiment, start_time=time, run_name=name, tags=tags_of_run)
                parent = run.info.run_id
            else:
                client.update_run(parent, status="RUNNING")
        # Found again where the connection broke in the middle of this event; logging equal parameters twice is allowed.
        child = self._find(f"tags.`scan.spool` = '{self.folder.name}'")
        if child is None:
            run = client.create_run(
                self.experiment, start_time=time, run_name=stage,
                tags={"mlflow.parentRunId": parent, "scan.kind": "stage", "scan.stage": stage,
                      "scan.spool": self.folder.name, **tags},
            )  # fmt: skip
            child = run.info.run_id
        self._log_params(parent, params)
        self._log_params(child, own)
        self.runs = {"parent": parent, "child": child}

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(key, value) for key, value in params.items()])

    def _find(self, condition: str) -> str | None:
        """The newest run under ``condition``."""
        found = self.client.search_runs(
            [self.experiment], condition, order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0].info.run_id if found else None

    def _metrics(self, time: int, values: dict[str, float], step: int, parent: bool = False) -> None:
        from mlflow.entities import Metric

        run = self.runs["parent" if parent else "child"]
        self.client.log_batch(run, metrics=[Metric(key, value, time, step) for key, value in values.items()])

    def _tags(self, time: int, values: dict[str, str], parent: bool = False) -> None:
        for key, value in values.items():
            self.client.set_tag(self.runs["parent" if parent else "child"], key, value)

    def _artifact(self, time: int, file: str, parent: bool) -> None:
        path, run = self.folder / file, self.runs["parent" if parent else "child"]
        if path.is_dir():
            self.client.log_artifacts(run, str(path), path.name)
        else:
            self.client.log_artifact(run, str(path))

    def _model(
        self, time: int, weights: str, code: list[str], example: str, requirements: list[str], name: str
    ) -> None:
        """Logs the packaged model to the run's row and registers it: images in, clusters and probabilities out."""
        import mlflow
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema, TensorSpec

        versions = self.client.search_model_versions(f"run_id = '{self.runs['parent']}'")
        if any(version.creation_timestamp >= time for version in versions):
            return  # the connection broke after it had been registered
        mlflow.set_tracking_uri(tracking_address(self.root))
        images = np.load(self.folder / example)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *images.shape[1:]))]),
            outputs=Schema([ColSpec("long", "cluster"), ColSpec("double", "probability")]),
        )
        with mlflow.start_run(run_id=self.runs["parent"]):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts={"weights": str(self.folder / weights)},
                code_paths=[str(self.folder / path) for path in code],
                signature=signature,
                input_example=images,
                pip_requirements=requirements,
                registered_model_name=name,
            )

    def _complete(self, time: int, stages: dict[str, str]) -> None:
        """Makes the run's row whole: for each stage, which row made its outputs, and that row's last numbers."""
        from mlflow.entities import Metric

        parent = self.runs["parent"]
        for stage, fingerprint in stages.items():
            maker = self._find(f"tags.`scan.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'")
            if stage == "evaluate":
                maker = self.runs["child"]
            self.client.set_tag(parent, f"scan.made_by.{stage}", maker or "restored from a cache, not recorded here")
            if maker:
                last = self.client.get_run(maker).data.metrics
                metrics = [Metric(f"{stage}.{key}", value, time, 0) for key, value in last.items()]
                self.client.log_batch(parent, metrics=metrics)

    def _end(self, time: int, status: str) -> None:
        for run in {self.runs.get("child"), self.runs.get("parent")} - {None}:
            self.client.set_terminated(run, status, end_time=time)


def connect(root: Path) -> tuple[Any, str]:
    """A client for the tracking address and the id of the experiment, made if it is new."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = tracking_address(root)
    (root / ".scan").mkdir(exist_ok=True)
    with FileLock(root / ".scan" / "mlflow.lock"):  # several processes meeting a new database break its migration
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, experiment.experiment_id
        # A server keeps artifacts itself; beside a bare database they lie in the project.
        place = None if address.startswith(("http:", "https:")) else (root / "mlartifacts").resolve().as_uri()
        try:
            return client, client.create_experiment(EXPERIMENT, artifact_location=place)
        except MlflowException:  # another machine was first
            return client, client.get_experiment_by_name(EXPERIMENT).experiment_id


def follow(folder: Path) -> Iterator[dict[str, Any]]:
    """Events as they are written, until standard input ends; then those that are left."""
    with (folder / "events.jsonl").open(encoding="utf-8") as file:
        alive = True
        line = ""
        while True:
            line += file.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            elif alive:
                ready, _, _ = select.select([sys.stdin], [], [], 0.2)
                alive = not (ready and not sys.stdin.buffer.read(1))
            else:
                return


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The whole events of a spool; the last line of a killed stage may be cut and is left out."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def send(root: Path, folder: Path, events: Iterable[dict[str, Any]]) -> None:
    """Delivers what has not arrived yet and deletes the spool. A stage that was killed is marked so."""
    delivery = Delivery(root, folder)
    ended = False
    for number, record in enumerate(events):
        ended = record["event"] == "end"
        if number >= delivery.done:
            delivery.deliver(record)
    if not ended and delivery.runs:
        delivery.deliver({"event": "end", "time": time.time_ns() // 1_000_000, "status": "KILLED"})
    shutil.rmtree(folder)


def send_waiting(root: Path) -> int:
    """Delivers every spool that waits, oldest first; returns how many. Spools of running stages are left to them.

    Raises what MLflow raises where it cannot be reached, and ``ScanError`` at the end, naming a spool that it did not
    take and why.
    """
    sent, left = 0, {}
    waiting = spools(root)
    if waiting:
        connect(root)  # or every spool would wait for a server that is away
    for folder in waiting:
        try:
            with free(folder / STAGE_LOCK), free(folder / DELIVERY_LOCK):
                send(root, folder, recorded(folder))
                sent += 1
        except Timeout:  # it is being written or delivered
            continue
        except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
            left[folder.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if left:
        first, reason = next(iter(left.items()))
        others = f", and {len(left) - 1} more," if len(left) > 1 else ""
        raise ScanError(
            f"{sent} of {sent + len(left)} spools were taken; {spools_folder(root) / first}{others} not ({reason}): "
            "call scan send again, or delete what cannot be delivered"
        )
    return sent


def free(lock: Path) -> FileLock:
    """A context that holds ``lock``, or raises ``Timeout`` where somebody else does."""
    return FileLock(lock, timeout=0)


def main(root: Path, folder: Path) -> None:
    """Follows one spool, as its stage writes it."""
    with FileLock(folder / DELIVERY_LOCK):
        send(root, folder, follow(folder))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 (whatever it is, the stage prints it as one line and the spool stays)
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    sys.stderr.flush()
    os._exit(0)  # the stage waits for this end, and an interpreter that has imported mlflow takes half a second to it
