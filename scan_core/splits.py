"""The order of the images and their splits: by content and by seed, never by name, folder or label."""

import math
from collections.abc import Sequence

import numpy as np

from scan_core.errors import ScanError
from scan_core.settings import Data
from scan_core.sources import Split

FIXED_SHARE = 0.1  # of the images, for the choice of the model, where every image is trained on


def content_order(digests: np.ndarray) -> np.ndarray:
    """Rows sorted by their digests, (N,32) uint8 to (N,) int64: an order that no name, folder or label can influence.

    Equal images keep the source's order, which cannot be seen in the sorted array.
    """
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)
    return np.lexsort(words.T[::-1]).astype(np.int64)


def official(splits: Sequence[Split | None]) -> bool:
    """Whether the source has a split of its own."""
    return "val" in splits


def choose_rows(splits: Sequence[Split | None], groups: np.ndarray, settings: Data) -> dict[str, np.ndarray]:
    """Rows for ``pretext``, ``train`` and ``val``, each ascending int64; never stratified by label.

    ``splits`` are the source's own, (N,); ``groups`` (N,) numbers images that are the same or nearly so, as they first
    appear: a split by the seed keeps a group on one side. Under ``data.protocol: all`` everything is trained on, and
    val is a tenth of it. Raises ``ScanError`` where a side has less than two.
    """
    beyond = np.array([split == "extra" for split in splits], dtype=bool)
    own_val = np.array([split == "val" for split in splits], dtype=bool)
    clustered = np.ones(len(splits), dtype=bool) if settings.extra == "train" else ~beyond
    candidates = np.flatnonzero(clustered)
    if settings.protocol == "all":
        why = "data.protocol is all"
        apart = np.arange(len(candidates))  # train has them all: nothing is to be kept on one side
        train, val = candidates, candidates[split_rows(apart, FIXED_SHARE, settings.split_seed)[1]]
    elif own_val.any():
        why = "the source has a split of its own"
        train, val = np.flatnonzero(clustered & ~own_val), np.flatnonzero(own_val)
    else:
        why = f"data.val_fraction is {settings.val_fraction:g}"
        parts = split_rows(groups[candidates], settings.val_fraction, settings.split_seed)
        train, val = candidates[parts[0]], candidates[parts[1]]
    if min(len(train), len(val)) < 2:
        largest = np.unique(groups[candidates], return_counts=True)[1].max(initial=0)
        alike = f"{largest} of them are alike and stay on one side; " if largest > 1 else ""
        raise ScanError(
            f"{why}: of {len(candidates)} images {len(train)} would be for training and {len(val)} for validation; "
            f"{alike}each needs at least 2"
        )
    pretext = np.union1d(train, np.flatnonzero(beyond)) if settings.extra == "pretext" else train
    return {name: rows.astype(np.int64) for name, rows in {"pretext": pretext, "train": train, "val": val}.items()}


def split_rows(groups: np.ndarray, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``groups`` (N,) for train and val, each ascending int64.

    Whole groups are drawn until val holds ``ceil(val_fraction * N)`` rows.
    """
    count = len(groups)
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers)))[:-1]
    appearing = np.argsort(first)
    wanted = held_out(val_fraction, count)
    val: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(members)):
        rows = members[appearing[group]]
        if len(val) + len(rows) <= wanted:
            val.extend(rows.tolist())
    val_rows = np.sort(np.array(val, dtype=np.int64))
    train_rows = np.setdiff1d(np.arange(count, dtype=np.int64), val_rows)
    return train_rows, val_rows


def held_out(val_fraction: float, count: int) -> int:
    """How many of ``count`` images validation is to hold."""
    return math.ceil(val_fraction * count - 1e-9)  # 0.07 * 100 is 7.000000000000001


def channel_statistics(sums: np.ndarray, squares: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0,1], from whole numbers so that every machine agrees.

    ``sums`` and ``squares`` are (N,channels) int64, of each image's values and their squares; ``pixels`` counts the
    pixels of all N images.
    """
    mean = [sum(column) / pixels for column in sums.T.tolist()]
    std = [max(sum(column) / pixels - m * m, 0.0) ** 0.5 for column, m in zip(squares.T.tolist(), mean, strict=True)]
    return [m / 255 for m in mean], [s / 255 for s in std]
