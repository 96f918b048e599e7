"""The store as a network sees it: pixels in arrays or JPEG files become batches of views and crops on the device."""

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
from torch.nn import functional as F

from scan_core.compute.device import to_device
from scan_core.errors import DamagedFile

DEVICE_SHARE = 0.6  # of the device's free memory that images may take; the rest is the network's

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Images(ABC):
    """The stored images, crops of ``side`` x ``side`` pixels of which a network sees, and their normalization."""

    count: int
    has_margin: bool  # whether any stored image is larger than ``side``

    def __init__(self, device: torch.device, channels: int, side: int, mean: list[float], std: list[float]) -> None:
        self.device = device
        self.channels = channels
        self.side = side
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)  # (channels,)
        self.std = torch.tensor(std, dtype=torch.float32, device=device)  # (channels,)

    @abstractmethod
    def sizes(self, rows: Tensor) -> tuple[Tensor | int, Tensor | int]:
        """Heights and widths of the stored images: (B,) float32 on the host, or one number if all are equal."""

    @abstractmethod
    def crops(self, rows: Tensor, offset: Tensor | None = None) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) uint8 on the device, channels_last.

        None is the center crop. ``offset`` (B,2), row and column in [0,1], places a crop between the first position
        and the last one; under a uniform offset every position is equally likely.
        """

    @abstractmethod
    def squares(self, rows: Tensor, side: int) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) uint8 on the device: the largest centered squares, resized.

        Bicubic, antialiased.
        """

    def plain_view(self, rows: Tensor) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) float32: the center crop, normalized."""
        return self.normalize(self.crops(rows).float() / 255)

    def normalize(self, images: Tensor) -> Tensor:
        """In place: (B,channels,height,width) float32 in [0,1] to mean 0 and deviation 1 per channel."""
        return images.sub_(self.mean.view(1, -1, 1, 1)).div_(self.std.view(1, -1, 1, 1))


class ArrayImages(Images):
    """Square images in uint8 arrays. They are copied to a GPU if its memory is large enough, else stay as they are."""

    def __init__(
        self, device: torch.device, shards: list[np.ndarray], mean: list[float], std: list[float],
        side: int | None = None,
    ) -> None:  # fmt: skip
        """``shards`` are (rows,size,size,channels) and may be memory-mapped; ``side`` None is all of an image."""
        size, channels = shards[0].shape[2:]
        super().__init__(device, channels, side or size, mean, std)
        with warnings.catch_warnings():  # a memory map is read-only, and nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self.shards = [torch.from_numpy(shard) for shard in shards]
        size_in_bytes = sum(shard.nbytes for shard in shards)
        if device.type != "cpu" and size_in_bytes <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.shards = [_joined(device, self.shards)]
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        self._size = size
        self.count, self.has_margin = int(self._ends[-1]), size > self.side

    def sizes(self, rows: Tensor) -> tuple[int, int]:
        return self._size, self._size

    def full(self, rows: Tensor) -> Tensor:
        """(B,) int64 rows to the stored images (B,channels,size,size) uint8 on the device, channels_last."""
        return self._gather(rows).permute(0, 3, 1, 2)

    def squares(self, rows: Tensor, side: int) -> Tensor:
        stored = self.full(rows)
        if side == self._size:
            return stored
        return F.interpolate(stored, size=(side, side), mode="bicubic", antialias=True)

    def crops(self, rows: Tensor, offset: Tensor | None = None) -> Tensor:
        pixels = self._gather(rows)  # (B,size,size,channels)
        if self.has_margin:
            corner = _corners(torch.full((len(rows), 2), self._size - self.side), offset)
            inside = to_device(corner, self.device)[:, :, None] + torch.arange(
                self.side, device=self.device
            )  # (B,2,side)
            row, column = inside.unbind(dim=1)
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
    """Images of any shape in JPEG files, decoded per batch by one thread per core; PIL decodes without the GIL."""

    def __init__(
        self, device: torch.device, blobs: list[Path], tables: list[np.ndarray], mean: list[float], std: list[float],
        side: int,
    ) -> None:  # fmt: skip
        """``blobs`` are files of JPEG images, each with a table (rows,4) int64: start, end, height, width.

        Every image is at least ``side`` x ``side`` pixels. Raises ``ScanError`` if a file is missing or shorter than
        its table says; ``crops`` and ``resized_crops`` raise it if an image cannot be decoded.
        """
        super().__init__(device, len(mean), side, mean, std)
        self._blobs, self._files = blobs, [_opened(self, blob) for blob in blobs]
        for blob, file, table in zip(blobs, self._files, tables, strict=True):
            _check(blob, os.fstat(file).st_size, table, side)
        self._table = torch.from_numpy(np.concatenate(tables))  # (N,4) int64: start, end, height, width
        self._blob = np.repeat(np.arange(len(tables)), [len(table) for table in tables])  # (N,)
        self._mode = "L" if self.channels == 1 else "RGB"
        self._threads = ThreadPoolExecutor(os.cpu_count())
        self.count, self.has_margin = len(self._table), bool((self._table[:, 2:] > side).any())

    def sizes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self._table[rows.cpu(), 2:].float().unbind(dim=1)
        return height, width

    def crops(self, rows: Tensor, offset: Tensor | None = None) -> Tensor:
        top_left = _corners(self._table[rows.cpu(), 2:] - self.side, offset)
        left_top = top_left.flip(1)
        boxes = torch.cat([left_top, left_top + self.side], dim=1)  # (B,4) int64
        return self._views(rows, boxes, self.side, lambda image, box: image.crop(box))

    def resized_crops(self, rows: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
        """(B,) int64 rows to (B,channels,side,side) uint8 on the device, channels_last: bilinear, antialiased.

        ``boxes`` (B,4), on the host, are left, top, right and bottom of each crop in pixels, which may be fractions.
        """
        return self._resized(rows, boxes, side or self.side, Image.Resampling.BILINEAR)

    def squares(self, rows: Tensor, side: int) -> Tensor:
        height_width = self._table[rows.cpu(), 2:]  # (B,2)
        short = height_width.amin(dim=1, keepdim=True)
        left_top = ((height_width - short) / 2).flip(1)
        return self._resized(rows, torch.cat([left_top, left_top + short], dim=1), side, Image.Resampling.BICUBIC)

    def _resized(self, rows: Tensor, boxes: Tensor, side: int, filter: Image.Resampling) -> Tensor:
        return self._views(rows, boxes, side, lambda image, box: image.resize((side, side), filter, box=box))

    def _views(self, rows: Tensor, boxes: Tensor, side: int, cut: Callable[[Image.Image, Box], Image.Image]) -> Tensor:
        """``cut(image, box)``, which has ``side`` x ``side`` pixels, of each decoded image and its box."""
        views = _host_batch(self.device, len(rows), side, self.channels)
        filled = views.numpy()
        wanted_of: dict[int, list[tuple[int, Box]]] = defaultdict(list)
        for position, (row, box) in enumerate(zip(rows.tolist(), map(tuple, boxes.tolist()), strict=True)):
            wanted_of[row].append((position, box))

        def fill(row: int, wanted: list[tuple[int, Box]]) -> None:
            image = self._decoded(row)
            for position, box in wanted:
                filled[position] = np.asarray(cut(image, box)).reshape(filled.shape[1:])

        # An image is decoded once for all of its views. The list raises what a thread raised.
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
            raise DamagedFile(f"{self._blobs[self._blob[row]]} is damaged (at byte {start:,}: {what})") from None


def _joined(device: torch.device, shards: list[Tensor]) -> Tensor:
    """(N,size,size,channels) on ``device``, copied shard by shard: the host never holds more than it has mapped."""
    joined = torch.empty((sum(map(len, shards)), *shards[0].shape[1:]), dtype=torch.uint8, device=device)
    for part, shard in zip(torch.split(joined, [len(shard) for shard in shards]), shards, strict=True):
        part.copy_(shard)
    return joined


def _host_batch(device: torch.device, batch: int, side: int, channels: int) -> Tensor:
    """(B,side,side,channels) uint8 to be filled on the host, pinned so that a GPU copies it without waiting."""
    return torch.empty(batch, side, side, channels, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _corners(margin: Tensor, offset: Tensor | None) -> Tensor:
    """Row and column of each crop's top left corner, (B,2) int64 in 0..``margin``; see ``Images.crops``."""
    if offset is None:
        return margin // 2  # center crop: of an odd margin the smaller half is above and left
    # Random crop: [0,1] has one part per position, all of the same length.
    return ((offset.cpu().double() * (margin + 1)).ceil().long() - 1).clamp(min=0)


def _opened(owner: JpegImages, path: Path) -> int:
    """A file descriptor that is closed when ``owner`` is collected."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from None
    weakref.finalize(owner, os.close, file)
    return file


def _check(path: Path, size: int, table: np.ndarray, side: int) -> None:
    """Raises ``ScanError`` if ``table`` points outside a file of ``size`` bytes or has an image below ``side``."""
    start, end = table[:, 0], table[:, 1]
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > size))
    if len(wrong):
        row = wrong[0]
        what = f"it has {size:,} bytes, its table wants {start[row]:,} to {end[row]:,}"
        raise DamagedFile(f"{path} is damaged ({what})")
    if len(table) and table[:, 2:].min() < side:
        what = f"its table has an image of {table[:, 2:].min()} pixels per side, below {side}"
        raise DamagedFile(f"{path} is damaged ({what})")
