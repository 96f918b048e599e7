"""Outputs of a finished stage, kept until DVC has noted them, so that nothing is computed twice.

DVC hashes and copies a stage's outputs after the stage has ended, and deletes them before it runs the stage again. If
it is stopped in between, the next run of the same stage takes what is kept here. The kept files are hard links: they
take no room beside the outputs themselves. A stage that is run without DVC keeps nothing, because DVC will not note it.
"""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import load_json, replace_text
from pipeline.resume import DAYS_KEPT, delete_unused
from pipeline.yaml_file import read_yaml
from scan_core.errors import ScanError

FOLDER = Path(".scan/finished")
NOTE = "note.json"
LOCK = Path("dvc.lock")


class AlreadyFinished(Exception):
    """An earlier run has finished this stage, and DVC has not noted it: see ``Stage.restore``."""


def by_dvc() -> bool:
    """Whether DVC runs this stage."""
    return "DVC_STAGE" in os.environ


def place_of(root: Path, stage: str, fingerprint: str) -> Path:
    """The folder of what ``stage`` has made of the inputs with ``fingerprint``, in the project at ``root``."""
    return root / FOLDER / f"{stage}-{fingerprint[:16]}"


def keep(place: Path, staging: Path, outputs: list[Path], about: dict[str, Any]) -> bool:
    """Links the ``outputs`` in ``staging`` into ``place``, whole or not at all; returns whether.

    ``about`` is what ``_noted`` needs, and the scratch folder that goes with the outputs. Files cannot be linked to
    another disk, nor on every kind of disk.
    """
    half = staging.with_name(f"{staging.name}-finished")
    shutil.rmtree(half, ignore_errors=True)
    try:
        for path in outputs:
            _link(staging / path, half / path)
        noted = _outputs_in(_lock())
        inputs = {name: noted.get(name) for name in about.pop("deps")}
        sizes = {path.as_posix(): _sizes(half / path) for path in outputs}
        project = os.path.relpath(
            Path.cwd(), place.parents[len(FOLDER.parts)]
        )  # a copy that DVC made for an experiment, or "."
        note = about | {"project": project, "deps": inputs, "outputs": sizes}
        replace_text(half / NOTE, json.dumps(note, indent=1, sort_keys=True))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(half, place)
    except OSError:
        shutil.rmtree(half, ignore_errors=True)
        return False
    return True


def kept(place: Path) -> list[Path]:
    """The outputs that ``place`` has, each whole; none if there are none."""
    try:
        sizes = load_json(place / NOTE)["outputs"]
        whole = all(_sizes(place / path) == size for path, size in sizes.items())
    except (OSError, ScanError, KeyError, TypeError):
        return []
    return [Path(path) for path in sizes] if whole else []


def take(place: Path, output: Path, target: Path) -> None:
    """Links an output in ``place`` to ``target``."""
    _link(place / output, target)


def delete_noted(root: Path) -> None:
    """Deletes what DVC has noted in its ``dvc.lock``, and what nobody has asked for in a week."""
    for place in (root / FOLDER).glob("*-*"):
        try:
            note = load_json(place / NOTE)
            if not _noted(note, root) and time.time() - place.stat().st_mtime < DAYS_KEPT * 86_400:
                continue
            if note["scratch"]:  # a stage that was killed at its very end has left it
                delete_unused(root / ".scan" / "resume" / note["scratch"])
        except (OSError, ScanError, KeyError, TypeError):  # no note: it says nothing
            pass
        shutil.rmtree(place, ignore_errors=True)


def _noted(note: dict[str, Any], root: Path) -> bool:
    """Whether ``dvc.lock`` has an entry for the same inputs; also if the project, a copy that DVC made, is gone."""
    project = root / note["project"]
    if not project.exists():
        return True
    entry = _lock(project).get(note["stage"], {})
    deps = {dependency["path"]: dependency.get("md5") for dependency in entry.get("deps", [])}
    return bool(deps == note["deps"] and entry.get("params", {}).get("params.yaml", {}) == note["params"])


def _lock(project: Path = Path()) -> dict[str, Any]:
    """The entries of ``dvc.lock`` by stage; none if it is missing or damaged."""
    try:
        return dict(read_yaml(project / LOCK)["stages"])
    except (ScanError, KeyError, TypeError, ValueError):
        return {}


def _outputs_in(lock: dict[str, Any]) -> dict[str, str | None]:
    return {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", [])}


def move(staged: Path, path: Path) -> None:
    """Renames; if ``path`` is on another disk, a copy beside it is renamed."""
    try:
        os.replace(staged, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = path.with_name(f".{path.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(staged, beside) if staged.is_dir() else shutil.copy(staged, beside)
        os.replace(beside, path)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        os.link(source, target)


def _sizes(path: Path) -> list[list[Any]]:
    """Names and sizes of the files of an output: a power failure may leave a file empty."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[file.relative_to(path).as_posix(), file.stat().st_size] for file in files if not file.is_dir()]
