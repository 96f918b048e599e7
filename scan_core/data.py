"""Images as one uint8 array; a loader is a permutation of its rows."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scan_core.errors import ScanError

if TYPE_CHECKING:  # prepare needs no torch
    import torch


def content_order(pixels: np.ndarray) -> np.ndarray:
    """Rows sorted by the SHA-256 of their bytes: an order that no name, folder or label can influence.

    ``pixels`` is (N,height,width,channels) uint8; returns (N,) int64. Equal images keep the source's order, which
    cannot be seen in the sorted array.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def split_rows(pixels: np.ndarray, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for train and val, (N_train,) and (N_val,) int64, each ascending; never stratified by label.

    Identical images stay on one side: whole groups are drawn until val holds ``ceil(val_fraction * N)`` rows.
    ``pixels`` must be in ``content_order``, so that groups are runs of equal rows.
    """
    count = len(pixels)
    flat = pixels.reshape(count, -1)
    starts = np.flatnonzero(np.r_[True, (flat[1:] != flat[:-1]).any(axis=1)])
    groups = np.split(np.arange(count, dtype=np.int64), starts[1:])
    wanted = math.ceil(val_fraction * count - 1e-9)  # 0.07 * 100 is 7.000000000000001
    val: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(groups)):
        if len(val) + len(groups[group]) <= wanted:
            val.extend(groups[group].tolist())
    val_rows = np.sort(np.array(val, dtype=np.int64))
    train_rows = np.setdiff1d(np.arange(count, dtype=np.int64), val_rows)
    if min(len(train_rows), len(val_rows)) < 2:
        raise ScanError(
            f"data.val_fraction is {val_fraction}: of {count} images {len(train_rows)} would be for training and "
            f"{len(val_rows)} for validation; each needs at least 2"
        )
    return train_rows, val_rows


def channel_statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0,1], from integer sums so that every machine agrees."""
    values = pixels.reshape(-1, pixels.shape[-1]).astype(np.uint64)  # (N*height*width,channels)
    total, squares, count = values.sum(axis=0), (values**2).sum(axis=0), len(values)
    mean = [int(s) / count for s in total]
    std = [max(int(q) / count - m * m, 0.0) ** 0.5 for q, m in zip(squares, mean, strict=True)]
    if min(std) == 0:
        raise ScanError("the images are all of one colour: a channel's standard deviation is 0; check the source")
    return [m / 255 for m in mean], [s / 255 for s in std]


@dataclass(frozen=True)
class Images:
    """The image array on the device, and what normalises it."""

    pixels: "torch.Tensor"  # (N,height,width,channels) uint8
    mean: "torch.Tensor"  # (channels,) float32
    std: "torch.Tensor"  # (channels,) float32

    def batch(self, rows: "torch.Tensor") -> "torch.Tensor":
        """(B,) int64 rows to (B,channels,height,width) uint8, channels_last without a copy of its own."""
        pixels = self.pixels[rows.to(self.pixels.device, non_blocking=True)]
        return pixels.permute(0, 3, 1, 2)

    def normalize(self, images: "torch.Tensor") -> "torch.Tensor":
        """(B,channels,height,width) float32 in [0,1] to zero mean and unit deviation by channel."""
        return (images - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)


def images_on(device: "torch.device", pixels: np.ndarray, mean: list[float], std: list[float]) -> Images:
    """The array (N,height,width,channels) uint8 on ``device``; on the CPU without a copy."""
    import torch

    return Images(
        pixels=torch.from_numpy(pixels).to(device),
        mean=torch.tensor(mean, dtype=torch.float32, device=device),
        std=torch.tensor(std, dtype=torch.float32, device=device),
    )
