"""A PostgreSQL in a temporary folder, and the MLflow server of docker/compose.yaml on it, both on loopback only."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ruamel.yaml import YAML

from tests.project import ROOT, environment

COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
SERVICE: dict[str, Any] = COMPOSE["services"]["mlflow"]
LOOPBACK = "127.0.0.1"
PROGRAMS = ("initdb", "postgres")


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Waits for ``ready``. Raises ``AssertionError`` with the log after ``seconds``, or if ``process`` ends."""
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"{process.args} is not ready\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    """Asks a process to end. After half a minute it is killed, and so is every process that it started."""
    if process.poll() is None:
        process.send_signal(sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # each is the leader of a group of its own
    process.wait(10)


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs: on the PATH, or Debian's folder of the newest version."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    return next((path for path in folders if all((path / name).exists() for name in PROGRAMS)), None)


def unprivileged() -> dict[str, Any]:
    """The user that runs PostgreSQL, as arguments of ``subprocess``: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")


class Database:
    """A PostgreSQL with the database and user of compose.yaml, and a password that would need quoting in a URL."""

    def __init__(self, port: int) -> None:
        self.port, self.password = port, "a/b@c:d%e?" + secrets.token_hex(8)

    def rows(self, query: str, *values: object, database: str = "mlflow") -> list[tuple[Any, ...]]:
        """The rows of a query; none for a statement."""
        connection = psycopg2.connect(
            host=LOOPBACK, port=self.port, user="scan", password=self.password, dbname=database, connect_timeout=5
        )
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def answers(self) -> bool:
        """Whether it accepts connections."""
        try:
            return bool(self.rows("SELECT 1", database="postgres"))
        except psycopg2.OperationalError:
            return False


@contextlib.contextmanager
def running_database() -> Iterator[Database]:
    """Starts a PostgreSQL on loopback, and ends and deletes it. Skips the test if PostgreSQL is not installed."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed: neither on the PATH nor in /usr/lib/postgresql")
    user = unprivileged()
    database = Database(free_port())
    with tempfile.TemporaryDirectory(prefix="scan-postgres-") as name:  # another user cannot enter pytest's folders
        folder = Path(name)
        (folder / "password").write_text(database.password)
        for path in (folder, folder / "password"):
            os.chown(path, user.get("user", -1), user.get("group", -1))
        subprocess.run(
            [
                programs / "initdb", "--pgdata=data", "--username=scan", "--pwfile=password", "--auth=scram-sha-256",
                "--encoding=UTF8", "--locale=C", "--no-sync",
            ],
            cwd=folder, capture_output=True, check=True, timeout=120, **user,
        )  # fmt: skip
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    programs / "postgres", "-D", "data", "-p", str(database.port), "-c", f"listen_addresses={LOOPBACK}",
                    "-c", "unix_socket_directories=", "-c", "fsync=off",
                ],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **user,
            )  # fmt: skip
        try:
            wait_until(database.answers, process, log, 60)
            database.rows("CREATE DATABASE mlflow", database="postgres")
            yield database
        finally:
            stop(process, signal.SIGINT)  # PostgreSQL's fast shutdown


class MlflowServer:
    """The MLflow server as compose.yaml starts it, with local addresses and folders in place of the services' names."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.folder, self.artifacts = folder, folder / "artifacts"
        self.port = free_port()
        self.address = f"http://{LOOPBACK}:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        swaps = {
            "@postgres:5432/": f"@{LOOPBACK}:{database.port}/",
            "=/artifacts": f"={self.artifacts}",
            "--host=0.0.0.0": f"--host={LOOPBACK}",
            "--port=5000": f"--port={self.port}",
        }
        command = "\n".join(SERVICE["command"])
        for old, new in swaps.items():
            assert command.count(old) == 1, f"compose.yaml has no {old}"
            command = command.replace(old, new)
        self.command = [str(Path(sys.executable).parent / "mlflow"), *command.split("\n")[1:]]
        self.check = [part.replace(":5000", f":{self.port}") for part in SERVICE["healthcheck"]["test"]]
        assert self.check[:2] == ["CMD", "python"]
        filled = {
            name: re.sub(r"\$\{POSTGRES_PASSWORD:\?[^}]*\}", lambda _: database.password, value)
            for name, value in SERVICE["environment"].items()
        }
        self.environment = {
            **{name: value for name, value in environment().items() if not name.startswith("PG")}, **filled
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until compose.yaml's health check passes."""
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip
        wait_until(self.healthy, self._process, log, 180)

    def healthy(self) -> bool:
        """Whether compose.yaml's health check passes."""
        return not subprocess.run([sys.executable, *self.check[2:]], capture_output=True, timeout=30).returncode

    def stop(self) -> None:
        """Ends the server with the image's stop signal, as ``docker compose stop`` does."""
        if self._process is not None:
            stop(self._process, signal.SIGINT)
            self._process = None
