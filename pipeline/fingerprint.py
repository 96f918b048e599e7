"""What a stage's result depends on, as one hash: its entry in ``dvc.yaml`` says which parameters and files."""

import functools
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.params import Params
from pipeline.yaml_file import read_yaml
from scan_core.errors import ScanError

DVC_FILE = Path("dvc.yaml")
WRITTEN = ("params.yaml", "dvc.lock", "bench/results", "docs")  # which git tracks, and which are settings or results


def stage_entries() -> dict[str, dict[str, Any]]:
    """The stages of ``dvc.yaml`` that make something, in the order they run; ``source`` has no deps: it only looks."""
    stamp = DVC_FILE.stat() if DVC_FILE.exists() else None
    return _entries(DVC_FILE.resolve(), stamp and (stamp.st_mtime_ns, stamp.st_size))


@functools.lru_cache(maxsize=1)  # a stage asks for it once a stage, and reading YAML is slow
def _entries(path: Path, stamp: tuple[int, int] | None) -> dict[str, dict[str, Any]]:
    entries = read_yaml(path)["stages"]
    assert isinstance(entries, dict)
    return {name: entry for name, entry in entries.items() if "deps" in entry}


def fingerprint(stage: str, params: Params, depends_on: dict[str, Any] | None = None) -> str:
    """SHA-256 over the parameters and the bytes of the dependencies that ``dvc.yaml`` names for ``stage``.

    ``depends_on`` takes the parameters' place for a part of the stage's work that depends on less.
    """
    own = own_params(stage, params)
    keys = [key for key in own if "." not in key or key.split(".")[0] not in own]  # else its whole group counts
    considered = {key: own[key] for key in keys} if depends_on is None else depends_on
    digest = hashlib.sha256(json.dumps(considered, sort_keys=True).encode())
    for dependency in sorted(stage_entries()[stage]["deps"]):
        hash_path(digest, Path(dependency))
    return digest.hexdigest()


def own_params(stage: str, params: Params) -> dict[str, Any]:
    """The values of the parameters that ``dvc.yaml`` names for ``stage``, by those names."""
    values = params.model_dump(mode="json")
    named = stage_entries()[stage].get("params", [])
    return {key: functools.reduce(dict.__getitem__, key.split("."), values) for key in named}


def run_key(params: Params, source: dict[str, Any]) -> str:
    """SHA-256 over all parameters and ``source_key()``: one run, one row in MLflow."""
    return hashlib.sha256(json.dumps([params.model_dump(mode="json"), source], sort_keys=True).encode()).hexdigest()


def source_key() -> dict[str, Any]:
    """What ``source`` has found: the images' content, the hash of imported weights, the digests of all stages' code.

    No file's time is in it, so touching a file does not make another run.
    """

    def found(path: Path) -> Any:
        return artifacts.load_json(path) if path.exists() else {}

    code = {stage: found(artifacts.CODE / f"{stage}.json") for stage in stage_entries()}
    content = found(artifacts.SOURCE).get("content", {})
    return {**content, "weights": found(artifacts.WEIGHTS).get("sha256"), "code": code}


def git_commit() -> str:
    """The commit the code came from, marked where the working tree differs from it by more than what runs write."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        differs = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *(f":!{path}" for path in WRITTEN)])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if differs.returncode else commit


def hash_path(digest: Any, path: Path) -> None:
    """Feeds a file, or the files under a folder with their names, to ``digest``; not what Python caches there."""
    if not path.exists():
        raise ScanError(f"{path} is missing; make it with: dvc repro")
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        digest.update(f"\0{file.as_posix()}\0".encode())
        stat = file.stat()
        digest.update(_content(file.resolve(), stat.st_mtime_ns, stat.st_size))


@functools.cache  # evaluate asks for the images once a stage
def _content(file: Path, modified: int, size: int) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
