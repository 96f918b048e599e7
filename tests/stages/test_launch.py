"""Training stages under torchrun, as ``SCAN_LAUNCH`` makes ``dvc repro`` start them, in a tiny copy of the project."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.tracking.spool import spools
from tests.project import OUTPUTS, ROOT, STAGES, files, half_done, make_project, run, run_stage

pytestmark = pytest.mark.slow

LAUNCH = "torchrun --standalone --nproc-per-node 2 -m stages."
TRAINING = ("pretext", "cluster", "selflabel")
ENV = {"SCAN_TRACKING": "spool", "SCAN_SAVE_SECONDS": "0"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which two processes have done each training stage. The tests go on from one another."""
    folder = make_project(tmp_path_factory.mktemp("launch") / "project", {"pretext": {"epochs": 12}})
    for stage in ("source", *STAGES):
        if stage not in TRAINING:
            run_stage(folder, stage)
            continue
        done = run(folder, *f"{LAUNCH}{stage}".split(), **ENV)
        assert len(re.findall(f"^{stage} +done in", done.stderr, re.MULTILINE)) == 1, done.stderr
    return folder


def test_dvc_starts_the_training_stages_and_no_others_so():
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        launched = rf"sh -c 'exec \${{SCAN_LAUNCH:-python}} -m stages.{name}'"
        assert stage["cmd"] == (launched if name in TRAINING else f"python -m stages.{name}")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "tcsh"])
@pytest.mark.parametrize(("launch", "called"), [(None, "-m stages.pretext"), ("python two", "two -m stages.pretext")])
def test_whatever_the_users_shell_the_launcher_is_taken_word_by_word(tmp_path, shell, launch, called):
    """DVC runs commands by it. zsh splits no variable into words; fish and tcsh know nothing of a default for one."""
    found = shutil.which(shell)
    if not found:
        pytest.skip(f"there is no {shell} here")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$#:$*"\n')
    python.chmod(0o755)
    command = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["pretext"]["cmd"].replace(r"\$", "$")
    launcher = {} if launch is None else {"SCAN_LAUNCH": launch}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(tmp_path, found, "-c", command, **launcher, PATH=path)
    assert done.stdout.strip() == f"{len(called.split())}:{called}"


def test_whatever_the_number_of_processes_one_writes_and_records(project):
    assert files(project) == OUTPUTS
    assert not [path for path in (project / ".scan" / "outputs").rglob("*") if path.is_file()]
    assert not list((project / ".scan" / "resume").rglob("*.pt"))
    processes = {}
    for folder in spools(project):
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        stage = events[0]["stage"]
        assert stage not in processes
        tags = [event["values"] for event in events if event["event"] == "tags"]
        processes[stage] = next((each["scan.processes"] for each in tags if "scan.processes" in each), None)
    assert {stage: processes[stage] for stage in TRAINING} == dict.fromkeys(TRAINING, "2")


def test_a_process_that_is_killed_ends_all_and_the_next_run_gives_the_same_bytes(project):
    weights = project / "models" / "pretext.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    process = half_done(project, f"{LAUNCH}pretext")
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "stages.pretext"], capture_output=True, text=True)
    environs = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in found.stdout.split()}
    os.kill(next(pid for pid, environ in environs.items() if b"\0RANK=1\0" in environ), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode and not weights.exists()

    again = run(project, *f"{LAUNCH}pretext".split(), **ENV)
    assert again.stderr.count("resuming after ") == 1
    assert weights.read_bytes() == whole
