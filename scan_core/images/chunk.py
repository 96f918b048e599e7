"""Images that have just been decoded, in front of a network: chunks in place of the store."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scan_core.data.chunks import Chunk
from scan_core.images.store import ArrayImages, Images, JpegImages

LUMA = np.array([19595, 38470, 7471], np.uint32)  # of red, green and blue in 65,536 parts: ITU-R 601-2, as PIL has it


def images_of_chunks(chunks: list[tuple[Chunk, Path]], stats: dict[str, Any], device: torch.device) -> Images:
    """The images of ``chunks``, one after the other, as a network sees those of a store with these ``stats``.

    With each chunk, none of which is empty, is the file of its bytes. The images are decoded to the store's size and
    form. Gray images become color ones for a network that sees color, and the other way around.
    """
    seen = (stats["mean"], stats["std"], stats["view"])
    if stats["store"] == "jpeg":
        return JpegImages(device, [file for _, file in chunks], [_table(chunk) for chunk, _ in chunks], *seen)
    return ArrayImages(device, [_pixels(chunk, file, stats) for chunk, file in chunks], *seen)


def _table(chunk: Chunk) -> np.ndarray:
    return np.column_stack([np.r_[0, chunk.ends][:-1], chunk.ends, chunk.shapes]).astype(np.int64)


def _pixels(chunk: Chunk, file: Path, stats: dict[str, Any]) -> np.ndarray:
    pixels = np.fromfile(file, np.uint8).reshape(len(chunk.names), stats["size"], stats["size"], -1)
    if stats["channels"] == 3:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    elif pixels.shape[3] == 3:
        pixels = ((pixels @ LUMA + 32768) >> 16).astype(np.uint8)[..., None]
    return np.ascontiguousarray(pixels)
