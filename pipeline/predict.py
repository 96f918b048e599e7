"""The groups of new images, by a finished model: a stream that can be interrupted, in memory that does not grow."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import artifacts
from pipeline.artifacts import ENGINES, PREDICTED
from pipeline.environment import use_threads, wanted_device, worker_count
from pipeline.groups.apply import Grouping, grouped, read_predictions
from pipeline.inspect_source import kind_of
from pipeline.params import Params
from scan_core.data.chunks import Chunk, content_of, load_chunk
from scan_core.data.decode import Target
from scan_core.data.depth import range_of
from scan_core.data.ingest import Piece, decoded, pieces
from scan_core.data.open import expanded, open_source
from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source, printable
from scan_core.errors import ScanError

if TYPE_CHECKING:
    from scan_core.models.predictor import ModelFiles, Predictor

AT_ONCE = 128  # images of a piece: progress is seen every few seconds
PIECE = "piece"  # key of a piece's signature in the metadata of its rows
# What a model says; kept while a call is unfinished. Numbers and names are applied when it is read.
RAW = pa.schema([
    ("source", pa.string()), ("content", pa.string()), ("cluster", pa.int64()), ("probability", pa.float32()),
    ("runner_up", pa.int64()), ("runner_up_probability", pa.float32()), ("state", pa.string()),
    ("reason", pa.string()), ("embedding", pa.list_(pa.float32())),
])  # fmt: skip
SCHEMA = pa.schema([
    ("source", pa.string()), ("group", pa.int64()), ("name", pa.string()), ("probability", pa.float64()),
    ("runner_up", pa.int64()), ("runner_up_probability", pa.float64()), ("state", pa.string()),
    ("content", pa.string()), ("reason", pa.string()),
])  # fmt: skip


def model_files() -> "ModelFiles":
    """The files of the model that the last run has made. Raises ``ScanError`` if there is none."""
    from scan_core.models.predictor import ModelFiles

    networks = artifacts.EMBEDDINGS / "networks"
    model, belonging = (
        artifacts.require(path) for path in (artifacts.MODELS / "selflabel.safetensors", artifacts.BELONGING)
    )
    if networks.exists():
        return ModelFiles(model, belonging, networks=networks)
    return ModelFiles(model, belonging, pretext=artifacts.require(artifacts.MODELS / "pretext.safetensors"))


def source_of(paths: Iterable[str], data: Data) -> Source:
    """One source of several paths: folders, archives, tables, arrays and single images. ``data`` has the limits.

    The images of a folder, archive or table have its own names, behind its path if there are several paths. A path at
    which nothing is becomes a finding if there are others. Raises ``ScanError`` if the only path is at fault.
    """
    paths = list(paths)
    if len(paths) == 1 and not is_single(paths[0]):
        return opened(paths[0], data)

    def read() -> Iterator[Item | Finding]:
        for path in paths:
            if is_single(path):
                yield Item(printable(path), path)
                continue
            try:
                source = opened(path, data)
            except ScanError as error:
                yield Finding(printable(path), "rejected", str(error))
                continue
            for each in source.read():
                yield each._replace(name=f"{printable(path).rstrip('/')}/{each.name}")

    return Source(read)


def is_single(path: str) -> bool:
    """Whether a path is one image, and not a source of many."""
    given = Path(path)
    if not given.is_file():
        return False
    suffixes = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".parquet", ".npy", ".gz", ".bz2", ".xz")
    return not given.name.lower().endswith(suffixes)


def opened(path: str, data: Data) -> Source:
    """The source at ``path``, without labels."""
    values = dict(data) | {"name": kind_of(expanded(path)), "path": path, "labels": "none", "boxes": None}
    return open_source(Data(**values), Path.cwd(), Path.cwd())


class Predictions:
    """The groups of the images of a source, a piece at a time.

    An image of the last run has the group that it has in ``predictions.parquet``, also if it is a copy of another one.
    """

    def __init__(self, source: Source, params: Params) -> None:
        self.source, self.params, self.grouping = source, params, Grouping()
        self.stats = artifacts.load_json(artifacts.IMAGES / "stats.json")
        size, fit, store = (self.stats[key] for key in ("size", "fit", "store"))
        self.target = Target(size, fit, store, params.data.max_pixels, range=range_of(self.stats))

    @cached_property
    def predictor(self) -> "Predictor":
        """The model, loaded when the first image is there."""
        from scan_core.compute.device import configure_compute
        from scan_core.models.predictor import Predictor

        use_threads()
        return Predictor(model_files(), configure_compute(self.params.precision, wanted_device()), ENGINES)

    @cached_property
    def known(self) -> dict[str, dict[str, Any]]:
        """The rows of the images of the last run, by their content."""
        rows = read_predictions(self.grouping).select(
            [name for name in SCHEMA.names if name not in ("source", "reason")]
        )
        return {row["content"]: row for row in rows.to_pylist() if row["group"] is not None}

    def tables(self, folder: Path) -> Iterator[pa.Table]:
        """The rows of each piece, as ``SCHEMA`` has them, in the source's order; ``folder`` is as in ``raw_tables``."""
        for raw in self.raw_tables(folder):
            rows = grouped(raw, self.grouping).to_pylist()
            for row in rows:
                row |= self.known.get(row["content"], {})
            yield pa.Table.from_pylist(rows, SCHEMA)

    def raw_tables(self, folder: Path) -> Iterator[pa.Table]:
        """What the model says of each piece, as ``RAW`` has it.

        Each table is kept in ``folder``, and what an earlier call has left there is not made again.
        """
        waiting: deque[tuple[Piece, bool]] = deque()

        def missing() -> Iterator[Piece]:
            for piece in pieces(self.source, self.target, AT_ONCE):
                there = _signature_of(folder / f"{piece.number:06d}.parquet") == signature(piece)
                waiting.append((piece, there))
                if not there:
                    yield piece

        def finished() -> Iterator[pa.Table]:
            while waiting and waiting[0][1]:
                yield pq.read_table(folder / f"{waiting.popleft()[0].number:06d}.parquet")

        for _ in decoded(missing(), self.target, folder, worker_count()):
            yield from finished()
            yield self._predict(waiting.popleft()[0], folder)
        yield from finished()

    def _predict(self, piece: Piece, folder: Path) -> pa.Table:
        file = folder / f"{piece.number:06d}"
        chunk = load_chunk(file.with_suffix(".npz"))
        rows: list[dict[str, Any]] = [{"source": each.name, "reason": each.reason} for each in chunk.findings]
        rows += self._rows_of(chunk, file.with_suffix(".bin")) if chunk.names else []
        place = {name: number for number, name in enumerate(names_of(piece))}
        rows.sort(key=lambda row: place[row["source"]])
        table = pa.Table.from_pylist(rows, RAW.with_metadata({PIECE: signature(piece)}))
        partial = file.with_suffix(".partial")
        pq.write_table(table, partial)
        os.replace(partial, file.with_suffix(".parquet"))
        for suffix in (".npz", ".bin"):
            file.with_suffix(suffix).unlink()
        return table

    def _rows_of(self, chunk: Chunk, file: Path) -> list[dict[str, Any]]:
        import torch

        from scan_core.images.chunk import images_of_chunks

        images = images_of_chunks([(chunk, file)], self.stats, self.predictor.compute.device)
        said = self.predictor(images, torch.arange(len(chunk.names)))
        clusters, probabilities = said.prediction.clusters, said.prediction.probabilities
        rows = []
        for number, name in enumerate(chunk.names):
            row = {"source": name, "content": chunk.contents[number].tobytes().hex(), "state": str(said.states[number])}
            for rank, (cluster, probability) in enumerate(PREDICTED[: clusters.shape[1]]):
                row |= {cluster: int(clusters[number, rank]), probability: float(probabilities[number, rank])}
            rows.append(row | {"embedding": said.embeddings[number]})
        return rows


def names_of(piece: Piece) -> list[str]:
    """The names of all that a piece holds: images first, which is not their order in the source."""
    return [*(each.name for each in piece.items), *(each.name for each in piece.findings)]


def signature(piece: Piece) -> str:
    """What tells that a piece is the same as in an earlier call: names, and sizes and times of files."""
    digest = hashlib.sha256("\0".join(names_of(piece)).encode())
    for item in piece.items:
        if isinstance(item.data, str):
            try:
                about = os.stat(item.data)
                digest.update(f"{about.st_size} {about.st_mtime_ns};".encode())
            except OSError:  # decoding will say so
                digest.update(b"gone;")
        else:
            digest.update(content_of(item.data))
    return digest.hexdigest()


def _signature_of(file: Path) -> str:
    """The signature of the piece whose rows are in ``file``; "" if there is none."""
    try:
        return str((pq.read_schema(file).metadata or {}).get(PIECE.encode(), b"").decode())
    except (OSError, pa.ArrowInvalid):  # there is none yet, or it was cut off
        return ""
