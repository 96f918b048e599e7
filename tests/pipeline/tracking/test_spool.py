"""Tracking: everything goes by way of the spool, arrives once, and nothing there can stop a stage."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.tracking import delivery
from pipeline.tracking import spool as tracking
from pipeline.tracking.delivery import Followed, recorded, send, send_waiting
from pipeline.tracking.mlflow_runs import Delivery
from pipeline.tracking.spool import Tracker, spools, tracking_address
from scan_core.errors import ScanError


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """A tracker that only writes, in a project of its own."""
    monkeypatch.setenv("SCAN_TRACKING", "spool")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(tmp_path, "pretext")


def start(tracker: Tracker, stage: str = "pretext", key: str = "run", fingerprint: str = "f") -> None:
    tracker.event(
        "start", stage=stage, key=key, name="digits seed 0", params={"seed": "0", "cluster.heads": "2"},
        own={"pretext.epochs": "2"}, tags={"scan.fingerprint": fingerprint},
    )  # fmt: skip


def runs(root, kind):
    import mlflow

    client = mlflow.MlflowClient(tracking_address(root))
    experiment = client.get_experiment_by_name("scan").experiment_id
    found = client.search_runs([experiment], f"tags.`scan.kind` = '{kind}'", order_by=["attributes.start_time ASC"])
    return client, found


def test_a_spool_becomes_a_parent_and_a_child_and_is_gone(tmp_path, spool):
    start(spool)
    spool.metrics({"loss": 2.0}, 1)
    spool.metrics({"loss": 1.0}, 2)
    (tmp_path / "plot.csv").write_text("a\n1\n")
    spool.artifact(tmp_path / "plot.csv")
    (tmp_path / "plot.csv").write_text("later\n")  # what is logged is what there was
    spool.close("FINISHED")
    assert send_waiting(tmp_path) == 1
    assert not spools(tmp_path)

    client, (child,) = runs(tmp_path, "stage")
    _, (parent,) = runs(tmp_path, "pipeline")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.status == parent.info.status == "FINISHED"
    assert parent.data.params == {"seed": "0", "cluster.heads": "2"}
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    copy = client.download_artifacts(child.info.run_id, "plot.csv")
    assert Path(copy).read_text() == "a\n1\n"


def test_what_broke_off_is_sent_later_and_nothing_twice(tmp_path, spool, monkeypatch):
    start(spool)
    for step in range(4):
        spool.metrics({"loss": float(step)}, step)
    spool.close("FINISHED")
    original, seen = Delivery._metrics, []

    def broken(self, **record):
        if len(seen) == 2:
            raise ConnectionError("the server went away")
        seen.append(record["step"])
        original(self, **record)

    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "_metrics", broken)
        with pytest.raises(ConnectionError):
            send(tmp_path, spool.folder, recorded(spool.folder))
    assert spools(tmp_path) == [spool.folder]
    send_waiting(tmp_path)
    client, (child,) = runs(tmp_path, "stage")
    assert [m.step for m in client.get_metric_history(child.info.run_id, "loss")] == [0, 1, 2, 3]
    assert child.info.status == "FINISHED"


def test_a_spool_that_cannot_be_delivered_does_not_hold_up_the_others(tmp_path, spool, monkeypatch):
    start(spool)
    spool.close("FINISHED")
    (spool.folder / "events.jsonl").write_text("damaged\n")
    second = Tracker(tmp_path, "embed")
    start(second, "embed")
    second.close("FINISHED")
    with pytest.raises(ScanError, match=rf"^1 of 2 spools were taken; {spool.folder} not \(JSONDecodeError: "):
        send_waiting(tmp_path)
    assert spools(tmp_path) == [spool.folder]
    assert [child.data.tags["scan.stage"] for child in runs(tmp_path, "stage")[1]] == ["embed"]


def test_what_another_server_has_taken_is_sent_again(tmp_path, spool, monkeypatch):
    start(spool)
    spool.metrics({"loss": 1.0}, 1)
    spool.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'first.db'}")
        half = Delivery(tmp_path, spool.folder)
        half.deliver(recorded(spool.folder)[0])
    assert send_waiting(tmp_path) == 1
    _, (child,) = runs(tmp_path, "stage")
    assert child.data.metrics == {"loss": 1.0} and child.info.status == "FINISHED"


@pytest.mark.parametrize("call", ["event", "copy", "text", "save"])
def test_a_full_disk_costs_one_warning_and_no_training(tmp_path, spool, monkeypatch, capsys, call):
    start(spool)
    (tmp_path / "plot.csv").write_text("a\n1\n")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "event":
            events, spool._events = spool._events, open("/dev/full", "a")  # noqa: SIM115 (closed by the tracker)
            events.close()
            spool.metrics({"loss": 1.0}, 1)
        elif call == "copy":
            patch.setattr(tracking.shutil, "copy", full)
            spool.artifact(tmp_path / "plot.csv")
        else:
            patch.setattr(Path, "write_bytes", full)
            spool.text("a.json", "{}") if call == "text" else spool.save("a.npy", b"a")
    spool.metrics({"loss": 1.0}, 2)
    spool.artifact(tmp_path / "plot.csv")
    spool.close("FINISHED")
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "nothing more is recorded for MLflow" in said[0] and "No space left" in said[0]
    assert [record["event"] for record in recorded(spool.folder)] == ["start"]


def test_a_killed_stage_is_marked_and_its_cut_last_line_left_out(tmp_path, spool):
    start(spool)
    spool.metrics({"loss": 1.0}, 1)
    with (spool.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "metr')
    spool._lock.release()  # as the end of its process does
    send_waiting(tmp_path)
    _, (child,) = runs(tmp_path, "stage")
    assert child.info.status == "KILLED" and child.data.metrics == {"loss": 1.0}


def test_stages_of_one_run_share_a_row_that_evaluate_completes_from_other_runs(tmp_path, spool, monkeypatch):
    start(spool, fingerprint="pretext of both")
    spool.metrics({"loss": 0.5}, 1)
    spool.close("FINISHED")
    other = Tracker(tmp_path, "evaluate")  # a run with other settings, whose pretext came from the cache
    start(other, "evaluate", key="another run", fingerprint="evaluate")
    other.event("metrics", values={"val.selflabel.acc": 0.9}, step=0, parent=True)
    other.event("complete", stages={"pretext": "pretext of both", "cluster": "unknown", "evaluate": "evaluate"})
    other.close("FINISHED")
    send_waiting(tmp_path)
    second = next(run for run in runs(tmp_path, "pipeline")[1] if run.data.tags["scan.run"] == "another run")
    stages = {run.data.tags["scan.stage"]: run for run in runs(tmp_path, "stage")[1]}
    pretext, evaluate = stages["pretext"], stages["evaluate"]
    assert second.data.tags["scan.made_by.pretext"] == pretext.info.run_id
    assert second.data.tags["scan.made_by.evaluate"] == evaluate.info.run_id
    assert "not recorded" in second.data.tags["scan.made_by.cluster"]
    assert second.data.metrics == {"val.selflabel.acc": 0.9, "pretext.loss": 0.5}


def test_a_stage_whose_records_come_late_completes_the_runs_that_were_without_it(tmp_path, spool):
    start(spool, fingerprint="pretext of both")
    spool.metrics({"loss": 0.5}, 1)
    spool.close("FINISHED")
    late = tmp_path / "late"
    spool.folder.rename(late)  # the server was away
    for key in ("run", "another run"):
        evaluate = Tracker(tmp_path, "evaluate")
        start(evaluate, "evaluate", key=key, fingerprint=f"evaluate of {key}")
        evaluate.event("complete", stages={"pretext": "pretext of both", "evaluate": f"evaluate of {key}"})
        evaluate.close("FINISHED")
    send_waiting(tmp_path)
    assert all("not recorded" in run.data.tags["scan.made_by.pretext"] for run in runs(tmp_path, "pipeline")[1])
    late.rename(spool.folder)
    send_waiting(tmp_path)
    pretext = next(run for run in runs(tmp_path, "stage")[1] if run.data.tags["scan.stage"] == "pretext")
    for run in runs(tmp_path, "pipeline")[1]:
        assert run.data.tags["scan.made_by.pretext"] == pretext.info.run_id
        assert run.data.metrics == {"pretext.loss": 0.5} and run.info.status == "FINISHED"


def test_an_attempt_that_was_killed_does_not_unmake_the_run_when_its_records_come_late(tmp_path, spool):
    start(spool)
    spool._lock.release()  # as the end of its process does
    late = tmp_path / "late"
    spool.folder.rename(late)
    time.sleep(0.01)  # times are whole milliseconds
    again = Tracker(tmp_path, "pretext")
    start(again)
    again.close("FINISHED")
    send_waiting(tmp_path)
    ((run,), before) = runs(tmp_path, "pipeline")[1], [each.info.status for each in runs(tmp_path, "stage")[1]]
    late.rename(spool.folder)
    send_waiting(tmp_path)
    assert before == ["FINISHED"]
    assert [each.info.status for each in runs(tmp_path, "stage")[1]] == ["KILLED", "FINISHED"]
    assert runs(tmp_path, "pipeline")[1][0].info == run.info  # its status, and when it ended


def test_a_run_is_under_way_while_its_newest_stage_is(tmp_path, spool):
    start(spool)
    Delivery(tmp_path, spool.folder).deliver(recorded(spool.folder)[0])
    assert runs(tmp_path, "pipeline")[1][0].info.status == "RUNNING"
    spool.close("FAILED")
    send_waiting(tmp_path)
    assert runs(tmp_path, "pipeline")[1][0].info.status == "FAILED"
    time.sleep(0.01)
    again = Tracker(tmp_path, "pretext")
    start(again)
    Delivery(tmp_path, again.folder).deliver(recorded(again.folder)[0])
    assert runs(tmp_path, "pipeline")[1][0].info.status == "RUNNING"


def test_a_server_that_comes_back_while_the_stage_is_at_work_gets_its_records_then(tmp_path, spool, monkeypatch):
    start(spool)
    spool.metrics({"loss": 1.0}, 1)
    spool.close("FINISHED")
    original, tries = Delivery._metrics, []

    def away(self, **record):
        tries.append(record)
        if len(tries) < 3:
            raise ConnectionError("the server is away")
        original(self, **record)

    monkeypatch.setattr(Delivery, "_metrics", away)
    waits = iter([True, True])
    send(tmp_path, spool.folder, recorded(spool.folder), lambda: next(waits))
    assert not spools(tmp_path) and len(tries) == 3 and next(waits, None) is None
    assert runs(tmp_path, "stage")[1][0].data.metrics == {"loss": 1.0}


def test_tries_are_further_and_further_apart_and_end_with_the_stage(tmp_path, spool, monkeypatch):
    start(spool)
    read, write = os.pipe()
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_TRIES", (1.0, 4.0))
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(delivery.sys, "stdin", stdin)
        waited, select = [], delivery.select.select

        def at_once(read, write, error, seconds):
            waited.append(seconds)
            return select(read, write, error, 0)

        monkeypatch.setattr(delivery.select, "select", at_once)
        followed = Followed(spool.folder)
        events = iter(followed)
        assert next(events)["event"] == "start"
        assert [followed.wait() for _ in range(4)] == [True] * 4 and waited == [1.0, 2.0, 4.0, 4.0]
        spool.metrics({"loss": 1.0}, 1)
        assert next(events)["event"] == "metrics" and followed.wait()
        assert waited[4:] == [1.0]  # once one has arrived, from the start
        os.close(write)
        assert not followed.wait()
        assert list(events) == []


def test_what_scan_tracking_may_be_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SCAN_TRACKING", "off")
    with pytest.raises(ScanError, match=r"^SCAN_TRACKING is off; spool is allowed, or leave it unset$"):
        Tracker(tmp_path, "pretext")
    assert not spools(tmp_path)


def test_no_password_is_noted(tmp_path, spool, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 's3cret.db'}")
    start(spool)
    Delivery(tmp_path, spool.folder).deliver(recorded(spool.folder)[0])
    assert "s3cret" not in (spool.folder / "delivered.json").read_text()


def test_a_server_that_is_away_costs_seconds_and_one_warning_and_loses_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.delenv("SCAN_TRACKING", raising=False)
    tracker = Tracker(tmp_path, "pretext")
    start(tracker)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "scan send" in said[0]
    assert [record["event"] for record in recorded(tracker.folder)] == ["start", "metrics", "end"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_waiting(tmp_path) == 1
    _, (child,) = runs(tmp_path, "stage")
    assert child.data.metrics == {"loss": 1.0}


def test_a_delivery_that_hangs_is_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SCAN_TRACKING", raising=False)
    monkeypatch.setattr(tracking, "SECONDS_TO_WAIT", 0.5)
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: real(["sleep", "30"], **kw))
    tracker = Tracker(tmp_path, "pretext")
    start(tracker)
    before = time.monotonic()
    tracker.close("FINISHED")
    assert time.monotonic() - before < 20
    assert "did not answer in time" in capsys.readouterr().err
    assert spools(tmp_path)


def test_the_address_is_absolute_and_a_server_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_address(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_address(tmp_path) == "http://server:5000"


def test_events_are_one_json_object_a_line(spool):
    spool.event("metrics", values={"a": 1.0}, step=1)
    spool.event("tags", values={"text": "two\nlines"})
    lines = (spool.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["metrics", "tags"]


def test_sending_leaves_a_running_stage_alone(tmp_path, spool):
    start(spool)
    assert send_waiting(tmp_path) == 0
    spool.metrics({"loss": 1.0}, 1)
    spool.close("FINISHED")
    assert send_waiting(tmp_path) == 1
    _, (child,) = runs(tmp_path, "stage")
    assert child.info.status == "FINISHED" and child.data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("broken_call", [1, 2])
def test_a_connection_that_breaks_while_rows_are_made_makes_none_twice(tmp_path, spool, monkeypatch, broken_call):
    start(spool)
    spool.close("FINISHED")
    original, calls = Delivery._log_params, []

    def broken(self, run, params):
        calls.append(run)
        if len(calls) == broken_call:
            raise ConnectionError("the server went away")
        original(self, run, params)

    monkeypatch.setattr(Delivery, "_log_params", broken)
    with pytest.raises(ScanError, match="ConnectionError: the server went away"):
        send_waiting(tmp_path)
    assert send_waiting(tmp_path) == 1
    _, (child,) = runs(tmp_path, "stage")
    _, (parent,) = runs(tmp_path, "pipeline")
    assert child.data.params == {"pretext.epochs": "2"} and parent.data.params["cluster.heads"] == "2"
    assert child.info.status == parent.info.status == "FINISHED"
