"""source: has what is to be read changed? DVC runs it each time, for it cannot see a source by itself."""

import os
import sys
from pathlib import Path

import typer

from pipeline import artifacts
from pipeline.params import read_params
from pipeline.progress import say
from scan_core.errors import ScanError
from scan_core.files import signature

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main() -> None:
    """List the source's files, their sizes and times into data/source.json: prepare runs again when it changes."""
    try:
        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        artifacts.save_json(artifacts.SOURCE, signature(read_params().data, root))
    except (ScanError, OSError) as error:
        say(f"source: error: {' '.join(str(error).split())}")
        sys.exit(1)


if __name__ == "__main__":
    app()
