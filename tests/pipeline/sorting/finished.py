"""A folder of photos, and a finished run on it of which only the files exist that sorting reads."""

import hashlib
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli.app import app
from pipeline.groups import file
from tests.project import ROOT, set_params


def photo_bytes(name):
    """Not an image: sorting never decodes one."""
    return f"the photo {name}".encode() * 3


def put(path, content=None, seconds=1_500_000_000):
    """A file with a time of modification that differs from file to file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo_bytes(path.name) if content is None else content)
    os.utime(path, ns=(0, seconds * 10**9 + int(hashlib.sha256(os.fsencode(path)).hexdigest()[:7], 16)))
    return path


def write_run(rows, path="photos", **data):
    """A run with ``rows``: source → (group, state), or → a finding's kind. Names of groups stay what they are."""
    count = max([row[0] for row in rows.values() if isinstance(row, tuple)] + [len(file.load().clusters)])
    column = {name: [] for name in ("id", "source", "split", "content", "cluster", "runner_up", "state")}
    for number, (source, row) in enumerate(rows.items()):
        there = isinstance(row, tuple)
        cluster, state = (row[0] - 1, row[1]) if there else (None, None)
        content = hashlib.sha256(source.encode()).hexdigest()[:32] if there else None
        other = (cluster + 1) % count if there else None
        values = (number if there else None, source, "train" if there else row, content, cluster, other, state)
        for name, value in zip(column, values, strict=True):
            column[name].append(value)
    kinds = {"id": pa.int64(), "cluster": pa.int64(), "runner_up": pa.int64()}
    table = {name: pa.array(values, kinds.get(name, pa.string())) for name, values in column.items()}
    for name, value in (("probability", 0.6), ("runner_up_probability", 0.3)):
        table[name] = pa.array([None if each is None else value for each in column["cluster"]], pa.float32())
    for folder in (artifacts.PREDICTIONS.parent, artifacts.MODELS, Path(".scan")):
        folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), artifacts.PREDICTIONS)
    (artifacts.MODELS / "selflabel.safetensors").write_bytes(b"model")
    model = file.model_digest()
    file.save(file.changed(file.load(), clusters=tuple(range(1, count + 1)), next=count + 1, model=model))
    artifacts.save_json(artifacts.GROUPS, {"number": count, "given": True})
    values = {"name": "folder", "path": None if path is None else str(path), "labels": "none", "boxes": None, **data}
    set_params(Path.cwd(), {"data": values}, ROOT / "params.yaml")


def scan(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def sort(folder, *words):
    """Sorts, and fails if that does."""
    done = scan("sort", folder, *words)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def tree(folder):
    """Path → content, or the target of a link; and folders. Without the manifest."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif name != ".scan-sort.jsonl":
            found[name] = path.read_bytes()
    return found


def names(folder):
    """Files and links of ``tree``."""
    return {name for name, what in tree(folder).items() if what != "folder"}


def snapshot(folder):
    """All that must not change in photos that are only read."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def sorted_anew(*words):
    """The ``tree`` of a folder that was not there before."""
    shutil.rmtree("anew", ignore_errors=True)
    sort("anew", *words)
    return tree("anew")
