"""``scan show``, ``scan runs`` and ``scan runs --send``: what they print, and that it holds no password."""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.artifacts import CANDIDATES, METRICS, PREDICTIONS, STEPS
from pipeline.cli.app import app
from pipeline.tracking import delivery
from pipeline.tracking.spool import without_passwords
from scan_core.errors import ScanError
from tests.project import ROOT, set_params

SECRET = "postgresql+psycopg://anna:s3cr@t/x@host:5432/mlflow"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty folder, which commands start in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """What would take this process's place, were it not a test."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def scan(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(("made_under", "title"), [("split", "Validation images, in %"), ("all", "All images, in %")])
@pytest.mark.parametrize("now", ["split", "all"])
def test_results_are_named_by_what_they_were_made_under_and_not_by_settings_of_today(project, made_under, title, now):
    set_params(project, {"data": {"protocol": now}}, ROOT / "params.yaml")
    accuracy = {"train": 0.25, "val": 0.75}
    metrics = {
        split: {"quality": {}, **{step: {"acc": acc, "clusters_used": 2} for step in STEPS}}
        for split, acc in accuracy.items()
    }
    CANDIDATES.parent.mkdir(parents=True)
    CANDIDATES.write_text("head,method,agreement,kept,acc\n")
    METRICS.write_text(json.dumps(metrics))
    splits = ["train", "train"] if made_under == "all" else ["train", "val"]
    pq.write_table(pa.table({"id": [0, 1], "split": splits}), PREDICTIONS)
    done = scan("show")
    assert done.exit_code == 0 and done.stdout.startswith(title)
    assert ("25.0" in done.stdout, "75.0" in done.stdout) == (made_under == "all", made_under == "split")
    CANDIDATES.write_text("head,method,agreement,kept,acc\n0,graph,0.5,0,\n1,consensus,0.6,1,\n")
    assert "kept: consensus" in (shown := scan("show").stdout) and "self-label" not in shown
    PREDICTIONS.unlink()
    failed = scan("show")
    assert failed.exit_code == 1
    assert failed.stderr == "scan: error: reports/predictions.parquet is missing; make it with: dvc repro evaluate\n"


def test_the_ui_gets_the_address_by_the_environment_and_no_password_is_shown(project, monkeypatch, started):
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    done = scan("runs", "--port", "5001")
    ((program, arguments, environment),) = started
    assert (program, arguments[:4]) == (sys.executable, [sys.executable, "-m", "mlflow", "server"])
    assert arguments[4:] == ["--host", "127.0.0.1", "--port", "5001"]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == SECRET
    said = "MLflow on http://127.0.0.1:5001, reading postgresql+psycopg://anna:***@host:5432/mlflow; Ctrl-C ends it\n"
    assert done.output == said


@pytest.mark.slow
def test_mlflow_s_server_reads_the_address_from_there():
    from mlflow.cli import server

    assert [option.envvar for option in server.params if option.name == "backend_store_uri"] == [
        "MLFLOW_BACKEND_STORE_URI"
    ]


def test_the_ui_of_the_project_reads_its_database(project, started):
    (project / "dvc.yaml").write_text("stages: {}\n")
    assert f"reading sqlite:///{project}/mlflow.db; " in scan("runs").output
    assert started[0][2]["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{project}/mlflow.db"


@pytest.mark.parametrize("address", ["", SECRET])
def test_the_ui_outside_of_the_project_makes_no_database(project, monkeypatch, started, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    done = scan("runs")
    assert done.exit_code == 1 and started == [] and list(project.iterdir()) == []
    assert done.output == f"scan: error: dvc.yaml is missing from {project}; run from the project's folder\n"


def test_a_server_that_is_elsewhere_is_named_without_its_password(monkeypatch, started):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:s3cr@t@host/mlflow")
    done = scan("runs")
    assert done.output.endswith(" names: https://anna:***@host/mlflow\n") and started == []


@pytest.mark.parametrize("kind", [ScanError, OSError])
def test_an_error_is_one_line_without_passwords(monkeypatch, kind):
    def away(root):
        raise kind(f"no answer\nfrom {SECRET}")

    monkeypatch.setattr(delivery, "send_waiting", away)
    done = scan("runs", "--send")
    assert done.exit_code == 1
    assert done.output == "scan: error: no answer from postgresql+psycopg://anna:***@host:5432/mlflow\n"


def test_a_full_disk_is_one_line_whichever_library_says_it_and_other_errors_show_where(monkeypatch):
    def fail(root):
        raise RuntimeError(text)

    monkeypatch.setattr(delivery, "send_waiting", fail)
    text = "I/O error: No space left on device (os error 28)"
    assert scan("runs", "--send").output.startswith("scan: error: no room is left on the disk; make room")
    text = "a mistake in the program"
    assert isinstance(scan("runs", "--send").exception, RuntimeError)


@pytest.mark.parametrize("address", ["sqlite:////home/anna/mlflow.db", "http://host:5000", "postgresql://host/a"])
def test_an_address_without_a_secret_is_as_it_was(address):
    assert without_passwords(address) == address
