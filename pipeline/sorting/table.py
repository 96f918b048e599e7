"""``scan sort --csv`` and ``--json``: a table of files and groups."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scan_core.errors import ScanError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = [
    "source", "group", "name", "probability", "runner_up", "runner_up_probability", "state", "split", "content",
]  # fmt: skip


def check_table(path: Path, option: str) -> None:
    """Raises ``ScanError`` if the table cannot be written to ``path``, which ``option`` names."""
    if path.suffix.lower() != f".{option}":
        raise ScanError(f"--{option} is {path}; a .{option} file is allowed")
    if not path.parent.is_dir():
        raise ScanError(f"--{option} is {path}, but there is no folder {path.parent}; make it, or name another file")
    if path.is_dir():
        raise ScanError(f"--{option} is {path}, which is a folder; name a file")


def write_table(table: "pa.Table", path: Path) -> None:
    """Writes ``table``, which is ``read_predictions``'s, to a .csv or .json file: all of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    chosen = table.select(COLUMNS)
    try:
        if path.suffix.lower() == ".csv":
            from pyarrow import csv

            csv.write_csv(chosen, partial)
        else:
            with partial.open("w", encoding="utf-8") as file:
                lines = (json.dumps(row, ensure_ascii=False) for row in chosen.to_pylist())
                file.write("[\n" + ",\n".join(lines) + "\n]\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
