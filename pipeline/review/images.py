"""The images of the last run as the page shows them, in one order: with their embeddings and their pictures."""

import io
from functools import cached_property

import numpy as np
from PIL import Image

from pipeline import artifacts
from pipeline.groups.apply import Where, embeddings_of, in_place
from scan_core.images.store import ArrayImages, Images, JpegImages

THUMB = 160  # pixels of a side
LIKE = 2_000  # images at most that are said to be like one
QUALITY, EFFORT = 80, 2  # of 6: twice as fast as Pillow's own choice, and as small


class StoredImages:
    """The images that have a group, in the order of predictions.parquet. Image numbers are positions in it."""

    def __init__(self, at: Where = in_place) -> None:
        """``at`` says where files are. Raises ``ScanError`` if one is missing."""
        import pyarrow.parquet as pq

        table = pq.read_table(artifacts.require(at(artifacts.PREDICTIONS)))
        table = table.filter(table["id"].is_valid())
        self.at = at
        self.rows = np.array(table["id"].to_numpy(), np.int64)  # of the store
        self.sources, self.splits, self.contents = (table[name].to_pylist() for name in ("source", "split", "content"))
        self.clusters: np.ndarray = table["cluster"].to_numpy()  # (N,) int64: those of the model, without corrections
        # The map: (N,) float32 in [0,1]; of a run of an older version there is none.
        self.places = {name: table[name].to_numpy() for name in ("x", "y") if name in table.column_names}
        self.stats = artifacts.load_json(artifacts.IMAGES / "stats.json")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def embeddings(self) -> np.ndarray:
        """(N,D) float32, rows of length 1."""
        return embeddings_of(self.rows)

    def like(self, image: int) -> list[int]:
        """The ``LIKE`` images whose embeddings are nearest to that of ``image``, itself first."""
        cosine = self.embeddings @ self.embeddings[image]
        cosine[image] = np.inf
        near = np.argpartition(-cosine, min(LIKE, len(cosine)) - 1)[:LIKE]
        found: list[int] = near[np.argsort(-cosine[near], kind="stable")].tolist()
        return found

    @cached_property
    def classes(self) -> tuple[np.ndarray, list[str]]:
        """The class of each image (N,) int64, -1 if it is not known, and the names of classes."""
        labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (self.stats["count"],))
        return labels[self.rows], artifacts.load_json(artifacts.LABELS / "classes.json")

    @cached_property
    def labels(self) -> list[str]:
        """The name of each image's class, "" if it is not known; empty if none is."""
        labels, names = self.classes
        return [names[label] if label >= 0 else "" for label in labels.tolist()] if (labels >= 0).any() else []

    @cached_property
    def copies(self) -> list[list[int]]:
        """Images that are copies or near copies of one another."""
        first = artifacts.load_array(artifacts.IMAGES / "copies.npy", "int64", (self.stats["count"],))[self.rows]
        order = np.argsort(first, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
        return [part.tolist() for part in parts if len(part) > 1]

    @cached_property
    def odd(self) -> dict[str, list[int]]:
        """Dark and blurred images."""
        from pipeline.review.odd import odd_images

        return odd_images(self)

    @cached_property
    def _store(self) -> Images:
        import torch

        cpu, shards = torch.device("cpu"), artifacts.load_shards(self.stats)
        seen = (self.stats["mean"], self.stats["std"], self.stats["view"])
        if self.stats["store"] == "array":
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

    def thumb(self, image: int, side: int = THUMB) -> bytes:
        """A small WebP picture."""
        return encoded(self.stored(image, min(side, self.stats["size"])), "WEBP")

    def date(self, image: int) -> str:
        """The day of a photo, such as 2024-05-03; "" if it is not known, as of what only the store has."""
        return ""


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The picture as a file of a ``kind`` that Pillow writes."""
    written = io.BytesIO()
    picture.save(written, kind, quality=QUALITY, method=EFFORT)
    return written.getvalue()
