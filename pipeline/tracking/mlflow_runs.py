"""Delivers events to MLflow: one run per stage, nested in one run per execution of the pipeline.

Only this module and ``served_model`` import mlflow.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.tracking import spool
from pipeline.tracking.database import make_database
from pipeline.tracking.execution import project_name
from pipeline.tracking.spool import tracking_address

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # what is printed is taken for an error's reason
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

BYTES = "scan.sha256"  # tag of a model's version: of the files that make its answers
CANDIDATE = "candidate"  # alias of the newest version, which nobody has promoted yet
# Tags of the experiment. MLflow opens one of no stated kind as one of generative AI.
ABOUT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Each row is a run of the pipeline, and in it one for each stage. The metrics `headline/…` "
    "compare runs; a row's description says how far its groups can be trusted, and its artifacts have report.html.",
}
CALL = """Ask it (docs/serving.md):

```console
$ mlflow models serve -m models:/{name}/{version} --env-manager local -p 5001
$ printf '{{"dataframe_records": [{{"image": "%s"}}]}}' "$(base64 < photo.jpg | tr -d '\\n')" |
    curl -s -H 'Content-Type: application/json' -d @- http://127.0.0.1:5001/invocations
```
"""
SECONDS_FOR_LOCK = 60.0
NOT_RECORDED = "restored from a cache, not recorded here"


class Delivery:
    """Delivers one spool, event by event. ``delivered.json`` notes the progress, so that a retry repeats nothing.

    ``runs`` are the IDs of the stage's run (``child``) and of the pipeline's (``parent``), once the first event has
    arrived; ``done`` counts the events that have arrived.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._note = folder / "delivered.json"
        self._address = hashlib.sha256(tracking_address(root).encode()).hexdigest()  # hashed: it may hold a password
        noted: dict[str, Any] = json.loads(self._note.read_text()) if self._note.exists() else {}
        if noted.get("address") != self._address:  # another server has none of what the noted one took
            noted = {}
        self.done: int = noted.get("done", 0)
        self.runs: dict[str, str] = noted.get("runs", {})
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The MLflow client, connected at first use."""
        if self._client is None:
            self._client, self._experiment = connect(self.root)
        return self._client

    def deliver(self, event: spool.Event) -> None:
        """Applies one event and notes that it has arrived. Raises what MLflow raises."""
        HANDLERS[event["event"]](self, event)
        self.done += 1
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps({"address": self._address, "done": self.done, "runs": self.runs}))
        partial.replace(self._note)

    def start(self, event: spool.Start) -> None:
        """Finds or creates both runs. Each is searched for first, because a retry may find it created."""
        stage, client = event["stage"], self.client
        lock = FileLock(self.root / ".scan" / "mlflow.lock", timeout=SECONDS_FOR_LOCK)
        with lock:  # parallel stages of one pipeline share its run
            parent = self._find(f"tags.`scan.run` = '{event['key']}'") or self._create(
                event, event["name"], {"scan.run": event["key"], "scan.kind": "pipeline", **event.get("about", {})}
            )
        child = self._find(f"tags.`scan.spool` = '{self.folder.name}'") or self._create(
            event, stage,
            {"mlflow.parentRunId": parent, "scan.kind": "stage", "scan.stage": stage, "scan.spool": self.folder.name,
             **event["tags"]},
        )  # fmt: skip
        self._log_params(parent, event["params"])
        self._log_params(child, event["own"])
        self.runs = {"parent": parent, "child": child}
        if self._is_newest():
            client.update_run(parent, status="RUNNING")
        if stage == "evaluate":  # its model needs seconds of imports; they happen while the stage computes
            importlib.import_module("scan_core.models.files")

    def metrics(self, event: spool.Metrics) -> None:
        """Logs numbers. Those of a stage are the pipeline's, too, under the stage's name: its row has the curves."""
        self._log_metrics(self._run_of(event), event["values"], event["time"], event["step"])
        if not event.get("parent"):
            stage = self.folder.name.split("-")[1]
            named = {f"{stage}.{name}": value for name, value in event["values"].items()}
            self._log_metrics(self.runs["parent"], named, event["time"], event["step"])

    def tags(self, event: spool.Tags) -> None:
        """Sets tags."""
        for key, value in event["values"].items():
            self.client.set_tag(self._run_of(event), key, value)

    def artifact(self, event: spool.Artifact) -> None:
        """Logs a file or folder."""
        path, run = self.folder / event["file"], self._run_of(event)
        if path.is_dir():
            self.client.log_artifacts(run, str(path), path.name)
        else:
            self.client.log_artifact(run, str(path))

    def model(self, event: spool.Model) -> None:
        """Logs the model to the pipeline's run and registers it: images in, groups and probabilities out."""
        import mlflow
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

        name, about = event["name"], event.get("about", {})
        versions = self.client.search_model_versions(f"run_id = '{self.runs['parent']}'")
        for version in versions:
            bytes_are_same = BYTES in about and version.tags.get(BYTES) == about[BYTES]  # this run was killed before
            if bytes_are_same or version.creation_timestamp >= event["time"]:  # or an earlier try broke off
                return self._describe_version(name, version.version, about)
        self._delete_half_logged(event["time"])
        same = self._version_of(name, about.get(BYTES, ""))
        mlflow.set_tracking_uri(tracking_address(self.root))
        columns = [("long", "cluster", True), ("long", "group", False), ("string", "name", False)]
        columns += [("double", "probability", True), ("long", "runner_up", False)]
        columns += [("double", "runner_up_probability", False), ("string", "state", True)]
        signature = ModelSignature(  # without inputs, see ``served_model``
            outputs=Schema([ColSpec(kind, name, required) for kind, name, required in columns]),
            params=ParamSchema([ParamSpec("paths", "boolean", False)]),
        )
        with mlflow.start_run(run_id=self.runs["parent"]):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts={name: str(self.folder / path) for name, path in event["files"].items()},
                code_paths=[str(self.folder / path) for path in event["code"]],
                signature=signature,
                input_example=pd.DataFrame(json.loads((self.folder / event["example"]).read_text())),
                pip_requirements=event["requirements"],
                registered_model_name=None if same else name,
            )
        self._describe_version(name, same or logged.registered_model_version, about)

    def _delete_half_logged(self, since: int) -> None:
        """Deletes models of this run that a try which broke off has logged and not registered."""
        of_run = f"source_run_id = '{self.runs['parent']}'"
        for logged in self.client.search_logged_models([self._experiment], filter_string=of_run):
            if logged.creation_timestamp >= since:
                self.client.delete_logged_model(logged.model_id)

    def _describe_version(self, name: str, version: Any, about: dict[str, str]) -> None:
        """Says what a version is made of and how good it is; the newest one is the candidate."""
        for key, value in about.items():
            self.client.set_model_version_tag(name, str(version), key, value)
        self.client.set_registered_model_alias(name, CANDIDATE, str(version))

    def _version_of(self, name: str, sha256: str) -> str | None:
        """The version of the model ``name`` that has these bytes, if there is one: two people may have made them."""
        found = self.client.search_model_versions(f"name = '{name}'") if sha256 else []
        return next((str(version.version) for version in found if version.tags.get(BYTES) == sha256), None)

    def dataset(self, event: spool.DataSet) -> None:
        """Says which images the pipeline's run has read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": event["source"]}), json.dumps(event["counts"])
        images = Dataset(event["name"], event["digest"], "local", source, profile=profile)
        used = DatasetInput(images, [InputTag("mlflow.data.context", "training")])
        self.client.log_inputs(self.runs["parent"], [used])

    def note(self, event: spool.Note) -> None:
        """Describes the pipeline's run, and the versions of the model that it has registered."""
        text = event["text"].replace("{run}", self.runs["parent"])
        self.client.set_tag(self.runs["parent"], "mlflow.note.content", text)
        for version in self.client.search_model_versions(f"run_id = '{self.runs['parent']}'"):
            called = CALL.format(name=version.name, version=version.version)
            self.client.update_model_version(version.name, version.version, f"{text}\n\n{called}")

    def complete(self, event: spool.Complete) -> None:
        """Links the pipeline's run to the run that made each stage's outputs, and copies that run's last metrics."""
        for stage, fingerprint in event["stages"].items():
            maker = self._find(f"tags.`scan.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'")
            if stage == "evaluate":  # this stage, which has not finished yet
                maker = self.runs["child"]
            if maker:
                self._link(self.runs["parent"], stage, maker, event["time"])
            else:
                self.client.set_tag(self.runs["parent"], f"scan.made_by.{stage}", _not_recorded(fingerprint))

    def end(self, event: spool.End) -> None:
        """Ends the stage's run and, if no later stage has started, the pipeline's."""
        if not self.runs:
            return
        child, status = self.runs["child"], event["status"]
        self.client.set_terminated(child, status, end_time=event["time"])
        tags = self.client.get_run(child).data.tags
        if status == "FINISHED":  # pipeline runs may have been completed before this spool was delivered
            stage, missing = tags["scan.stage"], _not_recorded(tags.get("scan.fingerprint", ""))
            for run in self.client.search_runs([self._experiment], f"tags.`scan.made_by.{stage}` = '{missing}'"):
                self._link(run.info.run_id, stage, child, event["time"])
        if self._is_newest():
            self.client.set_terminated(self.runs["parent"], status, end_time=event["time"])

    def _run_of(self, event: spool.Event) -> str:
        return self.runs["parent" if event.get("parent") else "child"]

    def _find(self, condition: str) -> str | None:
        """The ID of the newest run under ``condition``."""
        found = self.client.search_runs(
            [self._experiment], condition, order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0].info.run_id if found else None

    def _create(self, event: spool.Event, name: str, tags: dict[str, str]) -> str:
        run = self.client.create_run(self._experiment, start_time=event["time"], run_name=name, tags=tags)
        return str(run.info.run_id)

    def _is_newest(self) -> bool:
        """Whether this stage started last in the pipeline's run: the status of that run is the last stage's."""
        return self._find(f"tags.`mlflow.parentRunId` = '{self.runs['parent']}'") == self.runs["child"]

    def _link(self, run: str, stage: str, maker: str, time_ms: int) -> None:
        self.client.set_tag(run, f"scan.made_by.{stage}", maker)
        there = self.client.get_run(run).data.metrics  # the curves of a stage that ran in this run
        last = {f"{stage}.{key}": value for key, value in self.client.get_run(maker).data.metrics.items()}
        self._log_metrics(run, {name: value for name, value in last.items() if name not in there}, time_ms, 0)

    def _log_metrics(self, run: str, values: dict[str, float], time_ms: int, step: int) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(run, metrics=[Metric(key, value, time_ms, step) for key, value in values.items()])

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(key, value) for key, value in params.items()])  # may be repeated


# What ``deliver`` does for each kind of event that a ``Tracker`` writes.
HANDLERS: dict[str, Callable[[Delivery, Any], None]] = {
    "start": Delivery.start,
    "metrics": Delivery.metrics,
    "tags": Delivery.tags,
    "artifact": Delivery.artifact,
    "model": Delivery.model,
    "dataset": Delivery.dataset,
    "note": Delivery.note,
    "complete": Delivery.complete,
    "end": Delivery.end,
}


def _not_recorded(fingerprint: str) -> str:
    return f"{NOT_RECORDED} ({fingerprint})"


def connect(root: Path) -> tuple[Any, str]:
    """A client for the tracking address, and the ID of the experiment, which is created if it is missing."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = tracking_address(root)
    make_database(address, lambda beside: MlflowClient(tracking_uri=beside, registry_uri=beside))
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    name = project_name(root)
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return client, experiment.experiment_id
    # A server stores artifacts itself. With a bare database they are stored in the project.
    location = None if address.startswith(("http:", "https:")) else (root / "mlartifacts").resolve().as_uri()
    try:
        return client, client.create_experiment(name, artifact_location=location, tags=ABOUT)
    except MlflowException:  # another process created it in the meantime
        return client, client.get_experiment_by_name(name).experiment_id
