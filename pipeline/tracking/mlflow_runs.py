"""Events as rows in MLflow, one of the stage and one of the run it belongs to. It is imported here alone."""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.tracking.spool import tracking_address

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

EXPERIMENT = "scan"
NOT_RECORDED = "restored from a cache, not recorded here"


class Delivery:
    """One spool on its way. ``runs`` are the ids of its rows, ``done`` the events that have arrived."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._note = folder / "delivered.json"
        self.address = hashlib.sha256(tracking_address(root).encode()).hexdigest()  # which may hold a password
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
        getattr(self, "_" + record["event"])(**{key: value for key, value in record.items() if key != "event"})
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
        if self._is_newest():
            client.update_run(parent, status="RUNNING")
        if stage == "evaluate":  # which ends with a model that MLflow tries out: seconds of imports while it computes
            importlib.import_module("scan_core.models.files")

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(key, value) for key, value in params.items()])

    def _find(self, condition: str) -> str | None:
        """The newest run under ``condition``."""
        found = self.client.search_runs(
            [self.experiment], condition, order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0].info.run_id if found else None

    def _is_newest(self) -> bool:
        """Whether no other stage has begun later in this run: how the run goes is for the last of them to say."""
        return self._find(f"tags.`mlflow.parentRunId` = '{self.runs['parent']}'") == self.runs["child"]

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
        for stage, fingerprint in stages.items():
            maker = self._find(f"tags.`scan.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'")
            if stage == "evaluate":
                maker = self.runs["child"]
            if maker:
                self._made_by(maker, stage, self.runs["parent"], time)
            else:
                self.client.set_tag(self.runs["parent"], f"scan.made_by.{stage}", _not_recorded(fingerprint))

    def _made_by(self, maker: str, stage: str, run: str, time: int) -> None:
        from mlflow.entities import Metric

        self.client.set_tag(run, f"scan.made_by.{stage}", maker)
        last = self.client.get_run(maker).data.metrics
        self.client.log_batch(run, metrics=[Metric(f"{stage}.{key}", value, time, 0) for key, value in last.items()])

    def _end(self, time: int, status: str) -> None:
        if not self.runs:
            return
        child = self.runs["child"]
        self.client.set_terminated(child, status, end_time=time)
        tags = self.client.get_run(child).data.tags
        if status == "FINISHED":  # runs that were complete before this late row came have been without it
            stage, missing = tags["scan.stage"], _not_recorded(tags.get("scan.fingerprint", ""))
            for run in self.client.search_runs([self.experiment], f"tags.`scan.made_by.{stage}` = '{missing}'"):
                self._made_by(child, stage, run.info.run_id, time)
        if self._is_newest():
            self.client.set_terminated(self.runs["parent"], status, end_time=time)


def _not_recorded(fingerprint: str) -> str:
    return f"{NOT_RECORDED} ({fingerprint})"


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
