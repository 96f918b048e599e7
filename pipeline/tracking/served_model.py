"""The model that MLflow serves: from images to their groups. ``mlflow_runs`` packages this file.

It has no input schema, because one of MLflow's allows either pixels or a table of files. What is wrong with a request
is found here, and said.
"""

import base64
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

if TYPE_CHECKING:
    from scan_core.data.chunks import Chunk
    from scan_core.data.decode import Target
    from scan_core.data.types import Item
    from scan_core.models.predictor import Predicted

COLUMN = "image"
CORES = os.cpu_count() or 1
CHANNELS = (1, 3, 4)
WANTED = (
    f"wanted are pixels (B,height,width,channels), uint8, with 1, 3 or 4 channels; or a column {COLUMN} of encoded "
    "files such as JPEG or PNG, as bytes or as base64 text"
)
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # an environment variable that mlflow's scoring server sets


class Refusal(MlflowException):  # type: ignore[misc]  # mlflow's types are not followed
    """A request that cannot be answered. The scoring server answers it with status 400."""

    def __init__(self, what: str) -> None:
        self.line = f"{what}; {WANTED}"
        super().__init__(self.line, BAD_REQUEST)

    def serialize_as_json(self) -> str:
        """The body of the answer: one line. The server has put the whole request in front of ``message``."""
        return json.dumps({"error_code": self.error_code, "message": self.line})


class GroupModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Groups images of any size: each becomes what the store would hold, and then the network sees it."""

    def load_context(self, context: Any) -> None:
        """Loads what was packaged: the files of ``ModelFiles``, ``images`` and, if they are known, ``groups``."""
        from scan_core.compute.device import configure_compute
        from scan_core.data.decode import Target
        from scan_core.data.depth import range_of
        from scan_core.models.predictor import ModelFiles, Predictor

        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.stats = json.loads(files["images"].read_text())
        self.groups = json.loads(files["groups"].read_text()) if "groups" in files else None
        size, fit, store, max_pixels = (self.stats[key] for key in ("size", "fit", "store", "max_pixels"))
        self.target = Target(size, fit, store, max_pixels, range=range_of(self.stats))
        compute = configure_compute(self.stats["precision"], os.environ.get("SCAN_DEVICE") or "auto")
        model = ModelFiles(files["model"], files["belonging"], files.get("pretext"), files.get("networks"))
        self.predictor = Predictor(model, compute)
        self.threads = ThreadPoolExecutor(CORES)
        self.alone = threading.Lock()  # the server answers in threads, and a network runs one request at a time

    # Of the hint np.ndarray MLflow checks nothing; others it would enforce.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per image; see ``answer``. Raises ``Refusal`` if an image cannot be read.

        ``model_input`` holds the images in one of the forms of ``cells_of``, each in one of those of ``data_of``.
        """
        import torch

        from scan_core.images.chunk import images_of_chunks

        items = items_of(model_input, bool(params and params.get("paths")), self.target.max_pixels)
        with TemporaryDirectory() as folder:
            chunks = decoded(items, self.target, Path(folder), self.threads)
            for name, _, reason in (each for chunk, _ in chunks for each in chunk.findings):
                raise Refusal(f"{name} cannot be used: {reason}")
            images = images_of_chunks(chunks, self.stats, self.predictor.compute.device)
            with self.alone:
                said = self.predictor(images, torch.arange(len(items)))
        return answer(said, self.groups)


def decoded(
    items: "list[Item]", target: "Target", folder: Path, threads: ThreadPoolExecutor
) -> "list[tuple[Chunk, Path]]":
    """``items`` in as many chunks as there are cores, in order, each with the file of its bytes in ``folder``.

    Decoders leave Python's lock to others, so threads share the work.
    """
    from scan_core.data.chunks import decode_chunk, load_chunk

    def decode(number: int) -> "tuple[Chunk, Path]":
        first, end = (len(items) * each // parts for each in (number, number + 1))
        decode_chunk(items[first:end], [], target, folder, number)
        file = folder / f"{number:06d}.bin"
        return load_chunk(file.with_suffix(".npz")), file

    parts = min(CORES, len(items))
    return list(threads.map(decode, range(parts)))


def items_of(data: Any, paths: bool, max_pixels: int) -> "list[Item]":
    """The images of a request, at least one, not decoded yet. Raises ``Refusal``.

    With ``paths`` texts are paths of files, but over HTTP nobody reads the server's files.
    """
    from scan_core.data.types import Item

    if paths and os.environ.get(SERVING):
        raise Refusal("params.paths is true, which is not allowed over HTTP")
    cells = list(cells_of(data))
    if not cells:
        raise Refusal("the request has no image")
    names = [f"image {number} of {len(cells)}" for number in range(1, len(cells) + 1)]
    return [Item(name, data_of(cell, name, paths, max_pixels)) for name, cell in zip(names, cells, strict=True)]


def cells_of(data: Any) -> Iterable[Any]:
    """The images of a request: of a table, of a dict with columns, of a list of rows or of images, or of an array.

    Raises ``Refusal`` if it is something else.
    """
    if isinstance(data, pd.DataFrame | dict):
        names = [str(name) for name in data]
        if names.count(COLUMN) != 1:
            raise Refusal(f"the request has {names.count(COLUMN)} columns {COLUMN} among {str(names)[:100]}")
        column = data[COLUMN]
        return column.tolist() if isinstance(column, pd.Series) else cells_of(column)
    if isinstance(data, list | tuple):
        return [cell[COLUMN] if isinstance(cell, dict) and COLUMN in cell else cell for cell in data]
    if not isinstance(data, np.ndarray):
        raise Refusal(f"the request is {type(data).__name__}")
    if data.dtype.kind in "OU" and data.ndim < 3:  # a column
        cells: list[Any] = data.ravel().tolist()
        return cells
    if data.ndim != 4:
        raise Refusal(f"the request has pixels of shape {data.shape}")
    return data


def data_of(cell: Any, name: str, paths: bool, max_pixels: int) -> str | bytes | np.ndarray:
    """An image of a request as an ``Item`` holds it: the path of a file, its bytes, or pixels. Raises ``Refusal``.

    ``cell`` is bytes, a text (base64 or, with ``paths``, a path), or an array or nested list (height,width,channels).
    """
    if isinstance(cell, str) and paths:
        if not os.path.isfile(cell):
            raise Refusal(f"{name} is {cell[:200]!r}, and there is no such file")
        return cell
    if isinstance(cell, str):
        try:
            return base64.b64decode("".join(cell.split()), validate=True)  # base64(1) breaks lines
        except ValueError as error:
            raise Refusal(f"{name} is the text {cell[:20]!r}, which is no base64 ({error})") from None
    if isinstance(cell, bytes | bytearray):
        return bytes(cell)
    if isinstance(cell, np.ndarray | list):
        return pixels_of(cell, name, max_pixels)
    raise Refusal(f"{name} is {str(cell)[:20]} ({type(cell).__name__})")


def pixels_of(values: Any, name: str, max_pixels: int) -> np.ndarray:
    """(height,width) or (height,width,3 or 4) uint8 of an array or nested list of integers. Raises ``Refusal``.

    Other numbers are refused, because those in 0..1 would all be black or nearly so.
    """
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:  # rows of several lengths
        raise Refusal(f"{name} is a list that is no array ({error})") from None
    if array.dtype.kind not in "iu":
        between = f" from {array.min():g} to {array.max():g}" if array.dtype.kind == "f" and array.size else ""
        raise Refusal(f"{name} has pixels of type {array.dtype}{between}; whole numbers from 0 to 255 are allowed")
    if array.ndim != 3 or array.shape[2] not in CHANNELS or not array.size:
        raise Refusal(f"{name} has pixels of shape {array.shape}")
    if array.min() < 0 or array.max() > 255:
        raise Refusal(f"{name} has pixels from {array.min()} to {array.max()}; 0 to 255 are allowed")
    height, width, channels = array.shape
    if height * width > max_pixels:
        raise Refusal(f"{name} has {width:,} x {height:,} pixels; data.max_pixels is {max_pixels:,}")
    pixels = np.ascontiguousarray(array, np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def answer(said: "Predicted", groups: dict[str, tuple[int, str]] | None) -> pd.DataFrame:
    """Columns: cluster, group and name if ``groups`` are known, probability, runner_up and its probability, state.

    ``groups`` are the number and name of each cluster; without them, ``runner_up`` is a cluster. It is null if there is
    none, or if it is merged with the group.
    """
    chances = said.prediction.probabilities[:, :2].astype(np.float64)  # (N,2), of one cluster (N,1)
    clusters = shown = said.prediction.clusters[:, :2]
    columns: dict[str, Any] = {"cluster": clusters[:, 0]}
    if groups is not None:
        shown = np.array([groups[str(cluster)][0] for cluster in range(len(groups))])[clusters]
        columns |= {"group": shown[:, 0], "name": [groups[str(cluster)][1] for cluster in clusters[:, 0]]}
    merged = shown[:, -1] == shown[:, 0]  # their probabilities add up, and the third is not known
    columns["probability"] = np.where(merged, chances.sum(axis=1).clip(max=1), chances[:, 0])
    for name, values in (("runner_up", shown), ("runner_up_probability", chances)):
        column = values[:, -1].astype(object)
        column[merged] = None
        columns[name] = column if merged.any() else values[:, -1]  # of numbers alone, not of objects
    return pd.DataFrame(columns | {"state": said.states})


mlflow.models.set_model(GroupModel())
