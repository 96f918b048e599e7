"""The order of the images and their splits: by content and by seed, never by name, folder, label or other images."""

import hashlib
from collections.abc import Sequence

import numpy as np

from scan_core.data.settings import Data
from scan_core.data.sources import Split
from scan_core.errors import ScanError

FIXED_SHARE = 0.1  # of the images: val, which chooses the model, if every image is trained on


def content_order(digests: np.ndarray) -> np.ndarray:
    """Rows sorted by their digests, (N,32) uint8 to (N,) int64: an order that no name, folder or label can influence.

    Equal images keep the source's order, which cannot be seen in the sorted array.
    """
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)
    return np.lexsort(words.T[::-1]).astype(np.int64)


def official(splits: Sequence[Split | None]) -> bool:
    """Whether the source has a split of its own."""
    return "val" in splits


def choose_rows(splits: Sequence[Split | None], digests: np.ndarray, settings: Data) -> dict[str, np.ndarray]:
    """Rows for ``pretext``, ``train`` and ``val``, each ascending int64; never stratified by label.

    ``splits`` (N,) are the source's own, ``digests`` (N,32) uint8 the SHA-256 of the images. If the source has no split
    of its own, each image is val with probability ``data.val_fraction``, by ``drawn`` alone; but at least the two with
    the smallest draws are val and the two with the largest are train. Under ``data.protocol: all`` everything is
    trained on, and val is drawn from it with probability ``FIXED_SHARE``. Raises ``ScanError`` if a side has fewer than
    two images.
    """
    beyond = np.array([split == "extra" for split in splits], dtype=bool)
    own_val = np.array([split == "val" for split in splits], dtype=bool)
    clustered = np.ones(len(splits), dtype=bool) if settings.extra == "train" else ~beyond
    candidates = np.flatnonzero(clustered)
    if settings.protocol == "all":
        why = "data.protocol is all"
        draws = drawn(digests[candidates], settings.split_seed)
        train, val = candidates, candidates[(draws < FIXED_SHARE) | _two_smallest(draws)]
    elif own_val.any():
        why = "the source has a split of its own"
        train, val = np.flatnonzero(clustered & ~own_val), np.flatnonzero(own_val)
    else:
        why = f"data.val_fraction is {settings.val_fraction:g} and copies of an image share a side"
        draws = drawn(digests[candidates], settings.split_seed)
        held_out = ((draws < settings.val_fraction) | _two_smallest(draws)) & ~_two_smallest(-draws)
        train, val = candidates[~held_out], candidates[held_out]
    if min(len(train), len(val)) < 2:
        raise ScanError(
            f"{why}: of {len(candidates)} images {len(train)} would be for training and {len(val)} for validation; "
            "each needs at least 2; add images"
        )
    pretext = np.union1d(train, np.flatnonzero(beyond)) if settings.extra == "pretext" else train
    return {name: rows.astype(np.int64) for name, rows in {"pretext": pretext, "train": train, "val": val}.items()}


def drawn(digests: np.ndarray, seed: int) -> np.ndarray:
    """(N,32) uint8 to (N,) float64 in [0,1]: uniform numbers, each of its digest and ``seed`` alone."""
    data, salt = np.ascontiguousarray(digests).tobytes(), seed.to_bytes(8, "big")
    heads = (hashlib.sha256(data[start : start + 32] + salt).digest()[:8] for start in range(0, len(data), 32))
    draws: np.ndarray = np.frombuffer(b"".join(heads), ">u8") / 2.0**64
    return draws


def _two_smallest(draws: np.ndarray) -> np.ndarray:
    """(N,) bool: the two smallest of ``draws`` (N,), and what equals them, so that copies stay together."""
    smallest: np.ndarray = draws <= np.sort(draws)[:2].max(initial=-np.inf)
    return smallest


def fewest(count: int, share: float) -> int:
    """How many of ``count`` images are drawn with probability ``share`` at least, but for one case in a thousand."""
    return max(int(count * share - 3 * (count * share * (1 - share)) ** 0.5), 2)


def channel_statistics(sums: np.ndarray, squares: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0,1], from whole numbers so that every machine agrees.

    ``sums`` and ``squares`` are (N,channels) int64, of each image's values and their squares; ``pixels`` counts the
    pixels of all N images.
    """
    mean = [sum(column) / pixels for column in sums.T.tolist()]
    std = [max(sum(column) / pixels - m * m, 0.0) ** 0.5 for column, m in zip(squares.T.tolist(), mean, strict=True)]
    return [m / 255 for m in mean], [s / 255 for s in std]
