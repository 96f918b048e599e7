"""A stage that is stopped, however it is stopped: nothing that was finished is computed again."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from pipeline import stage as stage_module
from pipeline.stage import Stage
from pipeline.tracking.spool import Tracker
from tests.project import environment, half_done, make_project, run, run_stage, run_stages

pytestmark = pytest.mark.slow
WRITTEN = ("models/pretext.safetensors", "reports/plots/pretext.csv")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project whose images are there; DVC is not."""
    project = make_project(tmp_path_factory.mktemp("prepared") / "project", {"pretext": {"epochs": 2}})
    run_stages(project, "source", "prepare")
    return project


@pytest.fixture
def project(prepared, tmp_path):
    run(prepared, "cp", "-r", ".", str(tmp_path / "project"))
    return tmp_path / "project"


def take_away(project):
    """What DVC deletes before it runs a stage."""
    content = {path: (project / path).read_bytes() for path in WRITTEN}
    for path in WRITTEN:
        (project / path).unlink()
    return content


def test_under_dvc_a_finished_stage_is_taken_and_not_trained_again(project, monkeypatch):
    first = run_stage(project, "pretext", DVC_STAGE="pretext")
    assert "resuming" not in first.stderr
    whole = take_away(project)
    monkeypatch.setattr(Stage, "train", lambda *_: pytest.fail("it has trained again"))
    again = run_stage(project, "pretext", DVC_STAGE="pretext")
    assert "pretext   resuming at its end: its outputs were finished" in again.stderr
    assert take_away(project) == whole
    assert len(list((project / ".scan" / "tracking").iterdir())) == 2  # of prepare and of the first of these


def test_a_stage_that_is_run_by_hand_computes_and_keeps_nothing(project):
    run_stage(project, "pretext")
    whole = take_away(project)
    assert not (project / ".scan" / "finished").exists()
    assert "resuming" not in run_stage(project, "pretext").stderr and take_away(project) == whole


# In a process of its own, which the signal may end.
INTERRUPTED = """
import signal, sys
from pipeline.command import run
from {module} import {owner} as owner
from stages.pretext import app
original = owner.{name}
def interrupted(*arguments):
    if sys.exc_info()[0] is None:
        signal.raise_signal(signal.SIGINT)
    original(*arguments)
owner.{name} = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
run(app)
"""


@pytest.mark.parametrize(("owner", "name"), [(Stage, "finish"), (Tracker, "close")], ids=["outputs", "records"])
def test_ctrl_c_at_the_end_stops_dvc_and_costs_no_work(project, monkeypatch, owner, name):
    run_stage(project, "pretext")
    whole = take_away(project)
    code = INTERRUPTED.format(module=owner.__module__, owner=owner.__name__, name=name)
    variables = environment(SCAN_TRACKING="spool", SCAN_SAVE_SECONDS="0", DVC_STAGE="pretext")
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=variables, capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr.splitlines()[-1]
    monkeypatch.setattr(Stage, "train", lambda *_: pytest.fail("it has trained again"))
    run_stage(project, "pretext", DVC_STAGE="pretext")
    assert take_away(project) == whole


def test_a_stage_whose_dvc_is_killed_stops_by_itself_and_says_so(project):
    """There is a shell between the two, which lives on."""
    words = f"{shlex.quote(sys.executable)} -m stages.pretext; true"
    dvc = f"import os, subprocess; subprocess.run(['sh', '-c', {words!r}], env=os.environ | {{'DVC_STAGE': 'pretext'}})"
    command = [sys.executable, "-c", dvc]
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("epochs: 2", "epochs: 20000"))
    variables = environment(SCAN_TRACKING="spool", SCAN_SAVE_SECONDS="0")
    with (project / "said").open("w") as said:
        dvc = subprocess.Popen(command, cwd=project, env=variables, stderr=said, start_new_session=True)
    try:
        wait_for(lambda: list((project / ".scan").rglob("state-*.pt")), 120)
        dvc.kill()
        dvc.wait()
        wait_for(lambda: "interrupted" in (project / "said").read_text(), 15)
        assert "the DVC that runs it is gone" in (project / "said").read_text()
    finally:
        dvc.poll() is not None or os.killpg(dvc.pid, signal.SIGKILL)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_is_as_ctrl_c(project):
    process = half_done(project, "python -m stages.pretext")
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "pretext: error: interrupted; the next run resumes" in said


def test_who_is_at_work_is_named_after_the_time_in_which_it_may_stop(project, monkeypatch):
    monkeypatch.setattr(stage_module, "SECONDS_TO_STOP", 0.5)
    process = half_done(project, "python -m stages.pretext")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        done = run_stage(project, "pretext", check=False, DVC_STAGE="pretext")
        assert f"another pretext runs in {project}, process {process.pid}; wait for its end" in done.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_damaged_saved_state_starts_anew_and_ends_in_the_same_bytes(project):
    run_stage(project, "pretext")
    whole = take_away(project)
    process = half_done(project, "python -m stages.pretext")
    process.kill()
    process.communicate()
    (state,) = (project / ".scan" / "resume").rglob("state-*.pt")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 64
    state.write_bytes(content)
    done = run_stage(project, "pretext")
    assert "is damaged and is put aside" in done.stderr and "resuming" not in done.stderr
    assert take_away(project) == whole and not list((project / ".scan" / "resume").glob("pretext-*/*"))


def test_a_full_disk_for_states_ends_no_training(project, monkeypatch):
    import torch

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    done = run_stage(project, "pretext", SCAN_SAVE_SECONDS="0")
    assert done.stderr.count("is not saved") == 1 and "pretext   done" in done.stderr
    assert not list((project / ".scan" / "resume").rglob("*.partial"))
