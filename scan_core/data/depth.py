"""Images of more than 8 bits per value: microscopes, X-rays, depth, heat, raw photos. All are put on one scale.

How much of 16 bits a set uses, and what a float means, no file says. So each image's extent is measured, and one scale
for the whole set keeps what is brighter in one image than in another brighter in the store.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

GDAL_NODATA, PHOTOMETRIC, SAMPLE_FORMAT = 42113, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1
TAIL = 0.001  # share of an image's values at either end that its extent leaves out: hot pixels, glints
ODD = 0.01  # share of the set's images at either end that the scale leaves out
SAMPLED = 2**18  # values per image from which the shares are taken
STRIP = 2**20  # values converted at once
SWAPPED = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if np.little_endian else ";16L"}

Range = tuple[float, float]  # the values that become 0 and 255


class Deep(NamedTuple):
    """An image's values before they are scaled."""

    values: np.ndarray  # (height,width) or (height,width,3), integers or floats
    missing: np.ndarray | None = None  # (height,width) bool: no value was measured
    alpha: np.ndarray | None = None  # (height,width) uint8; 0: transparent


def deep_values(image: Image.Image, low: Image.Image | None) -> Deep | None:
    """The values of a decoded ``image``, or None if it has 8 bits. ``low`` is what ``low_bytes`` gave."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        tags = getattr(image, "tag_v2", {})
        if image.mode == "I" and tags and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
            values = values.view(np.uint32)
        missing = _missing(values, tags)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        alpha = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
        return Deep(values, missing, alpha)
    if low is None:
        return None
    if image.mode == "RGBA" and low.info.get("gray"):  # gray with alpha, whose four bytes were read as four values
        four = np.asarray(low)
        return Deep(_joined(four[..., 0], four[..., 1]), alpha=four[..., 2])
    values = _joined(np.asarray(image), np.asarray(low))
    if values.shape[2] == 4:
        return Deep(values[..., :3], alpha=np.asarray(image)[..., 3])
    alpha = np.where((values == clear).all(axis=2), 0, 255).astype(np.uint8) if isinstance(clear, tuple) else None
    return Deep(values, alpha=alpha)


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    return values


def _missing(values: np.ndarray, tags: Any) -> np.ndarray | None:
    """Where GDAL's tag says that nothing was measured."""
    try:
        return np.asarray(values == float(str(tags[GDAL_NODATA]).strip("\0 ")))
    except (KeyError, ValueError):
        return None


def use_native_order(image: ImageFile) -> None:
    """Mends how Pillow reads numbers of compressed big-endian TIFFs, whose bytes libtiff has swapped already."""
    if image.mode in ("I", "F") and image.format == "TIFF":
        image.tile = [
            _with_mode(tile, _raw_mode(tile).replace("B", "N")) if tile.codec_name == "libtiff" else tile
            for tile in image.tile
        ]


def has_low_bytes(image: ImageFile) -> bool:
    """Whether ``image``, not decoded yet, is a color image of 16 bits, of which Pillow decodes the upper 8."""
    modes = {_raw_mode(tile) for tile in image.tile}
    in_color = image.mode in ("RGB", "RGBA") and image.format in ("PNG", "TIFF") and modes
    return bool(in_color) and all(mode[-4:] in SWAPPED and "a;" not in mode for mode in modes)  # a: premultiplied


def low_bytes(image: ImageFile) -> ImageFile:
    """The lower 8 bits of ``image``, which was opened again and not decoded.

    They stand for the upper ones if bytes are swapped. Gray with alpha becomes RGBA, the four bytes of a pixel.
    """
    image.info["gray"] = any(_raw_mode(tile).startswith("LA") for tile in image.tile)
    image.tile = [
        _with_mode(tile, "RGBA" if image.info["gray"] else _raw_mode(tile)[:-4] + SWAPPED[_raw_mode(tile)[-4:]])
        for tile in image.tile
    ]
    image.load()
    return image


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0])


def _with_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def extent(deep: Deep) -> np.ndarray:
    """(4,) float64: the lowest value, those that ``TAIL`` of the values are below and above, the highest. NaN if none.

    Missing values, NaN and infinity do not count.
    """
    step = max(int((deep.values.size / SAMPLED) ** 0.5), 1)
    some = _valid(deep.values[::step, ::step], None if deep.missing is None else deep.missing[::step, ::step])
    if not some.size:
        some = _valid(deep.values, deep.missing)
    if not some.size:
        return np.full(4, np.nan)
    ends = np.quantile(some, [TAIL, 1 - TAIL], method="closest_observation")
    ordered = np.sort(some)
    return np.array([ordered[0], *ends, ordered[-1]], np.float64)


def _valid(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    kept = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if missing is not None:
        kept &= ~missing
    numbers: np.ndarray = values[kept].astype(np.float64)
    return numbers


def common_range(extents: np.ndarray) -> Range | None:
    """The scale of a set of images, from the ``extent`` of each, (N,4): NaN if it has 8 bits. None if all have."""
    deep = extents[np.isfinite(extents[:, 0])]
    if not len(deep):
        return None
    for low, high in ((1, 2), (0, 3)):  # if all values but few are the same, the few count
        low_end = np.quantile(deep[:, low], ODD, method="lower")
        high_end = np.quantile(deep[:, high], 1 - ODD, method="higher")
        if high_end > low_end:
            return float(low_end), float(high_end)
    only = float(low_end)  # one value in all images
    return min(only, 0.0), max(only, 0.0 if only else 1.0)


def range_of(stats: dict[str, Any]) -> Range | None:
    """The scale of the images of a store, from its ``stats.json``."""
    return (stats["range"][0], stats["range"][1]) if "range" in stats else None


def eight_bits(deep: Deep, scale: Range) -> Image.Image:
    """Mode L or RGB; transparent pixels become white, what was not measured black."""
    low, high = scale
    pixels = np.empty(deep.values.shape, np.uint8)
    rows = max(STRIP // max(deep.values[0].size, 1), 1)
    for start in range(0, len(pixels), rows):
        part = slice(start, start + rows)
        numbers = deep.values[part].astype(np.float64)
        numbers = np.where(np.isfinite(numbers), numbers, low)
        pixels[part] = np.clip(np.round((numbers - low) * (255 / (high - low))), 0, 255)
    if deep.missing is not None:
        pixels[deep.missing] = 0
    image = Image.fromarray(pixels)
    if deep.alpha is None:
        return image
    white = Image.new(image.mode, image.size, "white")
    white.paste(image, mask=Image.fromarray(deep.alpha))
    return white
