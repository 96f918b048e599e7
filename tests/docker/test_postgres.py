"""The MLflow server of docker/compose.yaml on a real PostgreSQL, and the records of stages there."""

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from pipeline.tracking.delivery import recorded, send_waiting
from pipeline.tracking.spool import Tracker, spools
from tests.docker.servers import COMPOSE, LOOPBACK, MlflowServer, running_database, wait_until
from tests.project import STAGES, make_project, run, run_stage, run_stages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database():
    with running_database() as database:
        yield database


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    server = MlflowServer(database, tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def tracked(server, monkeypatch):
    """The server, where this process's stages record, whatever the caller's settings are."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.delenv("SCAN_TRACKING", raising=False)
    return server


@pytest.fixture
def client(tracked):
    from mlflow import MlflowClient

    return MlflowClient(tracked.address, tracked.address)


def rows(client, condition):
    """The one pipeline run that meets ``condition``, and the runs of its stages in the order of their start."""
    experiments = [each.experiment_id for each in client.search_experiments()]

    def runs(what):
        return client.search_runs(experiments, what, order_by=["attributes.start_time ASC"])

    (parent,) = runs(f"tags.`scan.kind` = 'pipeline' and {condition}")
    return parent, runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")


def begin(tracker, key):
    tracker.event(
        "start", stage=tracker.stage, key=key, name="digits seed 0", params={"seed": "0", "cluster.heads": "2"},
        own={"pretext.epochs": "2"}, tags={"scan.fingerprint": f"fingerprint of {key}"},
    )  # fmt: skip


def status(server, host):
    """The status of the server's answer to a request for ``host``."""
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=30)
    connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    return connection.getresponse().status


def test_the_server_answers_only_to_its_own_names(server):
    trainer = urlsplit(COMPOSE["services"]["trainer"]["environment"]["MLFLOW_TRACKING_URI"])
    assert trainer.hostname == "mlflow" and trainer.port == 5000
    assert status(server, trainer.netloc) == status(server, "localhost:5000") == status(server, "127.0.0.1:8080") == 200
    assert status(server, "mlflow.example.org:5000") == 403


def test_a_spool_becomes_rows_in_postgresql(tracked, client, database, tmp_path, capsys):
    tracker = Tracker(tmp_path, "pretext")
    begin(tracker, "by hand")
    tracker.metrics({"loss": 2.0}, 1)
    tracker.metrics({"loss": 1.0}, 2)
    (tmp_path / "plot.csv").write_text("a\n1\n")
    tracker.artifact(tmp_path / "plot.csv")
    tracker.text("note.txt", "of the whole run", parent=True)
    tracker.event("metrics", values={"acc": 0.5}, step=0, parent=True)
    tracker.close("FINISHED")
    assert not spools(tmp_path) and not capsys.readouterr().err

    parent, (child,) = rows(client, "tags.`scan.run` = 'by hand'")
    assert parent.info.status == "FINISHED" and parent.data.metrics == {"acc": 0.5, "pretext.loss": 1.0}
    assert parent.data.params == {"seed": "0", "cluster.heads": "2"}
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["plot.csv"]
    assert Path(client.download_artifacts(child.info.run_id, "plot.csv", str(tmp_path))).read_text() == "a\n1\n"
    assert child.info.artifact_uri.startswith("mlflow-artifacts:")  # through the server, into its folder
    assert {path.name for path in tracked.artifacts.rglob("*") if path.is_file()} == {"plot.csv", "note.txt"}

    of_child = (child.info.run_id,)
    assert database.rows("SELECT name, status FROM runs WHERE run_uuid = %s", *of_child) == [("pretext", "FINISHED")]
    assert database.rows("SELECT key, value FROM params WHERE run_uuid = %s", *of_child) == [("pretext.epochs", "2")]
    history = "SELECT key, step, value FROM metrics WHERE run_uuid = %s ORDER BY step"
    assert database.rows(history, *of_child) == [("loss", 1, 2.0), ("loss", 2, 1.0)]
    tag = "SELECT value FROM tags WHERE run_uuid = %s AND key = 'mlflow.parentRunId'"
    assert database.rows(tag, *of_child) == [(parent.info.run_id,)]


def test_a_whole_run_is_sent_afterwards_with_its_model(tracked, client, tmp_path):
    project = make_project(tmp_path / "project", {"seed": 12})
    run_stages(project, "source", *STAGES)
    assert len(spools(project)) == len(STAGES)
    assert (
        "sent the records of 8 stages"
        in run(project, "scan", "runs", "--send", MLFLOW_TRACKING_URI=tracked.address).stderr
    )
    assert not spools(project) and not (project / "mlflow.db").exists() and not (project / "mlartifacts").exists()

    parent, children = rows(client, "params.seed = '12'")
    assert [run.data.tags["scan.stage"] for run in children] == list(STAGES)
    made_by = {stage: parent.data.tags[f"scan.made_by.{stage}"] for stage in STAGES}
    assert made_by == {run.data.tags["scan.stage"]: run.info.run_id for run in children}
    assert "report.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    (model,) = client.search_model_versions(f"run_id = '{parent.info.run_id}'")

    import mlflow

    mlflow.set_tracking_uri(tracked.address)
    images = np.load(project / "data" / "images" / "pixels-00000.npy")[:3]
    answer = mlflow.pyfunc.load_model(f"models:/{model.name}/{model.version}").predict(images)
    assert {"cluster", "probability", "group", "state"} <= set(answer.columns) and len(answer) == 3


def test_a_server_that_is_away_costs_one_warning_and_gets_everything_once(tracked, client, tmp_path, capsys):
    halfway = Tracker(tmp_path / "halfway", "pretext")
    begin(halfway, "halfway")
    halfway.metrics({"loss": 1.0}, 1)
    note = halfway.folder / "delivered.json"
    wait_until(lambda: note.exists() and '"done": 2' in note.read_text(), halfway._delivery, note, 60)
    project = make_project(tmp_path / "project", {"seed": 13})
    run_stage(project, "source")
    away = {"MLFLOW_TRACKING_URI": tracked.address}
    tracked.stop()
    try:
        halfway.metrics({"loss": 2.0}, 2)
        halfway.close("FINISHED")
        (warning,) = capsys.readouterr().err.strip().splitlines()
        assert "pretext: warning" in warning and "scan runs --send" in warning
        (waiting,) = spools(tmp_path / "halfway")
        assert [record["event"] for record in recorded(waiting)] == ["start", "metrics", "metrics", "end"]

        printed = run(project, "python", "-m", "stages.prepare", **away).stderr
        assert printed.count("MLflow did not take") == 1
        assert "prepare: warning" in printed and "prepare   done" in printed
        refused = run(project, "scan", "runs", "--send", check=False, **away)
        assert refused.returncode == 1 and len(refused.stderr.strip().splitlines()) == 1
        assert "scan: error" in refused.stderr and len(spools(project)) == 1
    finally:
        tracked.start()  # PostgreSQL has kept what it recorded
    assert send_waiting(tmp_path / "halfway") == 1
    assert send_waiting(tmp_path / "halfway") == 0
    assert "sent the records of 1 stage" in run(project, "scan", "runs", "--send", **away).stderr
    assert "sent the records of 0 stages" in run(project, "scan", "runs", "--send", **away).stderr

    parent, (child,) = rows(client, "tags.`scan.run` = 'halfway'")
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "loss")] == [(1, 1.0), (2, 2.0)]
    parent, (child,) = rows(client, "params.seed = '13'")
    assert child.info.status == parent.info.status == "FINISHED" and child.data.metrics["images"] == 1797
