"""``python -m pipeline.cli``: the same as ``scan``, of the clone that is the working directory."""

from pipeline.cli.app import app

app()
