"""``scan runs``: the runs in MLflow."""

import os
import sys
from pathlib import Path

import typer

from pipeline.fingerprint import DVC_FILE
from pipeline.progress import say
from pipeline.tracking.database import database_file
from pipeline.tracking.spool import tracking_address
from scan_core.errors import ScanError


def runs(
    port: int = typer.Option(5000, help="The port; only this machine can open the page."),
    send: bool = typer.Option(False, "--send", help="Deliver what MLflow could not take while stages ran; no page."),
) -> None:
    """Open MLflow's page of all runs."""
    if send:
        from pipeline.tracking.checked import note_checked
        from pipeline.tracking.delivery import send_waiting

        sent = send_waiting(Path.cwd())
        note_checked(Path.cwd())
        say(f"sent the records of {sent} stage{'' if sent == 1 else 's'}")
        return
    address = tracking_address(Path.cwd())
    if address.startswith(("http:", "https:")):
        say(f"the runs are on the server that MLFLOW_TRACKING_URI names: {address}")
        return
    if not DVC_FILE.exists():  # MLflow would create an empty database here
        raise ScanError(f"{DVC_FILE} is missing from {Path.cwd()}; run from the project's folder")
    file = database_file(address)
    if file and not file.exists():  # what the server makes itself is half made if it is stopped meanwhile
        from pipeline.tracking.mlflow_runs import connect

        connect(Path.cwd())
    say(f"MLflow on http://127.0.0.1:{port}, reading {address}; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # The address is passed in the environment because everyone on the machine can list a command's arguments.
    os.execve(sys.executable, command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": address})
