"""No password reaches the screen, a log, an exception or a record, whatever a server answers."""

import base64
import contextlib
import io
import os
import socket
import subprocess
import sys
import threading

import pytest

from pipeline.passwords import WithoutPasswords, in_values, without_passwords
from pipeline.progress import say
from pipeline.tracking import delivery
from pipeline.tracking.delivery import send_waiting
from pipeline.tracking.spool import Tracker
from scan_core.errors import ScanError
from tests.project import environment

SECRET = "s3cret/pa@ss"
QUOTED = "s3cret%2Fpa%40ss"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"at http://anna:{QUOTED}@host:5000/api failed", "at http://anna:***@host:5000/api failed"),
        (f"at http://anna:{SECRET}@host", "at http://anna:***@host"),
        ("https://ghp_token123@host/x", "https://***@host/x"),
        ("postgresql+psycopg2://u:p@h/d and redis://:q@h", "postgresql+psycopg2://u:***@h/d and redis://:***@h"),
        (
            "postgresql://h/d?user=u&password=abc&sslmode=require",
            "postgresql://h/d?user=u&password=***&sslmode=require",
        ),
        ("dsn host=h password=abc x", "dsn host=h password=*** x"),
        ("sqlite:////home/anna/p/mlflow.db at 12:30, mail a@b", "sqlite:////home/anna/p/mlflow.db at 12:30, mail a@b"),
    ],
)
def test_passwords_in_addresses_are_hidden(text, said):
    assert without_passwords(text) == said


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"http://anna:{QUOTED}@host"),
        ("MLFLOW_TRACKING_URI", f"anna:{QUOTED}@host"),  # as a person mistypes it
        ("HF_ENDPOINT", f"https://{QUOTED}@mirror"),
        ("MLFLOW_TRACKING_PASSWORD", SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET),
        ("PGPASSWORD", SECRET),
    ],
)
def test_this_process_s_own_are_hidden_in_every_form(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    forms = [SECRET, QUOTED, f"Could not parse {value!r}", f"invalid literal: {SECRET!r}"]
    if "anna" in value:
        forms.append(f"Basic {base64.b64encode(f'anna:{SECRET}'.encode()).decode()}")
    for form in forms:
        said = without_passwords(f"it said {form}, twice {form}")
        assert "s3cret" not in said and base64.b64encode(b"anna:s3cret").decode()[:12] not in said and "***" in said


def test_what_is_recorded_keeps_its_names(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "scan.key")
    assert in_values({"scan.key": ["is scan.key", 1, None]}) == {"scan.key": ["is ***", 1, None]}


def test_what_is_said_and_written_by_libraries_and_recorded_has_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("SCAN_TRACKING", "spool")
    say(f"no answer to {SECRET}")
    with contextlib.redirect_stderr(WithoutPasswords(sys.stderr)):
        print(f"warning: {SECRET}", file=sys.stderr)
        assert not sys.stderr.isatty()
    tracker = Tracker(tmp_path, "embed")
    tracker.event("tags", values={"why": f"of {SECRET}"})
    tracker.text("note.txt", f"see {SECRET}")
    found = "".join(file.read_text() for file in tracker.folder.rglob("*") if file.is_file())
    said = capsys.readouterr().err
    assert SECRET not in said + found and said.count("***") == 2 and found.count("***") == 2


def test_the_traceback_of_a_bug_has_none(tmp_path):
    code = f"""
import sys
from pipeline.cli import app
sys.argv = ["scan"]
app.status = lambda: {{}}["http://a:{SECRET}@h"]
app.app()
"""
    variables = environment(MLFLOW_TRACKING_PASSWORD=SECRET)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert "KeyError" in done.stderr and "s3cret" not in done.stderr


ANSWERS = {
    "refuses": None,
    "hangs up": b"",
    "is no server": b"SSH-2.0-OpenSSH_9\r\n",
    "denies": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
    "has a fault": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno",
    "sends it elsewhere": b"HTTP/1.1 302 Found\r\nLocation: http://a:s3cret%2Fpass@127.0.0.1:9/\r\n\r\n",
    "talks nonsense": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"',
}


@pytest.fixture(params=ANSWERS)
def address(request):
    """A server that answers every request in one way."""
    answer = ANSWERS[request.param]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        if answer is None:
            server.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        yield f"http://anna:{QUOTED}@127.0.0.1:{port}"


def test_no_failure_of_a_server_shows_it(tmp_path, monkeypatch, capsys, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("SCAN_TRACKING", "spool")
    Tracker(tmp_path, "embed").event("start", stage="embed", key="k", name="n", params={}, own={}, tags={})
    with pytest.raises(ScanError) as caught:
        send_waiting(tmp_path)
    assert "s3cret" not in str(caught.value) and "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    ["postgresql//anna:s3cret-pass@host/db", "postgresql://anna:s3cret-pass@127.0.0.1:9/db", "anna:s3cret-pass@h"],
)
def test_no_address_that_is_none_shows_it(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "1")
    monkeypatch.chdir(tmp_path)
    log = io.StringIO()
    with contextlib.redirect_stderr(WithoutPasswords(log)):
        try:
            delivery.connect(tmp_path)
        except Exception as error:  # noqa: BLE001 (of many kinds)
            assert "s3cret" not in delivery._reason(error)
    assert "s3cret" not in log.getvalue() and not os.path.exists(tmp_path / "anna")
