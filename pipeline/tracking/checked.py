"""What a person's check has proved of the groups, as a tag of the model's version in MLflow.

``python -m pipeline.tracking.checked ROOT`` sets it, or takes it off once groups have changed. It runs by itself, so
that nobody waits for a server; what does not arrive is sent by ``scan runs --send``.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline import artifacts
from pipeline.environment import allowed
from pipeline.groups.apply import Grouping
from pipeline.groups.file import model_digest
from pipeline.review.checks import FILE, promised
from pipeline.tracking.execution import model_name

CHECKED, MODEL = "scan.checked", "scan.model"  # tags of a version: the words, and whose groups it gives
TOLD = Path(".scan/checked.txt")  # what MLflow knows: the model, and the words


def tell_mlflow() -> None:
    """Starts a process that tells MLflow, if it has anything new to tell."""
    if FILE.exists() and not allowed("SCAN_TRACKING", "spool") and _news() != _told():
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.tracking.checked", str(Path.cwd())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def note_checked(root: Path) -> None:
    """Tells MLflow, if it has anything new to tell. Raises what MLflow raises."""
    from pipeline.tracking.mlflow_runs import connect

    if not FILE.exists() or (news := _news()) == _told():
        return
    model, _, words = news.partition(" ")
    client, _ = connect(root)
    found = client.search_model_versions(f"name = '{model_name(root)}'")
    versions = [version for version in found if version.tags.get(MODEL) == model]
    for version in versions:
        if words:
            client.set_model_version_tag(version.name, version.version, CHECKED, words)
        elif CHECKED in version.tags:
            client.delete_model_version_tag(version.name, version.version, CHECKED)
    if versions:
        artifacts.replace_text(root / TOLD, news)


def _news() -> str:
    return f"{model_digest()} {promised(Grouping())}"


def _told() -> str:
    return TOLD.read_text(encoding="utf-8") if TOLD.exists() else f"{model_digest()} "


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    note_checked(Path.cwd())
