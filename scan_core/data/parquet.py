"""Images in tables: parquet files, as the Hugging Face Hub lays them out or others."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from scan_core.data.npy import row_name
from scan_core.data.sources import Finding, Item, Source, Split, printable
from scan_core.errors import ScanError
from scan_core.settings import Data

BATCH_ROWS = 64
PATH_COLUMNS = ("image", "img", "path", "file", "file_name", "image_path")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
SPLITS: dict[str, Split] = {"train": "train", "test": "val", "val": "val", "valid": "val", "validation": "val"}
SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])")  # train-00000-of-00004, test_1, validation; not trained


@dataclass(frozen=True, slots=True)
class _Table:
    """A parquet file of which the schema is known."""

    path: Path
    name: str  # relative to the folder that was named
    rows: int
    image: str  # column
    kind: Literal["struct", "binary", "path"]  # what that column holds
    label: str | None  # column
    classes: list[str] | None  # names of an integer label's values
    split: Split | None


def open_parquet(path: Path, settings: Data) -> Source:
    """The rows of a parquet file, or of all in a folder and below by their names; no image is read yet.

    Items are named ``<file>/<row>``. A column named as one of ``LABEL_COLUMNS`` is read if ``settings.labels`` is
    ``folders``; ``classes`` is there if the Hub's metadata names them. Raises ``ScanError`` here if a file is no
    parquet file, has no image column, more than one or another than the first file, or if there is no row; while
    rows are read, if a file is damaged or a label has no name.
    """
    paths = _parquet_files(path) if path.is_dir() else [path]
    labelled = settings.labels == "folders"
    tables = [_look(file, file.relative_to(path) if path.is_dir() else Path(file.name), labelled) for file in paths]
    if len({table.split for table in tables} - {None}) < 2:  # train files alone are no official split
        tables = [replace(table, split=None) for table in tables]
    first = tables[0]
    for table in tables:
        if (table.image, table.kind) != (first.image, first.kind):
            raise ScanError(
                f"{table.path} has its images in column {table.image} ({table.kind}), {first.path} in {first.image} "
                f"({first.kind}); one column of one type is allowed; read them one by one"
            )
    labels = [table for table in tables if table.label]  # a test file may have none
    for table in labels:
        if (table.label, table.classes) != (labels[0].label, labels[0].classes):
            raise ScanError(
                f"the label column of {table.path} ({table.label}) or its class names are not those of "
                f"{labels[0].path} ({labels[0].label}); set data.labels to none or to a .csv file"
            )
    total = sum(table.rows for table in tables)
    if not total:
        raise ScanError(f"{path} has no rows; at least one image is needed")

    def read() -> Iterator[Item | Finding]:
        for table in tables:
            yield from _rows(table)

    return Source(read, labels[0].classes if labels else None, total)


def _parquet_files(folder: Path) -> list[Path]:
    """All in ``folder`` and below, by name; without hidden ones, which are caches and other systems' notes."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == ".parquet"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise ScanError(f"{folder} has no .parquet file, nor has a folder in it; data.path is to name some")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _look(path: Path, relative: Path, labelled: bool) -> _Table:
    with _opened(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    image, kind = _image_column(path, schema)
    label = _label_column(path, schema) if labelled else None
    for name in (image, label):
        if name and schema.names.count(name) > 1:
            raise ScanError(f"{path} has {schema.names.count(name)} columns named {name}; one is allowed")
    classes = _class_names(schema, label) if label else None
    return _Table(path, printable(relative.as_posix()), rows, image, kind, label, classes, _split(relative))


def _split(relative: Path) -> Split | None:
    """What the start of the file's name says, or else that of the nearest folder."""
    for part in reversed(relative.parts):
        if found := SPLIT_NAME.match(part.lower()):
            return SPLITS[found[1]]
    return None


def _image_column(path: Path, schema: Any) -> tuple[str, Literal["struct", "binary", "path"]]:
    """Its name and what it holds: the Hub's struct before bytes before paths."""
    names: dict[Literal["struct", "binary", "path"], list[str]] = {"struct": [], "binary": [], "path": []}
    for field in schema:
        kind = _plain(field.type)
        if pa.types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind):
            names["struct"].append(field.name)
        elif _is_binary(kind):
            names["binary"].append(field.name)
        elif _is_text(kind) and field.name in PATH_COLUMNS:
            names["path"].append(field.name)
    for held, columns in names.items():
        preferred = [name for name in ("image", "img") if name in columns]
        if preferred or len(columns) == 1:
            return (preferred or columns)[0], held
        if columns:
            raise ScanError(
                f"{path} has {len(columns)} columns that may be the image: {_listed(columns)}; one is allowed, or one "
                "of them named image or img; drop or rename the others"
            )
    raise ScanError(
        f"{path} has no image column; its columns are {_listed([f'{field.name} ({field.type})' for field in schema])}; "
        f"a struct with binary bytes, binary, or text named {', '.join(PATH_COLUMNS)} is allowed"
    )


def _label_column(path: Path, schema: Any) -> str | None:
    found = [schema.field(schema.names.index(name)) for name in LABEL_COLUMNS if name in schema.names]
    for field in found:
        kind = _plain(field.type)
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if numbers or _is_text(kind) or pa.types.is_null(kind):
            return str(field.name)
    if found:
        raise ScanError(
            f"column {found[0].name} of {path} is {found[0].type}; one number or text for each image is allowed as its "
            "label; set data.labels to none or to a .csv file"
        )
    return None


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Names of an integer label's values, if the Hub's metadata has them."""
    if not pa.types.is_integer(_plain(schema.field(label).type)):
        return None
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # another program's metadata
        return None


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A ``ParquetFile``; whatever it raises becomes a ``ScanError``."""
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ScanError(f"{path} is no parquet file that can be read ({reason}); get or write it again") from error


def _rows(table: _Table) -> Iterator[Item | Finding]:
    """A few rows at a time, group by group: memory is bounded by one group's column, whatever the file's size."""
    columns = [table.image, *([table.label] if table.label else [])]
    row = 0
    with _opened(table.path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                images = batch.column(table.image)
                labels = batch.column(table.label) if table.label else None
                for at in range(batch.num_rows):
                    yield _item(table, row, images[at], None if labels is None else labels[at])
                    row += 1


def _item(table: _Table, row: int, image: Any, label: Any) -> Item | Finding:
    """One row, of which ``image`` and ``label`` are pyarrow scalars."""
    name = row_name(table.name, row)
    try:
        value = image.as_py()
        text = None if label is None else _label(table, name, label.as_py())
    except UnicodeDecodeError:  # parquet files say so, but nothing checks it
        return Finding(name, "rejected", "text in this row is not UTF-8")
    if table.kind == "path":
        data, path = None, value
    elif table.kind == "struct":
        data, path = (value or {}).get("bytes"), (value or {}).get("path")
    else:
        data, path = value, None
    if data is None:
        if not isinstance(path, str):
            return Finding(name, "rejected", "no image in this row")
        folder = table.path.parent
        try:
            file = (folder / path).resolve()
            if not file.is_relative_to(folder.resolve()):
                return Finding(name, "rejected", f"path {path} leads out of the parquet file's folder")
            if not file.is_file():
                return Finding(name, "rejected", f"there is no file at path {path}")
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
            return Finding(name, "rejected", f"path {path!r} cannot be followed: {error}")
        data = str(file)
    return Item(name, data, text, table.split, meant=True)


def _label(table: _Table, name: str, value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int):  # of a bool too, for which there are no names
        if value == -1:  # the Hub's "unknown"
            return None
        if table.classes is not None:
            if not 0 <= value < len(table.classes):
                raise ScanError(
                    f"column {table.label} of {name} is {value}, but its metadata name {len(table.classes)} classes; "
                    "set data.labels to none or to a .csv file"
                )
            return table.classes[value]
    return str(value)


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
