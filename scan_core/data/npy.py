"""Images in the rows of a .npy array."""

import os
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scan_core.data.download import some
from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source
from scan_core.errors import ScanError

ARRAYS_ALLOWED = "(N,height,width[,channels]) uint8 or bool, with 1, 3 or 4 channels, is allowed"


def open_npy(path: Path, settings: Data) -> Source:
    """The images of a .npy file, mapped and not loaded.

    The array is uint8 or bool of shape (N,height,width) or (N,height,width,channels) with 1, 3 or 4 channels. Items are
    named ``<file>/<row>`` and hold (height,width) or (height,width,channels) uint8; bool becomes 0 and 255. There are
    no labels and no splits. Raises ``ScanError`` for any other file, dtype or shape.
    """
    shape, dtype = _header(path)
    problem = f"{path} is {dtype} of shape {shape}; {ARRAYS_ALLOWED}"
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
        raise ScanError(f"{problem}; move the channels last")
    if dtype not in (np.uint8, np.bool_) or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise ScanError(problem)
    if 0 in shape:
        raise ScanError(f"{problem}, and at least one image of at least one pixel is needed")
    _map(path)  # raises now if the file is truncated

    def read() -> Iterator[Item | Finding]:
        for row, pixels in enumerate(_map(path)):
            image = np.array(pixels, np.uint8, order="C")  # a copy, so that no item keeps the file open
            if dtype == np.bool_:
                image *= 255
            yield Item(row_name(path.name, row), image[..., 0] if image.shape[2:] == (1,) else image)

    return Source(read, None, shape[0])


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype, read before anything is mapped or, for an object array, unpickled."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as arrays:
            held = some([name.removesuffix(".npy") for name in arrays.namelist()])
        raise ScanError(f"{path} is a .npz with the arrays {held}; save the one with the images as a .npy file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
    except (OSError, ValueError, TypeError, tokenize.TokenError, RecursionError) as error:
        raise ScanError(f"{path} is not a .npy file; {ARRAYS_ALLOWED}; write one with numpy.save") from error
    return shape, dtype


def _map(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise ScanError(f"{path} is a .npy file that cannot be read ({error}); get or write it again") from error


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A new memory-mapped array at ``path``, whose room on the disk is taken at once.

    Raises ``OSError`` if there is not enough: a write to a mapping would end the process without a word.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def row_name(file: str, row: int) -> str:
    """The name of a row of a table or array."""
    return f"{file}/{row:07d}"
