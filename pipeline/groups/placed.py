"""Photos that came after the run: which are new, and where the model of the run puts them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.groups import file
from scan_core.data.chunks import content_of
from scan_core.data.decode import Refused
from scan_core.data.types import Finding, Item, Source

PLACED = Path(".scan/placed.parquet")  # what the model says of them
SEEN = Path(".scan/seen.parquet")  # size and time of each file when it was last looked at
MODEL = b"model"  # key of the metadata: which model it was
NEW = "new"  # in the column split


def read_placed() -> pa.Table:
    """The rows of the photos that the present model has placed, as ``predict.RAW`` has them, and split."""
    from pipeline.predict import RAW

    empty = RAW.empty_table().append_column("split", pa.array([], pa.string()))
    if not PLACED.exists():
        return empty
    table = pq.read_table(PLACED)
    return table if (table.schema.metadata or {}).get(MODEL, b"").decode() == file.model_digest() else empty


def add_placed(rows: list[pa.Table]) -> None:
    """Notes ``rows``, which are as in ``predict.RAW``. An earlier row of the same source gives way."""
    added = pa.concat_tables(rows)
    splits = ["rejected" if reason else NEW for reason in added["reason"].to_pylist()]
    added = added.append_column("split", pa.array(splits, pa.string()))
    names, before = set(added["source"].to_pylist()), read_placed()
    kept = before.filter(pa.array([name not in names for name in before["source"].to_pylist()], pa.bool_()))
    table = pa.concat_tables([kept.select(added.column_names), added]).replace_schema_metadata(
        {MODEL: file.model_digest()}
    )
    _write(table, PLACED)


@dataclass(frozen=True)
class Changes:
    """What a source holds now, beside what was known of it."""

    new: list[Item]  # images that have come or changed
    gone: list[str]  # names that are no longer there
    stamps: dict[str, str]  # of all files, to be noted once the new ones are placed


def changes_of(source: Source) -> Changes:
    """The photos of ``source`` that the last run, and the calls since, have not seen."""
    seen: dict[str, str] = {}
    if SEEN.exists():
        seen = dict(zip(*(pq.read_table(SEEN)[name].to_pylist() for name in ("source", "stamp")), strict=True))
    contents = known_contents()
    new, stamps = [], {}
    for item in source.read():
        stamps[item.name] = _stamp(item)
        known = seen.get(item.name) == stamps[item.name] or _same(item, contents.get(item.name))
        if not known and not isinstance(item, Finding):
            new.append(item)
    return Changes(new, sorted(set(contents) - set(stamps)), stamps)


def stamps_of(source: Source) -> dict[str, str]:
    """What each file of ``source`` is now, by its name; no file is opened."""
    return {item.name: _stamp(item) for item in source.read()}


def known_contents() -> dict[str, str | None]:
    """Source to content of all that predictions and placed photos have."""
    known = pq.read_table(artifacts.require(artifacts.PREDICTIONS), columns=["source", "content"])
    tables = (known, read_placed().select(["source", "content"]))
    return {name: content for table in tables for name, content in zip(*table.to_pydict().values(), strict=True)}


def note_seen(stamps: dict[str, str]) -> None:
    """Notes what each file was when it was looked at."""
    _write(pa.table({"source": list(stamps), "stamp": list(stamps.values())}), SEEN)


def _same(item: Item | Finding, content: str | None) -> bool:
    """Whether the file is the one that was looked at, only with another time. A part of an image is looked at anew."""
    if content is None or isinstance(item, Finding) or item.box:
        return False
    try:
        return content_of(item.data).hex() == content
    except Refused:
        return False


def _stamp(item: Item | Finding) -> str:
    if isinstance(item, Finding):
        return item.kind
    if not isinstance(item.data, str):
        return content_of(item.data).hex()
    try:
        about = os.stat(item.data)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def source_of_items(items: list[Item]) -> Source:
    """A source that holds just these."""

    def read() -> Iterator[Item | Finding]:
        yield from items

    return Source(read, total=len(items))


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
