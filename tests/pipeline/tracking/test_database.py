"""mlflow.db is whole or not there, whoever is killed while it is made."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from pipeline.tracking.database import make_database, put_aside_half_made
from pipeline.tracking.mlflow_runs import connect


def make(address):
    """As MLflow: tables, and at last the experiment Default."""
    with sqlite3.connect(address.removeprefix("sqlite:///")) as database:
        database.execute("CREATE TABLE experiments (name)")
        database.execute("INSERT INTO experiments VALUES ('Default')")
    database.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mlflow.db"


def half_made(file, tables=("runs",)):
    with sqlite3.connect(file) as database:
        for name in tables:
            database.execute(f"CREATE TABLE {name} (name)")
    database.close()


def names(file):
    return sorted(path.name for path in file.parent.iterdir())


def test_a_new_one_is_made_beside_and_comes_whole(file):
    def watched(address):
        assert address == f"sqlite:///{file}.making-{os.getpid()}" and not file.exists()
        make(address)

    make_database(f"sqlite:///{file}", watched)
    assert names(file) == ["mlflow.db"]
    make_database(f"sqlite:///{file}", lambda _: pytest.fail("it is there"))


def test_no_other_address_is_touched(tmp_path):
    for address in ("http://host", "postgresql://host/db", "sqlite:///", "mysql://host"):
        make_database(address, lambda _: pytest.fail("no file"))


def test_of_two_that_make_it_at_once_the_first_one_s_stays(file):
    def slower(address):
        make_database(f"sqlite:///{file}", make)
        with sqlite3.connect(file) as database:
            database.execute("INSERT INTO experiments VALUES ('mine')")
        make(address.replace("making", "making-second"))

    def second(address):
        os.rename(f"{file}.making-second-{os.getpid()}", address.removeprefix("sqlite:///"))

    make_database(f"sqlite:///{file}", lambda address: (slower(address), second(address)))
    with sqlite3.connect(file) as database:
        assert [name for (name,) in database.execute("SELECT name FROM experiments")] == ["Default", "mine"]


@pytest.mark.parametrize("tables", [(), ("runs",), ("runs", "experiments", "alembic_version")])
def test_a_half_made_one_is_put_aside_and_said(file, capsys, tables):
    half_made(file, tables)
    file.touch()
    make_database(f"sqlite:///{file}", make)
    assert names(file) == ["mlflow.db", "mlflow.db.half-made-1"]
    assert "was half made" in capsys.readouterr().err


def test_a_busy_or_foreign_one_is_left_alone(file, monkeypatch):
    make(f"sqlite:///{file}")
    connect, held = sqlite3.connect, sqlite3.connect(file)
    held.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: connect(*words, timeout=0.1, **more))
    put_aside_half_made(file)
    held.close()
    file.write_bytes(b"no database at all, but longer than its header is" * 10)
    put_aside_half_made(file)
    assert names(file) == ["mlflow.db"]


def test_what_killed_makers_have_left_is_swept_and_what_living_ones_make_is_not(file):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = file.with_name(f"mlflow.db.making-{os.getppid()}")
    for left in (f"mlflow.db.making-{ended.pid}", f"mlflow.db.making-{ended.pid}-journal", mine.name):
        file.with_name(left).touch()
    make_database(f"sqlite:///{file}", make)
    assert names(file) == ["mlflow.db", mine.name]


@pytest.mark.slow
def test_a_killed_maker_and_a_stopped_one_stop_nobody(tmp_path, monkeypatch):
    """The real tables, of which there are some thirty when the maker is hit."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = "import sys, pathlib; from pipeline.tracking.mlflow_runs import connect; connect(pathlib.Path(sys.argv[1]))"
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with subprocess.Popen([sys.executable, "-c", words, str(tmp_path)]) as maker:
            half = tmp_path / f"mlflow.db.making-{maker.pid}"
            while not half.exists() or half.stat().st_size < 100_000:
                assert maker.poll() is None
            maker.send_signal(number)
            assert not (tmp_path / "mlflow.db").exists()
            if number == signal.SIGSTOP:
                connect(tmp_path)
                maker.kill()
    assert connect(tmp_path)[1]
