"""A python whose imports are behind it: ``python -m MODULE`` runs in a fork of one process that has made them.

A short run imports for longer than it computes: torch, Lightning and scikit-learn take two to five seconds a stage.
A ``WarmPython`` imports them once. Its ``folder`` goes in front of PATH; the ``python`` there hands a command's folder,
environment and open files over and ends as the command does. Only libraries are imported ahead, never the project,
which each command takes from its own folder. What is no ``-m MODULE``, or finds the server gone, runs as usual.
"""

import atexit
import contextlib
import gc
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

LIBRARIES = (
    "torch._dynamo", "lightning_fabric", "safetensors.torch", "faiss", "pyarrow.parquet", "scipy.optimize",
    "sklearn.cluster", "sklearn.datasets", "sklearn.linear_model", "sklearn.metrics", "sklearn.neighbors",
    "matplotlib.pyplot", "rich.progress", "typer", "dvc.cli", "dvc.repo", "networkx",
)  # fmt: skip


class WarmPython:
    """The server, and a folder with a ``python`` that asks it."""

    def __init__(self, environment: dict[str, str], libraries: tuple[str, ...] = LIBRARIES) -> None:
        """``environment`` is the server's, for libraries that read theirs when they are imported (OpenMP)."""
        self._temporary = tempfile.TemporaryDirectory(prefix="scan-")
        self.folder = Path(self._temporary.name)
        address, this = str(self.folder / "socket"), str(Path(__file__).resolve())
        # -P: nothing beside this file is imported in a library's place.
        self._server = subprocess.Popen(
            [sys.executable, "-P", this, "serve", address, *libraries],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        shim = self.folder / "python"
        words = [sys.executable, "-IS", this, "ask", address, sys.executable]
        shim.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
        assert self._server.stdout is not None
        self._server.stdout.readline()  # it listens; if it could not start, commands run as usual

    def close(self) -> None:
        """Ends the server; commands that it has started go on."""
        self._server.communicate()
        self._temporary.cleanup()


def ask(address: str, python: str, *arguments: str) -> None:
    """Runs ``python *arguments``, warm where that can be. Does not return."""
    server = socket.socket(socket.AF_UNIX)
    try:
        if arguments[:1] != ("-m",):
            raise OSError
        server.connect(address)
        socket.send_fds(server, [b"\0"], [0, 1, 2])
        server.sendall(json.dumps([os.getcwd(), dict(os.environ), arguments[1:]]).encode() + b"\n")
        if not server.recv(1):  # which says that the command starts
            raise OSError
    except OSError:
        os.execv(python, [python, *arguments])
    while True:
        try:
            status = server.recv(16)
            os._exit(int(status) if status else 1)
        except KeyboardInterrupt:  # the command, in the same terminal, has heard it too: wait for what it makes of it
            continue


def serve(address: str, *libraries: str) -> None:
    """Imports ``libraries`` and runs commands until standard input ends, as it does when who started this is gone."""
    for library in libraries:
        __import__(library)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a keeper that has ended leaves nothing behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a collection in a fork would copy all of it
    print("ready", flush=True)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection = listener.accept()[0]
        with contextlib.suppress(OSError):  # there is no memory: the command runs as usual
            _fork_keeper(listener, connection)
        connection.close()


def _fork_keeper(listener: socket.socket, connection: socket.socket) -> None:
    if not os.fork():
        try:
            listener.close()
            _keep(connection)
        finally:
            os._exit(1)


def _keep(connection: socket.socket) -> None:
    """Runs one command in a child, tells the client how it ended, and ends it where the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    folder, environment, arguments = json.loads(connection.makefile().readline())
    child = os.fork()
    if not child:
        connection.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _run(folder, environment, arguments)
    connection.sendall(b"+")
    for file in (0, 1, 2, *files):  # who reads what the command prints waits for the last that could print
        os.close(file)
    ended = (0, 0)
    while not ended[0]:
        if select.select([connection], [], [], 0.01)[0]:  # a client says nothing more: this is its end
            os.kill(child, signal.SIGTERM)
            os._exit(0)
        ended = os.waitpid(child, os.WNOHANG)
    status = os.waitstatus_to_exitcode(ended[1])
    connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def _run(folder: str, environment: dict[str, str], arguments: list[str]) -> None:
    """``python -m`` as the interpreter does it, but for taking every module apart at the end."""
    import runpy

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, folder)
    sys.argv = arguments
    status = 1
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (as the interpreter: whatever it is, it is shown)
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter: threads first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    (ask if sys.argv[1] == "ask" else serve)(*sys.argv[2:])
