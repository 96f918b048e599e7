"""What a killed DVC leaves is mended, and what a living one needs is left alone."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys

import pytest

from pipeline.mend import damaged_objects, mend
from tests.project import make_dvc_project, run

LOCK = "schema: '2.0'\nstages:\n  source:\n    cmd: python -m stages.source\n"
COPY = ".Zk3v9xQ-1_abcDEFghijkl.tmp"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder as DVC leaves it, with the last commit's dvc.lock."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    for words in ("init -q", "config user.name a", "config user.email a@b", "add dvc.lock", "commit -qm lock"):
        subprocess.run(["git", *words.split()], check=True)
    return tmp_path


def rwlock(project, pid):
    held = {"write": {"/x/data": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}
    (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(held))


def cut(project):
    (project / "dvc.lock").write_text("")
    copies = [
        project / "data" / f"images{COPY}",
        project / ".dvc/cache/files/md5/ab" / COPY,
        project / ".dvc/tmp" / COPY,
    ]
    for copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return copies


def test_a_whole_project_is_left_as_it_is_in_silence(project, capsys):
    rwlock(project, 1)
    (project / "data").mkdir()
    (project / "data" / "mine.tmp").touch()
    mend()
    assert capsys.readouterr().err == "" and (project / "dvc.lock").read_text() == LOCK
    assert (project / "data" / "mine.tmp").exists() and (project / ".dvc" / "tmp" / "rwlock").exists()


@pytest.mark.parametrize("damaged", ["", LOCK[:40], LOCK[:-6], "stages: 1\n", "x: [\n", "\0\0\0"])
def test_a_cut_lock_is_put_aside_and_the_last_commit_s_comes_back(project, capsys, damaged):
    (project / "dvc.lock").write_text(damaged)
    mend()
    assert (project / "dvc.lock").read_text() == LOCK
    assert (project / ".scan" / "dvc.lock.damaged").read_text() == damaged
    (said,) = capsys.readouterr().err.splitlines()
    assert "put aside as .scan/dvc.lock.damaged, and the last commit's is there again" in said


def test_without_a_committed_one_dvc_writes_a_new_one(project, capsys):
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "none"], check=True)
    (project / "dvc.lock").write_text("")
    mend()
    assert not (project / "dvc.lock").exists() and "a new one will be written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", '{"read": {}, "wri', "[]"])
def test_a_cut_rwlock_is_deleted(project, capsys, content):
    file = project / ".dvc" / "tmp" / "rwlock"
    file.write_text(content)
    mend()
    assert not file.exists() and "rwlock" in capsys.readouterr().err


def test_half_copies_are_deleted_once_nobody_is_at_work(project, capsys):
    copies = cut(project)
    rwlock(project, os.getpid())
    mend()
    assert all(copy.exists() for copy in copies) and (project / "dvc.lock").read_text() == ""
    ended = subprocess.Popen(["true"])
    ended.wait()
    rwlock(project, ended.pid)
    mend()
    assert not any(copy.exists() for copy in copies) and "3 half copies" in capsys.readouterr().err


def test_an_experiment_elsewhere_counts_and_so_does_a_lock_that_is_held(project):
    copies = cut(project)
    elsewhere = project / ".dvc" / "tmp" / "exps" / "temp1"
    (elsewhere / ".dvc" / "tmp").mkdir(parents=True)
    rwlock(elsewhere, os.getpid())
    mend()
    assert all(copy.exists() for copy in copies)
    rwlock(elsewhere, 2**22 - 1)
    with (project / ".dvc" / "tmp" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        mend()
    assert all(copy.exists() for copy in copies)
    mend()
    assert not any(copy.exists() for copy in copies)


def test_damaged_objects_are_found_with_the_outputs_they_belong_to(project):
    listing = json.dumps([{"md5": hashlib.md5(b"pixels").hexdigest(), "relpath": "a.npy"}]).encode()
    names = {hashlib.md5(content).hexdigest(): content for content in (b"pixels", b"model")}
    names[f"{hashlib.md5(listing).hexdigest()}.dir"] = listing
    for name, content in names.items():
        file = project / ".dvc/cache/files/md5" / name[:2] / name[2:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    outs = [{"path": "models/m", "md5": hashlib.md5(b"model").hexdigest()}, {"path": "data/images", "md5": name}]
    (project / "dvc.lock").write_text(json.dumps({"stages": {"prepare": {"cmd": "x", "outs": outs}}}))
    assert damaged_objects() == {}
    for name in list(names)[:2]:
        (project / ".dvc/cache/files/md5" / name[:2] / name[2:]).write_bytes(b"other")
    assert sorted(damaged_objects().values()) == [["data/images/a.npy"], ["models/m"]]


@pytest.mark.slow
def test_dvc_runs_again_after_it_was_killed_while_it_wrote_its_own_files(tmp_path):
    project = make_dvc_project(tmp_path / "project")
    run(project, "dvc", "repro", "prepare", SCAN_TRACKING="spool")
    before = (project / "dvc.lock").read_bytes()
    for file in ("dvc.lock", ".dvc/tmp/rwlock"):
        (project / file).write_text("")
        assert run(project, "dvc", "repro", "prepare", check=False, SCAN_TRACKING="spool").returncode
    run(project, sys.executable, "-m", "pipeline.cli", "settings", "check")
    said = run(project, "dvc", "repro", "prepare", SCAN_TRACKING="spool")
    assert (project / "dvc.lock").read_bytes() == before and "prepare   done" not in said.stderr
    run(project, sys.executable, "-m", "pipeline.cli", "settings", "check")
    assert not list((project / ".scan").rglob("finished/*"))
    victim = next(file for file in (project / ".dvc/cache/files/md5").rglob("*") if file.is_file())
    victim.chmod(0o644)
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = run(project, sys.executable, "-m", "pipeline.cli", "--verify", check=False)
    assert found.returncode == 1 and victim.name in found.stdout and "1 objects of DVC's cache" in found.stderr
    victim.unlink()
    run(project, "dvc", "commit", "-f", "source", "prepare")
    assert "has the bytes" in run(project, sys.executable, "-m", "pipeline.cli", "--verify").stderr
