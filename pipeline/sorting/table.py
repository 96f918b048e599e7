"""``scan sort --csv``, ``--json`` and ``--parquet``: a table of files and groups."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.params import Params
from scan_core.errors import ScanError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = [
    "source", "group", "name", "probability", "runner_up", "runner_up_probability", "state", "split", "content",
]  # fmt: skip
PICTURED = ["x", "y", "path", "picture"]  # of a .parquet file alone
SIDE = 96  # pixels of a small picture


def check_table(path: Path, option: str) -> None:
    """Raises ``ScanError`` if the table cannot be written to ``path``, which ``option`` names."""
    if path.suffix.lower() != f".{option}":
        raise ScanError(f"--{option} is {path}; a .{option} file is allowed")
    if not path.parent.is_dir():
        raise ScanError(f"--{option} is {path}, but there is no folder {path.parent}; make it, or name another file")
    if path.is_dir():
        raise ScanError(f"--{option} is {path}, which is a folder; name a file")


def with_pictures(table: "pa.Table", params: Params) -> "pa.Table":
    """``read_predictions``'s table with each image's file, as ``path``, and a small WebP as ``picture``.

    ``path`` is null for what is no file of its own, ``picture`` for what is no image of the run.
    """
    import pyarrow as pa

    from pipeline.review.photos import Photos

    photos = Photos(params)
    place = {source: image for image, source in enumerate(photos.sources)}
    images = [place.get(source) for source in table["source"].to_pylist()]
    paths, pictures = list[str | None](), list[bytes | None]()
    for image in images:
        pictures.append(None if image is None else photos.thumb(image, SIDE))
        try:
            paths.append(None if image is None else str(photos.file(image).absolute()))
        except ScanError:  # inside an archive or a table
            paths.append(None)
    table = table.append_column("path", pa.array(paths, pa.string()))
    return table.append_column("picture", pa.array(pictures, pa.binary()))


def write_table(table: "pa.Table", path: Path) -> None:
    """Writes ``table``, ``read_predictions``'s, to a .csv, .json or .parquet file: all of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    kind = path.suffix.lower()
    chosen = table.select([*COLUMNS, *(name for name in PICTURED if kind == ".parquet" and name in table.column_names)])
    try:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(chosen, partial)
        elif kind == ".csv":
            from pyarrow import csv

            csv.write_csv(chosen, partial)
        else:
            with partial.open("w", encoding="utf-8") as file:
                lines = (json.dumps(row, ensure_ascii=False) for row in chosen.to_pylist())
                file.write("[\n" + ",\n".join(lines) + "\n]\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
