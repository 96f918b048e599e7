"""The order of the images and their splits. Content and seed decide, never a name, folder, label or another image."""

import hashlib
from collections.abc import Sequence

import numpy as np

from scan_core.data.settings import Data
from scan_core.data.types import Split
from scan_core.errors import ScanError

FIXED_SHARE = 0.1  # probability of val, which chooses the model, if every image is trained on


def content_order(digests: np.ndarray) -> np.ndarray:
    """The rows of ``digests`` (N,32) uint8 in ascending order, (N,) int64.

    Equal images keep the source's order, which the sorted images do not show.
    """
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)
    return np.lexsort(words.T[::-1]).astype(np.int64)


def official(splits: Sequence[Split | None]) -> bool:
    """Whether the source has a split of its own."""
    return "val" in splits


def choose_rows(splits: Sequence[Split | None], digests: np.ndarray, settings: Data) -> dict[str, np.ndarray]:
    """Rows for ``pretext``, ``train`` and ``val``, each ascending int64; never stratified by label.

    ``splits`` (N,) are the source's own, ``digests`` (N,32) uint8 the SHA-256 of the images.

    If the source has no split, an image is in val if its number of ``uniform_draws`` is below ``data.val_fraction``.
    But the two images with the smallest numbers are always in val, and the two with the largest always in train, which
    matters in tiny sets. With ``data.protocol: all`` every image is in train, and val is drawn from them with
    probability ``FIXED_SHARE``. Raises ``ScanError`` if train or val has fewer than two images.
    """
    extra = np.array([split == "extra" for split in splits], dtype=bool)
    official_val = np.array([split == "val" for split in splits], dtype=bool)
    clustered = np.ones(len(splits), dtype=bool) if settings.extra == "train" else ~extra
    candidates = np.flatnonzero(clustered)
    draws = uniform_draws(digests[candidates], settings.split_seed)
    if settings.protocol == "all":
        why = "data.protocol is all"
        train, val = candidates, candidates[(draws < FIXED_SHARE) | _two_smallest(draws)]
    elif official_val.any():
        why = "the source has a split of its own"
        train, val = np.flatnonzero(clustered & ~official_val), np.flatnonzero(official_val)
    else:
        why = f"data.val_fraction is {settings.val_fraction:g} and copies of an image share a side"
        held_out = ((draws < settings.val_fraction) | _two_smallest(draws)) & ~_two_smallest(-draws)
        train, val = candidates[~held_out], candidates[held_out]
    if min(len(train), len(val)) < 2:
        raise ScanError(
            f"{why}: of {len(candidates)} images {len(train)} would be for training and {len(val)} for validation; "
            "each needs at least 2; add images"
        )
    pretext = np.union1d(train, np.flatnonzero(extra)) if settings.extra == "pretext" else train
    return {name: rows.astype(np.int64) for name, rows in {"pretext": pretext, "train": train, "val": val}.items()}


def uniform_draws(digests: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0,1] per row of ``digests`` (N,32) uint8, (N,) float64, from that row and ``seed`` alone."""
    data, salt = np.ascontiguousarray(digests).tobytes(), seed.to_bytes(8, "big")
    heads = (hashlib.sha256(data[start : start + 32] + salt).digest()[:8] for start in range(0, len(data), 32))
    draws: np.ndarray = np.frombuffer(b"".join(heads), ">u8") / 2.0**64
    return draws


def _two_smallest(draws: np.ndarray) -> np.ndarray:
    """Which of ``draws`` (N,) are the two smallest or equal them, (N,) bool: copies of an image have equal draws."""
    smallest: np.ndarray = draws <= np.sort(draws)[:2].max(initial=-np.inf)
    return smallest


def fewest(count: int, share: float) -> int:
    """If ``count`` images are drawn with probability ``share``, the number drawn is rarely below this (3 sigma)."""
    return max(int(count * share - 3 * (count * share * (1 - share)) ** 0.5), 2)


def channel_statistics(sums: np.ndarray, squares: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0,1]. The sums are exact integers, so that every machine agrees.

    ``sums`` and ``squares`` are (N,channels) int64, of each image's pixels and their squares; ``pixels`` is the number
    of pixels of all N images.
    """
    mean = [sum(column) / pixels for column in sums.T.tolist()]
    std = [max(sum(column) / pixels - m * m, 0.0) ** 0.5 for column, m in zip(squares.T.tolist(), mean, strict=True)]
    return [m / 255 for m in mean], [s / 255 for s in std]
