"""The store as training reads it: pixels in arrays or JPEG files, in, windows and crops on the device, out."""

import io
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scan_core.compute.device import to_device
from scan_core.errors import ScanError

DEVICE_SHARE = 0.6  # of the device's free memory that images may take; the rest is the network's

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Images(ABC):
    """The stored images, of which a network sees ``side`` x ``side`` pixels, and what normalises them."""

    count: int
    roomy: bool  # whether any stored image is larger than what a network sees

    def __init__(self, device: torch.device, channels: int, side: int, mean: list[float], std: list[float]) -> None:
        self.device = device
        self.channels = channels
        self.side = side
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)  # (channels,)
        self.std = torch.tensor(std, dtype=torch.float32, device=device)  # (channels,)

    @abstractmethod
    def sizes(self, rows: Tensor) -> tuple[Tensor | int, Tensor | int]:
        """Heights and widths of the stored images: (B,) float32 each on the host, or a number where all are equal."""

    @abstractmethod
    def windows(self, rows: Tensor, place: Tensor | None = None) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) uint8 on the device, channels_last: a window of each stored image.

        ``place`` (B,2), of row and column in [0,1], is the share of the room above and left of the window; under a
        uniform one each position is equally likely. None is the centre, 0.5, with an odd pixel below and to the right.
        """

    def crops(self, rows: Tensor) -> Tensor:
        return self.windows(rows)

    def plain_view(self, rows: Tensor) -> Tensor:
        """(B,) rows to (B,channels,side,side) float32: the center, normalized and nothing else."""
        return self.normalize(self.windows(rows).float() / 255)

    def normalize(self, images: Tensor) -> Tensor:
        """(B,channels,height,width) float32 in [0,1] to zero mean and unit deviation by channel, in place."""
        return images.sub_(self.mean.view(1, -1, 1, 1)).div_(self.std.view(1, -1, 1, 1))


class ArrayImages(Images):
    """Square images in uint8 arrays: on the device if they fit there, else on the host, where they may be mapped."""

    def __init__(
        self, device: torch.device, shards: list[Tensor], side: int, mean: list[float], std: list[float]
    ) -> None:
        """``shards`` are (rows,size,size,channels) uint8, all on the host or one on the device."""
        super().__init__(device, shards[0].shape[3], side, mean, std)
        self.shards = shards
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        self._size = shards[0].shape[1]
        self.count, self.roomy = int(self._ends[-1]), self._size > side

    def sizes(self, rows: Tensor) -> tuple[int, int]:
        return self._size, self._size

    def whole(self, rows: Tensor) -> Tensor:
        """(B,) int64 rows to (B,channels,size,size) uint8, channels_last without a copy of its own."""
        return self._gather(rows).permute(0, 3, 1, 2)

    def windows(self, rows: Tensor, place: Tensor | None = None) -> Tensor:
        pixels = self._gather(rows)  # (B,size,size,channels)
        if self.roomy:
            corner = _corners(torch.full((len(rows), 2), self._size - self.side), place)
            start = to_device(corner, self.device)[:, :, None] + torch.arange(
                self.side, device=self.device
            )  # (B,2,side)
            row, column = start.unbind(dim=1)
            number = torch.arange(len(rows), device=self.device)
            pixels = pixels[number[:, None, None], row[:, :, None], column[:, None, :]]  # (B,side,side,channels)
        return pixels.permute(0, 3, 1, 2)

    def _gather(self, rows: Tensor) -> Tensor:
        """(B,size,size,channels) on the device, in the order of ``rows``."""
        first = self.shards[0]
        if len(self.shards) == 1 and first.device.type == self.device.type:
            return first.index_select(0, to_device(rows, first.device))
        rows = rows.cpu()
        pixels = _host_batch(self.device, len(rows), first.shape[1], first.shape[3])
        shard = torch.searchsorted(self._ends, rows, right=True)
        for number in torch.unique(shard).tolist():
            chosen = (shard == number).nonzero()[:, 0]
            start = int(self._ends[number]) - len(self.shards[number])
            pixels[chosen] = self.shards[number].index_select(0, rows[chosen] - start)
        return pixels.to(self.device, non_blocking=True)


class JpegImages(Images):
    """Images of any shape, decoded anew for every batch by one thread a core; PIL decodes without the GIL."""

    def __init__(
        self,
        device: torch.device,
        blobs: list[Path],
        tables: list[np.ndarray],
        channels: int,
        side: int,
        mean: list[float],
        std: list[float],
    ) -> None:
        """See ``jpeg_images``."""
        super().__init__(device, channels, side, mean, std)
        self._blobs, self._files = blobs, [_opened(self, blob) for blob in blobs]
        for blob, file, table in zip(blobs, self._files, tables, strict=True):
            _check(blob, os.fstat(file).st_size, table, side)
        self._table = torch.from_numpy(np.concatenate(tables))  # (N,4) int64: start, end, height, width
        self._blob = np.repeat(np.arange(len(tables)), [len(table) for table in tables])  # (N,)
        self._mode = "L" if channels == 1 else "RGB"
        self._threads = ThreadPoolExecutor(os.cpu_count())
        self.count, self.roomy = len(self._table), bool((self._table[:, 2:] > side).any())

    def sizes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self._table[rows.cpu(), 2:].float().unbind(dim=1)
        return height, width

    def windows(self, rows: Tensor, place: Tensor | None = None) -> Tensor:
        top_left = _corners(self._table[rows.cpu(), 2:] - self.side, place)
        left_top = top_left.flip(1)
        boxes = torch.cat([left_top, left_top + self.side], dim=1)  # (B,4) int64
        return self._views(rows, boxes, self.side, lambda image, box: image.crop(box))

    def resized_crops(self, rows: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) uint8 on the device, channels_last: bilinear, antialiased.

        ``boxes`` (B,4) are left, top, right and bottom of each crop in pixels, fractions included, on the host.
        """
        side, bilinear = side or self.side, Image.Resampling.BILINEAR
        size = side, side
        return self._views(rows, boxes, side, lambda image, box: image.resize(size, bilinear, box=box))

    def _views(self, rows: Tensor, boxes: Tensor, side: int, cut: Callable[[Image.Image, Box], Image.Image]) -> Tensor:
        """What ``cut`` makes of each decoded image and its box; must be ``side`` x ``side`` pixels."""
        views = _host_batch(self.device, len(rows), side, self.channels)
        filled = views.numpy()
        wanted_of: dict[int, list[tuple[int, Box]]] = defaultdict(list)
        for position, (row, box) in enumerate(zip(rows.tolist(), map(tuple, boxes.tolist()), strict=True)):
            wanted_of[row].append((position, box))

        def fill(row: int, wanted: list[tuple[int, Box]]) -> None:
            image = self._decoded(row)
            for position, box in wanted:
                filled[position] = np.asarray(cut(image, box)).reshape(filled.shape[1:])

        # An image is decoded once for all its views, which no other thread writes. The list lets an error out.
        list(self._threads.map(fill, wanted_of.keys(), wanted_of.values()))
        return views.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _decoded(self, row: int) -> Image.Image:
        start, end, height, width = self._table[row].tolist()
        try:
            data = os.pread(self._files[self._blob[row]], end - start, start)
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            if image.size != (width, height):
                raise ValueError(f"it has {image.width} x {image.height} pixels, its table says {width} x {height}")
            return image.convert(self._mode)
        # A damaged file makes PIL raise any of these.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            what = " ".join(str(error).split())
            raise ScanError(_damaged(self._blobs[self._blob[row]], f"at byte {start:,}: {what}")) from None


def images_on(device: torch.device, pixels: np.ndarray, mean: list[float], std: list[float]) -> ArrayImages:
    """One array (N,side,side,channels) uint8 on ``device``, all of it seen; on the CPU without a copy."""
    return array_images(device, [pixels], pixels.shape[1], mean, std)


def array_images(
    device: torch.device, shards: list[np.ndarray], side: int, mean: list[float], std: list[float]
) -> ArrayImages:
    """Arrays (rows,size,size,channels) uint8, which may be memory-mapped, of which windows of ``side`` are seen.

    On a GPU they are copied to its memory where they take at most ``DEVICE_SHARE`` of what is free. Otherwise, and on
    the CPU, they stay as they are, and batches are gathered from them.
    """
    with warnings.catch_warnings():  # a map is read-only, and is only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = [torch.from_numpy(shard) for shard in shards]
    if device.type != "cpu" and sum(shard.nbytes for shard in shards) <= DEVICE_SHARE * _free_memory(device):
        tensors = [_joined(device, tensors)]
    return ArrayImages(device, tensors, side, mean, std)


def jpeg_images(
    device: torch.device,
    blobs: list[Path],
    tables: list[np.ndarray],
    channels: int,
    side: int,
    mean: list[float],
    std: list[float],
) -> JpegImages:
    """JPEG files packed in ``blobs``, each with its table (rows,4) int64: start, end, height, width.

    Every image is at least ``side`` x ``side`` pixels. Raises ``ScanError`` if a file is missing or shorter than its
    table says; a view raises it if one of its images cannot be decoded.
    """
    return JpegImages(device, blobs, tables, channels, side, mean, std)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _joined(device: torch.device, shards: list[Tensor]) -> Tensor:
    """(N,size,size,channels) on ``device``, copied shard by shard: the host never holds more than it has mapped."""
    joined = torch.empty((sum(map(len, shards)), *shards[0].shape[1:]), dtype=torch.uint8, device=device)
    for part, shard in zip(torch.split(joined, [len(shard) for shard in shards]), shards, strict=True):
        part.copy_(shard)
    return joined


def _host_batch(device: torch.device, batch: int, side: int, channels: int) -> Tensor:
    """(B,side,side,channels) uint8 to be filled on the host, pinned so that a GPU copies it without waiting."""
    return torch.empty(batch, side, side, channels, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _corners(room: Tensor, place: Tensor | None) -> Tensor:
    """(B,2) int64 in 0..``room``, row and column of the windows' corners, for ``place`` (B,2) in [0,1] or None."""
    share = torch.tensor(0.5) if place is None else place.cpu()
    # Each of the room + 1 positions has an equal part of [0,1], closed above: 0.5 is the lower of two middle ones.
    return ((share.double() * (room + 1)).ceil().long() - 1).clamp(min=0)


def _opened(owner: JpegImages, path: Path) -> int:
    """A file descriptor that is closed with its owner."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ScanError(f"{path} cannot be read ({error.strerror}); make it with: dvc repro prepare") from None
    weakref.finalize(owner, os.close, file)
    return file


def _check(path: Path, size: int, table: np.ndarray, side: int) -> None:
    """Raises ``ScanError`` if ``table`` points outside a file of ``size`` bytes or has images smaller than a view."""
    start, end = table[:, 0], table[:, 1]
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > size))
    if len(wrong):
        row = wrong[0]
        raise ScanError(_damaged(path, f"it has {size:,} bytes, its table wants {start[row]:,} to {end[row]:,}"))
    if len(table) and table[:, 2:].min() < side:
        raise ScanError(_damaged(path, f"its table has an image of {table[:, 2:].min()} pixels a side, below {side}"))


def _damaged(path: Path, what: str) -> str:
    return f"{path} is damaged ({what}); delete it and run dvc repro"
