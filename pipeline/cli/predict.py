"""``scan predict``: the groups of images that were not in the run."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from pipeline.params import read_params
from pipeline.progress import CountProgress, alive, say
from scan_core.data.open import expanded
from scan_core.errors import ScanError

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES = "Photos, folders, zips or tars, .parquet or .npy files; - reads paths from standard input, one a line."
OUT = "A .csv, .parquet or .jsonl file; by default CSV is printed."
SCRATCH = Path(".scan/predict")


def predict(
    sources: Annotated[list[str], typer.Argument(help=SOURCES)],
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT)] = None,
) -> None:
    """Say which group each photo belongs to, by the model of the last run."""
    with alive("predict"):
        from pipeline.predict import Predictions, source_of
        from pipeline.review.checks import promised

    writer = _writer(out)
    params = read_params()
    paths = [line for each in sources for line in (sys.stdin.read().splitlines() if each == "-" else [each])]
    if not [path for path in paths if path]:
        raise ScanError("scan predict got no path; give photos or folders, or - and paths on standard input")
    with alive("predict"):
        predictions = Predictions(source_of([path for path in paths if path], params.data), params)
    folder = SCRATCH / _key(paths)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"placed": 0, "nowhere": 0, "reasons": 0}

    def tables() -> "Iterator[pa.Table]":
        with CountProgress("predict", None) as progress:
            for table in predictions.tables(folder):
                states = table["state"].to_pylist()
                counts["placed"] += sum(state is not None for state in states)
                counts["nowhere"] += states.count("fits nowhere")
                counts["reasons"] += states.count(None)
                progress.update(counts["placed"], counts["reasons"])
                yield table

    writer(tables())
    shutil.rmtree(folder, ignore_errors=True)
    said = f"{counts['placed']:,} images, {counts['nowhere']:,} of them fit nowhere"
    if counts["reasons"]:
        said += f"; {counts['reasons']:,} files are no images that can be read (column reason)"
    say(f"predict   {said}" + (f"; {out}" if out else ""))
    if proved := promised(predictions.grouping):
        say(f"checked   {proved}")


def _key(paths: list[str]) -> str:
    """What unfinished rows are of: the paths, the model, and what a person has said of the groups."""
    from pipeline.groups import file, learned

    said = [each.read_bytes() for each in (file.FILE, file.ANSWERS, learned.FILE) if each.exists()]
    given = json.dumps([file.model_digest(), *map(os.path.abspath, paths)]).encode()
    return hashlib.sha256(b"\0".join([given, *said])).hexdigest()[:16]


def _writer(out: str | None) -> "Callable[[Iterator[pa.Table]], None]":
    """What writes all rows to ``out``, a whole file or none. Raises ``ScanError`` if it cannot be written."""
    if out is None:
        return lambda tables: _write_csv(tables, sys.stdout.buffer)
    path = expanded(out)
    kinds: dict[str, Callable[[Iterator[pa.Table], IO[bytes]], None]] = {
        ".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_lines,
    }  # fmt: skip
    if path.suffix.lower() not in kinds:
        raise ScanError(f"--out is {out}; a .csv, .parquet or .jsonl file is allowed")
    if not path.parent.is_dir():
        raise ScanError(f"--out is {out}, but there is no folder {path.parent}; make it, or name another file")

    def write(tables: "Iterator[pa.Table]") -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                kinds[path.suffix.lower()](tables, file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    return write


def _write_csv(tables: "Iterator[pa.Table]", file: IO[bytes]) -> None:
    from pyarrow import csv

    from pipeline.predict import SCHEMA

    writer = csv.CSVWriter(file, SCHEMA)
    for table in tables:
        writer.write_table(table.replace_schema_metadata(None))
        file.flush()
    writer.close()


def _write_parquet(tables: "Iterator[pa.Table]", file: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    from pipeline.predict import SCHEMA

    with pq.ParquetWriter(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(None))


def _write_lines(tables: "Iterator[pa.Table]", file: IO[bytes]) -> None:
    for table in tables:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
