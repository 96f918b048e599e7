"""Training stages under ``SCAN_LAUNCH``, in two processes, in a tiny copy of the real project."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.tracking import spools
from tests.project import OUTPUTS, environment, files, make_dvc_project, run, set_params
from tests.stages.test_dvc import rows

pytestmark = pytest.mark.slow

LAUNCH = "torchrun --standalone --nproc-per-node 2"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose pipeline has run with two processes in each training stage. The tests go on from one another."""
    folder = make_dvc_project(tmp_path_factory.mktemp("launch") / "project")
    done = run(folder, "dvc", "repro", SCAN_LAUNCH=LAUNCH)
    for stage in ("prepare", "pretext", "embed", "cluster", "selflabel", "evaluate"):
        assert len(re.findall(f"^{stage} +done in", done.stderr, re.MULTILINE)) == 1, stage
    return folder


def test_the_pipeline_runs_once_whatever_the_number_of_processes(project):
    assert files(project) == OUTPUTS
    assert not [path for path in (project / ".scan" / "outputs").rglob("*") if path.is_file()]
    assert spools(project) == []
    assert len(rows(project, "pipeline")) == 1
    processes = {row.data.tags["scan.stage"]: row.data.tags.get("scan.processes") for row in rows(project, "stage")}
    assert processes == {
        "prepare": None, "neighbors": None, "embed": "1", "evaluate": "1", "pretext": "2", "cluster": "2",
        "selflabel": "2",
    }  # fmt: skip


@pytest.mark.parametrize("killed", ["first", "other"])
def test_a_process_that_is_killed_ends_all_and_the_next_run_gives_the_same_bytes(project, killed):
    set_params(project, {"pretext": {"epochs": 30}})
    command = [*LAUNCH.split(), "-m", "stages.pretext"]
    env = {"SCAN_TRACKING": "spool", "SCAN_SAVE_SECONDS": "0"}
    run(project, *command, **env)
    weights = project / "models" / "pretext.safetensors"
    whole = weights.read_bytes()
    weights.unlink()

    process = subprocess.Popen(command, cwd=project, env=environment(**env), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((project / ".scan" / "resume").rglob("state.pt")):
        assert process.poll() is None and time.monotonic() < deadline, "no state was saved before the end"
        time.sleep(0.005)
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "stages.pretext"], capture_output=True, text=True)
    of_rank = {b"\0RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes(): int(pid) for pid in found.stdout.split()}
    os.kill(of_rank[killed == "first"], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode and not weights.exists()

    again = run(project, *command, **env)
    assert again.stderr.count("resuming after epoch") == 1
    assert weights.read_bytes() == whole
    assert "not resuming, for other bytes would come out" not in again.stderr


def test_a_batch_that_cannot_be_shared_is_one_line_of_the_stage(project):
    set_params(project, {"pretext": {"batch_size": 255}})
    done = run(project, *LAUNCH.split(), "-m", "stages.pretext", check=False, SCAN_TRACKING="spool")
    said = "pretext: error: pretext.batch_size is 255, but 2 processes share a batch; a multiple of 2 is allowed"
    assert done.returncode and said in done.stderr
