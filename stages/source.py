"""source: have the images, imported weights or code changed? DVC runs it each time, as it cannot see that itself."""

import hashlib
import os
import sys
from pathlib import Path

import typer

from pipeline import artifacts
from pipeline.code import stage_code
from pipeline.environment import data_home
from pipeline.fingerprint import stage_entries
from pipeline.params import read_params
from pipeline.progress import say
from scan_core.data.open import resolve
from scan_core.data.signature import signature
from scan_core.errors import ScanError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main() -> None:
    """List the source's files, sizes and times, the hash of imported weights, and the code that each stage depends on.

    A stage reruns if what is listed for it has changed.
    """
    try:
        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        params = read_params()
        artifacts.save_json(artifacts.SOURCE, signature(params.data, root, data_home(root)))
        artifacts.save_json(artifacts.WEIGHTS, weights_signature(params.backbone.weights, root))
        for stage in stage_entries():
            artifacts.save_json(artifacts.CODE / f"{stage}.json", stage_code(stage))
    except (ScanError, OSError) as error:
        say(f"source: error: {' '.join(str(error).split())}")
        sys.exit(1)


def weights_signature(weights: str | None, root: Path) -> dict[str, str | None]:
    """The SHA-256 of the file that backbone.weights names. Raises ``ScanError`` where there is none."""
    if weights is None:
        return {"sha256": None}
    path = resolve(weights, root)
    if not path.is_file():
        raise ScanError(f"backbone.weights is {weights}; there is no file at {path}: make it with scan weights import")
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


if __name__ == "__main__":
    app()
