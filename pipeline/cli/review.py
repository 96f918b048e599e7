"""``scan review``: look at the groups in a browser, check and correct them."""

import os
import shlex
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.params import read_params
from pipeline.progress import say
from scan_core.errors import ScanError

if TYPE_CHECKING:
    import uvicorn

PORT = "Which port of this computer; by default any that is free."
ADDRESS = "127.0.0.1"


def review(
    port: int = typer.Option(0, help=PORT, min=0, max=65535),
    browser: bool = typer.Option(True, help="Open the page in a browser."),
) -> None:
    """Look at the groups in a browser: names, corrections, a check. It ends with Ctrl-C."""
    from pipeline.artifacts import PREDICTIONS, require

    require(PREDICTIONS)
    say("review    reading the images …")
    import uvicorn

    from pipeline.environment import use_threads
    from pipeline.review.server import Review, make_app, new_token
    from pipeline.tracking.checked import tell_mlflow

    use_threads()
    opened = bound(port)
    token, number = new_token(), opened.getsockname()[1]
    url = f"http://{ADDRESS}:{number}/{token}/"
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(Review(read_params()), token, number), log_level="error", lifespan="off", access_log=False
        )
    )
    print(
        f"review    {url}\n          it ends with Ctrl-C; what you change is in groups.yaml and answers.csv", flush=True
    )
    if "SSH_CONNECTION" in os.environ:
        host = os.environ["SSH_CONNECTION"].split()[2]
        user = os.environ.get("USER", "you")
        there = f"ssh -N -L {number}:{ADDRESS}:{number} {shlex.quote(f'{user}@{host}')}"
        print(f"          first, on the computer that you sit at: {there}", flush=True)
    elif browser and sys.stdout.isatty():
        threading.Thread(target=_show, args=(server, url), daemon=True).start()
    server.run(sockets=[opened])
    tell_mlflow()
    print(f"review    ended; the groups are those of {Path('groups.yaml')}")


def bound(port: int) -> socket.socket:
    """A socket on this computer alone. Raises ``ScanError`` if the port is taken."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((ADDRESS, port))
    except OSError as error:
        opened.close()
        raise ScanError(f"--port is {port}, which cannot be used ({error.strerror}); leave it out") from None
    return opened


def _show(server: "uvicorn.Server", url: str) -> None:
    """Opens the page once the server answers."""
    while not server.started:
        time.sleep(0.05)
    webbrowser.open(url)
