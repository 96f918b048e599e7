"""Images in the rows of parquet files, in the Hugging Face Hub's layout or others."""

import base64
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

from scan_core.data.download import some
from scan_core.data.npy import row_name
from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source, Split, printable
from scan_core.errors import ScanError

BATCH_ROWS = 64
READ_AT_ONCE = 2**20  # bytes; otherwise a row group's column is read whole, and a file may be one group
PATH_COLUMNS = ("image", "img", "path", "file", "file_name", "image_path")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
SPLITS: dict[str, Split] = {"train": "train", "test": "val", "val": "val", "valid": "val", "validation": "val"}
SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])")  # matches train-00000-of-00004 and test_1, not trained
# A data URI, or the beginning of a JPEG, PNG, GIF, WebP, TIFF or BMP.
BASE64 = re.compile(r"\s*data:image/[\w.+-]+;base64,|\s*(?=/9j/|iVBORw0|R0lGOD|UklGR|SUkq|TU0A|Qk[0-9])")
Kind = Literal["struct", "binary", "path"]


@dataclass(frozen=True, slots=True)
class _Table:
    """A parquet file whose schema has been read."""

    path: Path
    name: str  # relative to the folder that was opened
    rows: int
    image: str  # column
    kind: Kind  # what the image column holds
    label: str | None  # column
    classes: list[str] | None  # names of an integer label's values
    split: Split | None


def open_parquet(path: Path, settings: Data) -> Source:
    """The rows of a parquet file, or of all parquet files in a folder and below, sorted by name; no image is read yet.

    Items are named ``<file>/<row>``. A column named as one of ``LABEL_COLUMNS`` is read if ``settings.labels`` is
    ``folders``; ``classes`` is set if the Hub's metadata names them. Raises ``ScanError`` here if a file is not a
    parquet file, if its image column is missing, ambiguous or unlike the first file's, or if there is no row. Raises
    it while rows are read if a file is damaged or a label has no name.
    """
    paths = _parquet_files(path) if path.is_dir() else [path]
    folder = path if path.is_dir() else path.parent
    notes: dict[str, int] = {}
    tables = [_open_table(file, file.relative_to(folder), settings.labels == "folders", notes) for file in paths]
    of_columns = dict(notes)
    if (
        settings.split == "none" or len({table.split for table in tables} - {None}) < 2
    ):  # train files alone are not an official split
        tables = [replace(table, split=None) for table in tables]
    _check_alike(tables)
    total = sum(table.rows for table in tables)
    if not total:
        raise ScanError(f"{path} has no rows; at least one image is needed")

    def read() -> Iterator[Item | Finding]:
        notes.clear()
        notes.update(of_columns)
        for table in tables:
            yield from _rows(table, notes)

    classes = next((table.classes for table in tables if table.label), None)  # a test file may have no labels
    return Source(read, classes, total, notes=notes)


def _check_alike(tables: list[_Table]) -> None:
    first = tables[0]
    for table in tables:
        if (table.image, table.kind) != (first.image, first.kind):
            raise ScanError(
                f"{table.path} has its images in column {table.image} ({table.kind}), {first.path} in {first.image} "
                f"({first.kind}); one column of one type is allowed; read them one by one"
            )
    labeled = [table for table in tables if table.label]
    for table in labeled:
        if (table.label, table.classes) != (labeled[0].label, labeled[0].classes):
            raise ScanError(
                f"the label column of {table.path} ({table.label}) or its class names are not those of "
                f"{labeled[0].path} ({labeled[0].label}); set data.labels to none or to a .csv file"
            )


def _parquet_files(folder: Path) -> list[Path]:
    """All in ``folder`` and below, sorted by name. Hidden files are left out, because they are caches and the like."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".parquet"]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    paths = [folder / name for name in sorted(names, key=Path.as_posix) if (folder / name).is_file()]
    if not paths:
        raise ScanError(
            f"{folder} has no .parquet file, not even in a folder below; set data.path to one or to its folder"
        )
    return paths


def has_images(path: Path) -> bool:
    """Whether a parquet file has an image column; also if it cannot be read, so that this is said."""
    try:
        with _opened(path) as file:
            return any(_image_columns(file.schema_arrow).values())
    except ScanError:
        return True


def _open_table(path: Path, relative: Path, with_labels: bool, notes: dict[str, int]) -> _Table:
    with _opened(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    image, kind = _image_column(path, schema, notes)
    label = _label_column(path, schema) if with_labels else None
    for name in (image, label):
        if name and schema.names.count(name) > 1:
            raise ScanError(f"{path} has {schema.names.count(name)} columns named {name}; one is allowed")
    classes = _class_names(schema, label) if label else None
    return _Table(path, printable(relative.as_posix()), rows, image, kind, label, classes, _split(relative))


def _split(relative: Path) -> Split | None:
    """The split that the start of the file's name states, or else the nearest folder's."""
    matches = (SPLIT_NAME.match(part.lower()) for part in reversed(relative.parts))
    return next((SPLITS[match[1]] for match in matches if match), None)


def _image_column(path: Path, schema: Any, notes: dict[str, int]) -> tuple[str, Kind]:
    """The image column's name and what it holds. The Hub's struct is preferred to bytes, and bytes to paths."""
    for kind, columns in _image_columns(schema).items():
        preferred = [name for name in ("image", "img") if name in columns] or columns
        if len(columns) > 1:
            notes[f"of the columns {some(columns)}, {preferred[0]} is read"] = 0
        if columns:
            return preferred[0], kind
    raise ScanError(
        f"{path} has no image column; its columns are {some([f'{field.name} ({field.type})' for field in schema])}; "
        f"a struct with binary bytes, binary, or text named {', '.join(PATH_COLUMNS)} is allowed"
    )


def _image_columns(schema: Any) -> dict[Kind, list[str]]:
    """Columns that may be the image."""
    candidates: dict[Kind, list[str]] = {"struct": [], "binary": [], "path": []}
    for field in schema:
        dtype = _value_type(field.type)
        if pa.types.is_struct(dtype) and any(part.name == "bytes" and _is_binary(part.type) for part in dtype):
            candidates["struct"].append(field.name)
        elif _is_binary(dtype):
            candidates["binary"].append(field.name)
        elif _is_text(dtype) and (field.name in PATH_COLUMNS or "base64" in field.name.lower()):
            candidates["path"].append(field.name)
    return candidates


def _label_column(path: Path, schema: Any) -> str | None:
    fields = [schema.field(schema.names.index(name)) for name in LABEL_COLUMNS if name in schema.names]
    for of_list in (False, True):  # one label per image before a list
        for field in fields:
            element = _element_type(field.type)
            dtype = _value_type(element)
            is_number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)
            if (element is not field.type) is of_list and (is_number or _is_text(dtype) or pa.types.is_null(dtype)):
                return str(field.name)
    if fields:
        raise ScanError(
            f"column {fields[0].name} of {path} is {fields[0].type}; one number or text per image, or a list of them, "
            "is allowed as its label; set data.labels to none or to a .csv file"
        )
    return None


def _class_names(schema: Any, label: str) -> list[str] | None:
    """Names of an integer label's values, if the Hub's metadata has them."""
    if not pa.types.is_integer(_value_type(_element_type(schema.field(label).type))):
        return None
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)  # of a list
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # another program's metadata
        return None


def _value_type(dtype: Any) -> Any:
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _element_type(dtype: Any) -> Any:
    is_list = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return dtype.value_type if is_list else dtype


def _is_binary(dtype: Any) -> bool:
    return bool(pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype))


def _is_text(dtype: Any) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A ``ParquetFile``, whose errors become a ``ScanError``."""
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream, buffer_size=READ_AT_ONCE) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ScanError(f"{path} cannot be read as a parquet file ({reason}); get or write it again") from error


def _rows(table: _Table, notes: dict[str, int]) -> Iterator[Item | Finding]:
    """Reads a few rows at a time. What is left out of labels is counted in ``notes``."""
    columns = [table.image, *([table.label] if table.label else [])]
    row = 0
    with _opened(table.path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                images = batch.column(table.image)
                labels = batch.column(table.label) if table.label else None
                for position in range(batch.num_rows):
                    yield _item(table, row, images[position], None if labels is None else labels[position], notes)
                    row += 1


def _item(table: _Table, row: int, image: Any, label: Any, notes: dict[str, int]) -> Item | Finding:
    """One row, whose ``image`` and ``label`` are pyarrow scalars."""
    name = row_name(table.name, row)
    try:
        value = image.as_py()
        text = None if label is None else _label(table, label.as_py(), notes)
    except UnicodeDecodeError:  # parquet declares text as UTF-8, but nothing checks it
        return Finding(name, "rejected", "text in this row is not UTF-8")
    if table.kind != "struct":
        value = {"bytes" if table.kind == "binary" else "path": value}
    content, path = ((value or {}).get(key) for key in ("bytes", "path"))
    if content is None:
        if not isinstance(path, str):
            return Finding(name, "rejected", "no image in this row")
        if encoded := BASE64.match(path):
            try:
                content = base64.b64decode("".join(path[encoded.end() :].split()), validate=True)
            except ValueError:
                return Finding(name, "rejected", "text in this row is no base64")
            return Item(name, content, text, table.split, is_declared_image=True)
        folder = table.path.parent
        try:
            file = (folder / path).resolve()
            if not file.is_relative_to(folder.resolve()):
                return Finding(name, "rejected", f"path {path} leads out of the parquet file's folder")
            if not file.is_file():
                return Finding(name, "rejected", f"there is no file at path {path}")
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
            return Finding(name, "rejected", f"path {path!r} cannot be followed: {error}")
        content = str(file)
    return Item(name, content, text, table.split, is_declared_image=True)


def _label(table: _Table, value: Any, notes: dict[str, int]) -> str | None:
    """A row's label as text. None if it is unknown, or if there are several, which is noted."""
    if isinstance(value, list):
        known = [each for each in value if each is not None]
        if len(known) > 1:
            what = f"several labels in column {table.label}, which count as none"
            notes[what] = notes.get(what, 0) + 1
            return None
        value = known[0] if known else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, int):
        return printable(str(value))
    if value < 0:  # unknown, to the Hub and others
        return None
    if table.classes is None:
        return str(value)
    if value >= len(table.classes):
        what = f"label {value} in column {table.label}, which has {len(table.classes)} classes: it counts as none"
        notes[what] = notes.get(what, 0) + 1
        return None
    return printable(table.classes[value])
