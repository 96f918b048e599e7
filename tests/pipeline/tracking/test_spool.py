"""Tracking: a stage writes to a spool, everything in the spool arrives once, and no failure of it stops a stage."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints, is_typeddict

import pytest

from pipeline.tracking import delivery
from pipeline.tracking import spool as tracking
from pipeline.tracking.delivery import SpoolFollower, recorded, send, send_waiting
from pipeline.tracking.mlflow_runs import HANDLERS, Delivery, connect
from pipeline.tracking.spool import Event, Tracker, spools
from scan_core.errors import ScanError


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A new database with MLflow's tables, which take seconds to create."""
    folder = tmp_path_factory.mktemp("database")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("mlflow.MlflowClient.create_experiment", lambda *_, **__: "0")  # it holds the project's path
        connect(folder)
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path, monkeypatch, database):
    """A folder with a database, where trackers only write."""
    shutil.copy(database, tmp_path)
    monkeypatch.setenv("SCAN_TRACKING", "spool")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(("given", "address"), [
    (None, "sqlite:///{root}/mlflow.db"),
    ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
    ("sqlite:///runs/a.db?timeout=9", "sqlite:///{root}/runs/a.db?timeout=9"),
    ("sqlite:////elsewhere/a.db", "sqlite:////elsewhere/a.db"),
    ("https://me:pw@host/x", "https://me:pw@host/x"),
    ("postgresql://host/runs", "postgresql://host/runs"),
])  # fmt: skip
def test_an_address_is_absolute(tmp_path, monkeypatch, given, address):
    monkeypatch.chdir("/")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.tracking_address(tmp_path) == address.format(root=tmp_path)


@pytest.mark.parametrize("name", ["what? now", "100%", "a#b", "50%3F", "two words"])
def test_a_project_may_have_any_name(tmp_path, monkeypatch, name):
    from sqlalchemy.engine import make_url

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert make_url(tracking.tracking_address(tmp_path / name)).database == str(tmp_path / name / "mlflow.db")


def started(root: Path, stage: str = "pretext", key: str = "run", fingerprint: str = "f") -> Tracker:
    """A tracker that has written its first event."""
    tracker = Tracker(root, stage)
    tracker.event(
        "start", stage=stage, key=key, name="digits seed 0", params={"seed": "0", "cluster.heads": "2"},
        own={"pretext.epochs": "2"}, tags={"scan.fingerprint": fingerprint},
    )  # fmt: skip
    return tracker


@pytest.fixture
def spool(project):
    return started(project)


def runs(root, kind):
    """The runs of stages (``stage``) or of pipelines (``pipeline``), in the order of their starts."""
    client, experiment = connect(root)
    return client.search_runs([experiment], f"tags.`scan.kind` = '{kind}'", order_by=["attributes.start_time ASC"])


def deliver(root, spool):
    """What there is so far of a stage that still runs."""
    Delivery(root, spool.folder).deliver(recorded(spool.folder)[0])


def statuses(root, kind):
    return [run.info.status for run in runs(root, kind)]


def fail(monkeypatch, kind, calls):
    """Lets the handler of ``kind`` raise at those of its calls, counted from 1; returns the steps of all calls."""
    original, seen = HANDLERS[kind], []

    def handler(delivery, event):
        seen.append(event["step"])
        if len(seen) in calls:
            raise ConnectionError("the server went away")
        original(delivery, event)

    monkeypatch.setitem(HANDLERS, kind, handler)
    return seen


def history(root, key="loss"):
    (child,) = runs(root, "stage")
    return [(each.step, each.value) for each in connect(root)[0].get_metric_history(child.info.run_id, key)]


def test_every_event_has_a_type_and_a_handler():
    types = {name for name, each in vars(tracking).items() if is_typeddict(each) and each is not Event}
    assert {get_type_hints(handler)["event"].__name__ for handler in HANDLERS.values()} == types
    for kind, handler in HANDLERS.items():
        assert get_type_hints(handler)["event"].__name__.lower() == kind


def test_a_spool_becomes_a_parent_and_a_child_and_is_gone(project, spool):
    spool.metrics({"loss": 2.0}, 1)
    assert send_waiting(project) == 0, "the stage is still running"
    spool.metrics({"loss": 1.0}, 2)
    (project / "plot.csv").write_text("a\n1\n")
    spool.artifact(project / "plot.csv")
    (project / "plot.csv").write_text("later\n")  # what is logged is what there was
    spool.text("note.txt", "two\nlines", parent=True)
    spool.close("FINISHED")
    assert send_waiting(project) == 1
    assert not spools(project)

    (child,), (parent,), client = runs(project, "stage"), runs(project, "pipeline"), connect(project)[0]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.status == parent.info.status == "FINISHED"
    assert parent.data.params == {"seed": "0", "cluster.heads": "2"} and child.data.params == {"pretext.epochs": "2"}
    assert history(project) == [(1, 2.0), (2, 1.0)]
    assert Path(client.download_artifacts(child.info.run_id, "plot.csv")).read_text() == "a\n1\n"
    assert Path(client.download_artifacts(parent.info.run_id, "note.txt")).read_text() == "two\nlines"


def test_after_an_interruption_sending_again_repeats_nothing(project, spool, monkeypatch):
    for step in range(4):
        spool.metrics({"loss": float(step)}, step)
    spool.close("FINISHED")
    fail(monkeypatch, "metrics", {3})
    with pytest.raises(ConnectionError):
        send(project, spool.folder, recorded(spool.folder))
    assert spools(project) == [spool.folder]
    send_waiting(project)
    assert history(project) == [(step, float(step)) for step in range(4)]
    assert statuses(project, "stage") == ["FINISHED"]


def test_a_server_that_comes_back_while_the_stage_runs_gets_the_events_then(project, spool, monkeypatch):
    spool.metrics({"loss": 1.0}, 1)
    spool.close("FINISHED")
    tries, waits = fail(monkeypatch, "metrics", {1, 2}), iter([True, True])
    send(project, spool.folder, recorded(spool.folder), lambda: next(waits))
    assert not spools(project) and tries == [1, 1, 1] and next(waits, None) is None
    assert history(project) == [(1, 1.0)]


@pytest.mark.parametrize("broken_call", [1, 2])
def test_a_connection_that_breaks_while_runs_are_created_creates_none_twice(project, spool, monkeypatch, broken_call):
    spool.close("FINISHED")
    original, calls = Delivery._log_params, []

    def broken(self, run, params):
        calls.append(run)
        if len(calls) == broken_call:
            raise ConnectionError("the server went away")
        original(self, run, params)

    monkeypatch.setattr(Delivery, "_log_params", broken)
    with pytest.raises(ScanError, match="ConnectionError: the server went away"):
        send_waiting(project)
    assert send_waiting(project) == 1
    (child,), (parent,) = runs(project, "stage"), runs(project, "pipeline")
    assert child.data.params == {"pretext.epochs": "2"} and parent.data.params["cluster.heads"] == "2"
    assert child.info.status == parent.info.status == "FINISHED"


def test_a_spool_that_cannot_be_delivered_does_not_hold_up_the_others(project, spool):
    spool.close("FINISHED")
    (spool.folder / "events.jsonl").write_text("damaged\n")
    started(project, "embed").close("FINISHED")
    said = rf"^1 of 2 spools could not be delivered; the first is {spool.folder} \(JSONDecodeError: "
    with pytest.raises(ScanError, match=said):
        send_waiting(project)
    assert spools(project) == [spool.folder]
    assert [child.data.tags["scan.stage"] for child in runs(project, "stage")] == ["embed"]


def test_another_server_gets_what_the_first_has_taken_and_no_address_is_noted(project, spool, monkeypatch):
    spool.metrics({"loss": 1.0}, 1)
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(project / 'mlflow.db', project / 's3cret.db')}")
        deliver(project, spool)
    assert "s3cret" not in (spool.folder / "delivered.json").read_text()  # addresses may hold passwords
    assert send_waiting(project) == 1
    assert history(project) == [(1, 1.0)] and statuses(project, "stage") == ["FINISHED"]


@pytest.mark.parametrize("call", ["event", "copy", "text", "save"])
def test_a_full_disk_costs_one_warning_and_no_training(project, spool, monkeypatch, capsys, call):
    (project / "plot.csv").write_text("a\n1\n")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "event":
            events, spool._events = spool._events, open("/dev/full", "a")  # noqa: SIM115 (closed by the tracker)
            events.close()
            spool.metrics({"loss": 1.0}, 1)
        elif call == "copy":
            patch.setattr(tracking.shutil, "copy", full)
            spool.artifact(project / "plot.csv")
        else:
            patch.setattr(Path, "write_bytes", full)
            spool.text("a.json", "{}") if call == "text" else spool.save("a.npy", b"a")
    spool.metrics({"loss": 1.0}, 2)
    spool.artifact(project / "plot.csv")
    spool.close("FINISHED")
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert "nothing more is recorded for MLflow" in warning and "No space left" in warning
    assert [record["event"] for record in recorded(spool.folder)] == ["start"]


def test_a_spool_in_whose_deletion_a_process_was_killed_is_deleted_and_not_sent_again(project, spool, monkeypatch):
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder, **_: (folder / "events.jsonl").unlink())
        send(project, spool.folder, recorded(spool.folder))
    assert send_waiting(project) == 0 and not list(spool.folder.parent.iterdir())
    assert statuses(project, "stage") == ["FINISHED"]


def test_a_killed_stage_is_marked_and_its_cut_last_line_left_out(project, spool):
    spool.metrics({"loss": 1.0}, 1)
    with (spool.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "metr')
    spool._lock.release()  # as the end of its process does
    send_waiting(project)
    assert statuses(project, "stage") == ["KILLED"] and history(project) == [(1, 1.0)]


@pytest.mark.parametrize("breaks", ["before", "logged", "registered"])
def test_a_break_while_a_model_is_registered_leaves_no_second_one(project, spool, monkeypatch, breaks):
    import mlflow.pyfunc

    spool.save("example.json", b"{}")
    about = {"scan.sha256": "a1"}
    model = {"files": {}, "code": [], "example": "example.json", "requirements": [], "name": "photos", "about": about}
    spool.event("model", **model)
    spool.event("model", **model)  # of the same run, which was killed in between
    spool.close("FINISHED")
    client, experiment = connect(project)
    broken = [breaks]

    def log_model(registered_model_name, **_):
        def reach(where):
            if broken == [where]:
                broken.clear()
                raise ConnectionError("the server went away")

        run = mlflow.active_run().info.run_id
        reach("before")
        logged = client.create_logged_model(experiment, "model", source_run_id=run)
        reach("logged")
        if not client.search_registered_models():
            client.create_registered_model(registered_model_name)
        version = client.create_model_version(registered_model_name, "file:///model", run, model_id=logged.model_id)
        reach("registered")
        return type("Logged", (), {"registered_model_version": version.version})

    monkeypatch.setattr("mlflow.pyfunc.log_model", log_model)
    with pytest.raises(ConnectionError):
        send(project, spool.folder, recorded(spool.folder))
    send(project, spool.folder, recorded(spool.folder))
    assert not broken
    (version,) = client.search_model_versions("name = 'photos'")
    assert version.tags == about
    assert len(client.search_logged_models([experiment])) == 1


@pytest.mark.parametrize("late", [False, True])
def test_evaluate_completes_its_run_from_stages_of_other_runs(project, spool, late):
    """The second run took its pretext from the cache. The records of that pretext may come before or after it."""
    spool.metrics({"loss": 0.5}, 1)
    spool.close("FINISHED")
    if late:
        spool.folder.rename(project / "late")  # the server was away
    evaluate = started(project, "evaluate", key="another run", fingerprint="evaluate")
    evaluate.event("metrics", values={"val.selflabel.acc": 0.9}, step=0, parent=True)
    evaluate.event("complete", stages={"pretext": "f", "cluster": "unknown", "evaluate": "evaluate"})
    evaluate.close("FINISHED")
    send_waiting(project)
    if late:
        (run,) = runs(project, "pipeline")
        assert "not recorded" in run.data.tags["scan.made_by.pretext"]
        (project / "late").rename(spool.folder)
        send_waiting(project)
    ids = {run.data.tags["scan.stage"]: run.info.run_id for run in runs(project, "stage")}
    (run,) = (run for run in runs(project, "pipeline") if run.data.tags["scan.run"] == "another run")
    for stage in ("pretext", "evaluate"):
        assert run.data.tags[f"scan.made_by.{stage}"] == ids[stage]
    assert "not recorded" in run.data.tags["scan.made_by.cluster"]
    assert run.data.metrics == {"val.selflabel.acc": 0.9, "pretext.loss": 0.5} and run.info.status == "FINISHED"


def test_a_killed_attempt_whose_records_come_late_leaves_the_finished_run_as_it_is(project, spool):
    spool._lock.release()  # as the end of its process does
    spool.folder.rename(project / "late")
    time.sleep(0.01)  # times are whole milliseconds
    started(project).close("FINISHED")
    send_waiting(project)
    (run,) = runs(project, "pipeline")
    assert statuses(project, "stage") == ["FINISHED"]
    (project / "late").rename(spool.folder)
    send_waiting(project)
    assert statuses(project, "stage") == ["KILLED", "FINISHED"]
    assert runs(project, "pipeline")[0].info == run.info  # its status, and when it ended


def test_a_run_has_the_status_of_its_newest_stage(project, spool):
    deliver(project, spool)
    assert statuses(project, "pipeline") == ["RUNNING"]
    spool.close("FAILED")
    send_waiting(project)
    assert statuses(project, "pipeline") == ["FAILED"]
    time.sleep(0.01)
    deliver(project, started(project))
    assert statuses(project, "pipeline") == ["RUNNING"]


def test_tries_are_further_and_further_apart_and_end_with_the_stage(spool, monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_TRIES", (1.0, 4.0))
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(delivery.sys, "stdin", stdin)
        waited, select = [], delivery.select.select

        def at_once(read, write, error, seconds):
            waited.append(seconds)
            return select(read, write, error, 0)

        monkeypatch.setattr(delivery.select, "select", at_once)
        follower = SpoolFollower(spool.folder)
        events = iter(follower)
        assert next(events)["event"] == "start"
        assert [follower.wait() for _ in range(4)] == [True] * 4 and waited == [1.0, 2.0, 4.0, 4.0]
        spool.metrics({"loss": 1.0}, 1)
        assert next(events)["event"] == "metrics" and follower.wait()
        assert waited[4:] == [1.0]  # from the start again after an event has arrived
        os.close(write)
        assert not follower.wait()
        assert list(events) == []


def test_a_server_that_is_away_costs_one_warning_and_loses_nothing(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:s3cret@127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.delenv("SCAN_TRACKING")
    tracker = started(project)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    (warning,) = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith("pretext: warning: MLflow did not take") and "scan runs --send" in warning
    assert [record["event"] for record in recorded(tracker.folder)] == ["start", "metrics", "end"]
    said = r"^MLflow at http://anna:\*\*\*@127.0.0.1:9 does not take the records"
    with pytest.raises(ScanError, match=said) as caught:
        send_waiting(project)
    assert "s3cret" not in warning + str(caught.value) + (tracker.folder / "delivery.log").read_text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_waiting(project) == 1
    assert history(project) == [(1, 1.0)]


def test_a_delivery_that_hangs_is_left_behind_and_not_killed(project, monkeypatch, capsys):
    """It may be making the database, on a slow disk."""
    monkeypatch.delenv("SCAN_TRACKING")
    monkeypatch.setattr(tracking, "SECONDS_TO_WAIT", 0.5)
    real, processes = subprocess.Popen, []

    def hang(command, **options):
        processes.append(real(["sleep", "600"], **options))
        return processes[0]

    monkeypatch.setattr(subprocess, "Popen", hang)
    started(project).close("FINISHED")
    assert "did not answer in time" in capsys.readouterr().err and processes[0].poll() is None
    processes[0].kill()
    assert spools(project)


def test_a_delivery_gives_up_by_itself_after_the_stage(spool, monkeypatch):
    """The server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        words = "from pipeline.tracking import delivery; code = open(delivery.__file__).read()"
        words += (
            "; exec(compile(code.replace('STAGE = 900', 'STAGE = 1'), 'delivery', 'exec'), {'__name__': '__main__'})"
        )
        command = [sys.executable, "-c", words, str(spool.folder.parents[2]), str(spool.folder)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "did not take the records in 1 s after the stage's end" in done.stderr
    assert spools(spool.folder.parents[2])
