"""One execution of the pipeline: its id, whose it is, and what it is called in MLflow."""

import getpass
import json
import os
import re
import subprocess
import uuid
from pathlib import Path

from filelock import FileLock

from pipeline.project import SUFFIX

NOTE = Path(".scan/execution.json")  # of the execution that is not at its end


def project_name(root: Path) -> str:
    """What the project is called in MLflow: ``MLFLOW_EXPERIMENT_NAME``, or the name of its folder."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or root.resolve().name.removesuffix(SUFFIX) or "scan"


def model_name(root: Path) -> str:
    """What the project's model is called in the registry, which allows no slash and no colon."""
    return re.sub(r"[/:]+", "-", project_name(root)).strip("-") or "scan"


def execution_id(key: str) -> str:
    """The id of the execution that runs now: kept over kills, another one once settings, source or code have changed.

    ``key`` is the hash of those. Two people with the same settings have two executions.
    """
    NOTE.parent.mkdir(exist_ok=True)
    with FileLock(NOTE.with_suffix(".lock")):
        try:
            noted = json.loads(NOTE.read_text())
        except (OSError, ValueError):
            noted = {}
        if noted.get("key") != key:
            noted = {"key": key, "id": uuid.uuid4().hex}
            partial = NOTE.with_suffix(".partial")
            partial.write_text(json.dumps(noted))
            partial.replace(NOTE)
        return str(noted["id"])


def end_execution() -> None:
    """The pipeline is at its end: what runs next is another execution."""
    NOTE.unlink(missing_ok=True)


def tags_of_run(commit: str) -> dict[str, str]:
    """MLflow's own tags: who runs what, from which commit and branch, in which of DVC's experiments."""
    found = {"mlflow.source.name": "dvc repro", "mlflow.source.type": "PROJECT", "mlflow.source.git.commit": commit}
    try:
        found["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        found["mlflow.user"] = str(os.getuid())
    try:
        branch = subprocess.run(["git", "branch", "--show-current"], capture_output=True, text=True, check=True)
        found |= {"mlflow.source.git.branch": branch.stdout.strip()} if branch.stdout.strip() else {}
    except (OSError, subprocess.CalledProcessError):
        pass
    experiment = os.environ.get("DVC_EXP_NAME")
    return found | ({"scan.dvc_experiment": experiment} if experiment else {})
