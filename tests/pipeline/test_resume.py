"""The scratch state: whole or not there, tied to its fingerprint and environment, locked."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline.resume import ScratchFolder, holder

HERE = {"threads": 2, "torch": "1"}


def state(epoch: int) -> dict:
    return {"epoch": epoch, "step": 0, "module": {"w": torch.ones(2)}}


@pytest.fixture
def scratch(tmp_path):
    opened = ScratchFolder(tmp_path, "pretext", "a" * 64)
    yield opened
    opened.close(finished=False)


def test_what_other_inputs_left_unfinished_is_kept_for_a_week(tmp_path, scratch):
    others = {days: ScratchFolder(tmp_path, "pretext", f"{days}" * 64) for days in (6, 8)}
    for days, other in others.items():
        other.save(state(3), HERE)
        other.close(finished=False)
        os.utime(other.folder, (time.time() - days * 86_400,) * 2)
    at_work = ScratchFolder(tmp_path, "pretext", "f" * 64)
    os.utime(at_work.folder, (0, 0))
    os.utime(scratch.folder, (0, 0))
    scratch.delete_stale("pretext")
    assert others[6].load(HERE)["epoch"] == 3 and not others[8].folder.exists()
    assert at_work.folder.exists() and scratch.folder.exists()
    at_work.close(finished=False)


def test_another_environment_starts_afresh_unless_told_and_keeps_the_other_s_state(tmp_path, monkeypatch, capsys):
    scratch, there = ScratchFolder(tmp_path, "pretext", "a" * 64), {**HERE, "threads": 4}
    scratch.save(state(30), HERE)
    assert scratch.load(there) is None and "threads 2 -> 4" in capsys.readouterr().err
    scratch.save(state(1), there)
    assert scratch.load(HERE)["epoch"] == 30 and scratch.load(there)["epoch"] == 1
    monkeypatch.setenv("SCAN_RESUME", "any")
    capsys.readouterr()
    assert scratch.load(there)["epoch"] == 1  # its own, where it has one
    assert "bytes will differ" not in capsys.readouterr().err
    assert scratch.load({**HERE, "threads": 8})["epoch"] == 1  # else the last
    assert "bytes will differ" in capsys.readouterr().err
    scratch.close(finished=True)
    assert not scratch.folder.exists()


def full(*_):
    """``torch.save`` on a full disk."""
    _[1].write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def names(scratch):
    return sorted(file.suffix for file in scratch.folder.iterdir())


def test_a_write_that_is_cut_short_leaves_the_old_state_and_nothing_else(scratch, monkeypatch):
    scratch.save(state(3), HERE)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        scratch.save(state(4), HERE)
    assert scratch.load(HERE)["epoch"] == 3 and names(scratch) == [".pt", ".sha256"]


def test_a_full_disk_is_said_once_and_ends_no_training(scratch, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        scratch.save_if_room(state(1), HERE)
        scratch.save_if_room(state(2), HERE)
    (said,) = capsys.readouterr().err.splitlines()
    assert "no room is left on the disk" in said and str(scratch.folder) in said and "training goes on" in said
    assert names(scratch) == []
    scratch.save_if_room(state(3), HERE)
    assert scratch.load(HERE)["epoch"] == 3


def flip(content):
    return content[:1500] + bytes([content[1500] ^ 1]) + content[1501:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:900], lambda _: b""], ids=["bit", "cut", "empty"])
def test_a_damaged_state_is_put_aside_and_said(scratch, capsys, damage):
    scratch.save({**state(3), "module": {"w": torch.zeros(500)}}, HERE)
    file = scratch.file(HERE)
    file.write_bytes(damage(file.read_bytes()))
    assert scratch.load(HERE) is None and names(scratch) == [".damaged", ".sha256"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "is damaged and is put aside" in said and "starting anew" in said
    scratch.save(state(1), HERE)
    assert scratch.load(HERE)["epoch"] == 1


def test_kills_between_a_state_and_its_sum_cost_no_state(scratch, monkeypatch):
    scratch.save(state(3), HERE)
    for epoch in (4, 5, 6):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
            with pytest.raises(OSError, match="killed"):
                scratch.save(state(epoch), HERE)
        assert scratch.load(HERE)["epoch"] == 3


def test_the_process_that_holds_a_lock_is_named(tmp_path, scratch):
    lock = scratch.folder.with_suffix(".lock")
    words = """import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()"""
    assert holder(lock) == f"process {os.getpid()}"
    other = tmp_path / "other.lock"
    with subprocess.Popen([sys.executable, "-c", words, str(other)], stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        assert holder(other) == f"process {process.pid}"
        process.stdin.close()
    assert holder(tmp_path / "none.lock") == "another process"


@pytest.fixture
def second(tmp_path):
    """Starts a second run of the same thing in the background; returns what it has when the first is done."""

    def start():
        opened: list[ScratchFolder] = []
        waiting = threading.Thread(target=lambda: opened.append(ScratchFolder(tmp_path, "pretext", "d" * 64)))
        waiting.start()
        time.sleep(0.3)
        assert not opened

        def wait() -> ScratchFolder:
            waiting.join(timeout=10)
            return opened[0]

        return wait

    return start


def test_the_second_of_two_waits_for_the_first(tmp_path, second, capsys):
    first = ScratchFolder(tmp_path, "pretext", "d" * 64)
    wait = second()
    first.close(finished=True)
    opened = wait()
    assert "waiting for it" in capsys.readouterr().err
    opened.save(state(1), HERE)  # its folder is there although the first has deleted it
    opened.close(finished=True)


def test_the_second_goes_on_from_the_end_of_the_first(tmp_path, second):
    first = ScratchFolder(tmp_path, "pretext", "d" * 64)
    wait = second()
    first.save_for_waiter(state(120), HERE)
    first.close(finished=True)
    opened = wait()
    assert opened.load(HERE)["epoch"] == 120
    opened.save_for_waiter(state(120), HERE)
    opened.close(finished=True)
    assert not opened.folder.exists()  # nobody waits for the second
    assert [file.suffix for file in opened.folder.parent.iterdir()] == [".lock"]


def test_what_nobody_waits_for_is_handed_to_nobody(tmp_path):
    scratch = ScratchFolder(tmp_path, "pretext", "d" * 64)
    left = scratch.folder.with_suffix(".waiting-12345678")
    left.touch()  # of a run that was killed while it waited
    scratch.save_for_waiter(state(120), HERE)
    scratch.close(finished=True)
    assert not scratch.folder.exists() and not left.exists()


def test_a_disk_without_room_for_the_second_does_not_fail_the_first(tmp_path, second, monkeypatch, capsys):
    first = ScratchFolder(tmp_path, "pretext", "d" * 64)
    wait = second()

    monkeypatch.setattr(torch, "save", full)
    first.save_for_waiter(state(120), HERE)
    first.close(finished=True)
    said = capsys.readouterr().err
    assert wait().load(HERE) is None and "has to train again" in said and "No space left" in said
