"""The images of the last run as the page shows them, in one order: with their embeddings and their pictures."""

import io
import os
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline import artifacts
from pipeline.groups.apply import embeddings_of
from pipeline.params import Params
from scan_core.data.open import resolve
from scan_core.errors import ScanError
from scan_core.images.store import ArrayImages, Images, JpegImages

THUMB, LARGE = 160, 2_048  # pixels: of a side, and of the longer side at most
QUALITY = 80
MAP = Path(".scan/map.npz")  # of one model


class StoredImages:
    """The images that have a group, in the order of predictions.parquet. Image numbers are positions in it."""

    def __init__(self, params: Params) -> None:
        import pyarrow.parquet as pq

        columns = ["id", "source", "split", "content"]
        table = pq.read_table(artifacts.require(artifacts.PREDICTIONS), columns=columns)
        table = table.filter(table["id"].is_valid())
        self.rows = np.array(table["id"].to_numpy(), np.int64)  # of the store
        self.sources, self.splits, self.contents = (table[name].to_pylist() for name in columns[1:])
        self._data = params.data
        self._stats = artifacts.load_json(artifacts.IMAGES / "stats.json")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def embeddings(self) -> np.ndarray:
        """(N,D) float32, rows of length 1."""
        return embeddings_of(self.rows)

    @cached_property
    def labels(self) -> list[str]:
        """The class of each image, "" if it is not known; empty if none is."""
        labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (self._stats["count"],))[self.rows]
        classes = artifacts.load_json(artifacts.LABELS / "classes.json")
        return [classes[label] if label >= 0 else "" for label in labels.tolist()] if (labels >= 0).any() else []

    @cached_property
    def copies(self) -> list[list[int]]:
        """Images that are copies or near copies of one another."""
        first = artifacts.load_array(artifacts.IMAGES / "copies.npy", "int64", (self._stats["count"],))[self.rows]
        order = np.argsort(first, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
        return [part.tolist() for part in parts if len(part) > 1]

    @cached_property
    def places(self) -> np.ndarray:
        """(N,2) float32 in [0,1]: the map. It is made once for each model and kept."""
        from pipeline.groups.file import model_digest
        from scan_core.clustering.neighbors import mine_neighbors
        from scan_core.evaluation.layout import NEIGHBORS, layout

        digest = model_digest()
        try:
            with np.load(MAP, allow_pickle=False) as kept:
                if str(kept["model"]) == digest and len(kept["places"]) == len(self):
                    found: np.ndarray = kept["places"]
                    return found
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or it was cut off
            pass
        if len(self) < 3:
            return np.full((len(self), 2), 0.5, np.float32)
        near = mine_neighbors(self.embeddings, min(NEIGHBORS, len(self) - 1), 200_000, 0.9, "cpu").nearest
        places = layout(self.embeddings, near)
        partial = MAP.with_suffix(".partial.npz")
        np.savez(partial, places=places, model=digest)
        partial.replace(MAP)
        return places

    @cached_property
    def odd(self) -> dict[str, list[int]]:
        """Dark and blurred images."""
        from pipeline.review.odd import odd_images

        return odd_images(self)

    @cached_property
    def clusters(self) -> np.ndarray:
        """(N,) int64: those of the model, without corrections."""
        import pyarrow.parquet as pq

        found: np.ndarray = pq.read_table(artifacts.PREDICTIONS, columns=["cluster"])["cluster"].drop_null().to_numpy()
        return found

    @cached_property
    def _store(self) -> Images:
        import torch

        cpu, shards = torch.device("cpu"), artifacts.load_shards(self._stats)
        seen = (self._stats["mean"], self._stats["std"], self._stats["view"])
        if self._stats["store"] == "array":
            return ArrayImages(cpu, shards, *seen)
        blobs = [artifacts.IMAGES / f"jpeg-{number:05d}.bin" for number in range(len(shards))]
        return JpegImages(cpu, blobs, shards, *seen)

    def squares(self, start: int, end: int, side: int) -> np.ndarray:
        """What the network sees of images ``start`` to ``end``: (B,side,side,channels) uint8."""
        import torch

        pixels: np.ndarray = (
            self._store.squares(torch.from_numpy(self.rows[start:end]), side).permute(0, 2, 3, 1).numpy()
        )
        return pixels

    def stored(self, image: int, side: int) -> Image.Image:
        """What the network sees of one image: a square of ``side`` pixels."""
        return Image.fromarray(self.squares(image, image + 1, side)[0].squeeze())

    def thumb(self, image: int) -> bytes:
        """A small WebP picture."""
        return _encoded(self.stored(image, min(THUMB, self._stats["size"])), "WEBP")

    def photo(self, image: int) -> bytes:
        """A large JPEG picture: the photo itself if it is a file that is still there, else what the store has."""
        try:
            with Image.open(self.file(image)) as opened:
                opened.draft("RGB", (LARGE, LARGE))
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, ScanError):
            picture = self.stored(image, self._stats["size"])
        picture.thumbnail((LARGE, LARGE))
        return _encoded(picture.convert("RGB"), "JPEG")

    def file(self, image: int) -> Path:
        """The photo's file. Raises ``ScanError`` if it is inside an archive or a table, or is a part of a picture."""
        if self._data.name != "folder" or self._data.boxes is not None:
            raise ScanError(f"{self.sources[image]} is no file of its own")
        found: Path = resolve(self._data.path or "", Path.cwd()) / self.sources[image]
        return found

    def date(self, image: int) -> str:
        """The day on which the photo's file was written last, such as 2024-05-03; "" if there is no such file."""
        import datetime

        try:
            return datetime.date.fromtimestamp(os.stat(self.file(image)).st_mtime).isoformat()
        except (OSError, OverflowError, ValueError, ScanError):
            return ""


def _encoded(picture: Image.Image, kind: str) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, quality=QUALITY)
    return written.getvalue()
