"""source: have the images, imported weights or code changed? DVC runs it each time, as it cannot see that itself."""

import os
import sys
from pathlib import Path

import typer

from pipeline import artifacts
from pipeline.code import stage_code
from pipeline.environment import data_home
from pipeline.fingerprint import stage_entries
from pipeline.finished import delete_noted
from pipeline.params import read_params
from pipeline.progress import say
from pipeline.weights import named_weights, sign_weights
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
        delete_noted(root)
        params = read_params()
        artifacts.save_json(artifacts.SOURCE, signature(params.data, root, data_home(root)))
        signed = {key: sign_weights(key, name, root) for key, name in named_weights(params)}
        of_pretext = [signed.pop(name, None) for name in ("backbone.weights", "pretext.weights")]
        judge = {"judge": signed.pop("pretext.judge")} if "pretext.judge" in signed else {}
        artifacts.save_json(artifacts.WEIGHTS, {"sha256": next(filter(None, of_pretext), None), **judge})
        artifacts.save_json(artifacts.SPACES, {"sha256": list(signed.values())})
        methods = {"pretext": params.pretext.method}
        for stage in stage_entries():
            artifacts.save_json(artifacts.CODE / f"{stage}.json", stage_code(stage, methods))
    except (ScanError, OSError) as error:
        say(f"source: error: {' '.join(str(error).split())}")
        sys.exit(1)


if __name__ == "__main__":
    app()
