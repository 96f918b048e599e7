"""From an encoded image to the pixels that the store keeps: gray (L) or color (RGB), upright, transparency made white.

Worker processes import this module, so it imports nothing slow.
"""

import contextlib
import ctypes
import io
import logging
import warnings
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.ImageFile import ImageFile

from scan_core.data.color import jpeg_needs_transform, to_srgb
from scan_core.data.depth import (
    Range,
    common_range,
    deep_values,
    eight_bits,
    extent,
    has_low_bytes,
    low_bytes,
    use_native_order,
)
from scan_core.data.oddities import complete_jpeg, tiff_reason, unread_planes, without_text
from scan_core.data.settings import Data
from scan_core.data.types import LFS, Box
from scan_core.data.workers import SMALL, take

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
MAX_ASPECT = 4  # long side per short side in the jpeg store: a strip one pixel wide would grow to millions of pixels
ORIENTATION = 0x0112  # EXIF
ICON = b"\0\0\1\0"
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MEBIBYTE = 2**20
MAX_SIDE = 65536  # pixels; resize is given no longer side, because its memory grows with it
MIN_BOX = 2  # pixels per side
MOST_PER_BYTE = 10_000  # pixels per byte of a file: above what deflate can do, and below what hostile files do
STRIP = 2**20  # pixels
UNKNOWN = "not an image of a known format"
EMPTY = "empty file"
TOO_LARGE = "too large for the memory"

PAGED = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")  # several images in one file; a phone's MPO holds one photo

Image.MAX_IMAGE_PIXELS = None  # ``Target.max_pixels`` is checked instead, before anything is decoded
# What a library has to say of a damaged file is in its finding, and never reaches the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())
logging.getLogger("PIL").propagate = False
warnings.filterwarnings("ignore", module=r"PIL\.")
with contextlib.suppress(OSError, AttributeError):  # libtiff writes past Python's streams
    for handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(_imaging.__file__), handler)(None)


class Refused(Exception):
    """An image cannot be used. The message is the reason."""


class Decoded(NamedTuple):
    """An image, and what is to be known of its file."""

    image: Image.Image  # mode L or RGB, upright
    extent: np.ndarray | None = None  # see ``depth.extent``; None: 8 bits
    paged: bool = False  # the file holds more pages or frames; this is the first


@dataclass(frozen=True)
class Target:
    """What every image becomes."""

    size: int
    fit: Literal["crop", "pad", "stretch"]
    stored: Literal["array", "jpeg"]
    max_pixels: int
    unreduced: bool = False  # a JPEG is decoded at its full size, because boxes count its pixels
    range: Range | None = None  # of images of more than 8 bits; None: each image's own


def target_of(settings: Data) -> Target:
    """The target that ``settings`` ask for."""
    boxes = settings.boxes is not None
    return Target(settings.size, settings.fit, settings.stored, settings.max_pixels, boxes, settings.range)


def open_image(data: str | bytes | np.ndarray, target: Target) -> Image.Image:
    """The image of ``decode``."""
    return decode(data, target).image


def decode(data: str | bytes | np.ndarray, target: Target) -> Decoded:
    """The decoded image. ``data`` is a file's path, an encoded image, or pixels. Raises ``Refused``."""
    if isinstance(data, np.ndarray):
        return Decoded(_flatten(Image.fromarray(data)))
    try:
        # A large file is not read whole: it may be a video, which its first bytes show.
        whole = data if isinstance(data, bytes) else _small_file(data)
        source: IO[bytes] = open(data, "rb") if whole is None else io.BytesIO(whole)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    image = _plain_jpeg(whole, target) if whole else None
    if image:
        return Decoded(image)
    with source:
        try:
            return _decode(source, target)
        except Refused:
            raise
        except MemoryError:
            raise Refused(TOO_LARGE) from None
        except Exception as error:  # noqa: BLE001 (decoders raise anything for a damaged file)
            repaired = complete_jpeg(source) or without_text(source)
            if repaired:
                return decode(repaired, target)
            raise Refused(_reason(source, error)) from None


def _reason(source: IO[bytes], error: Exception) -> str:
    """Why an image cannot be decoded."""
    source.seek(0)
    head = source.read(len(LFS))
    if isinstance(error, UnidentifiedImageError):
        if head == LFS:
            return "a pointer of Git LFS and not the image; git lfs pull gets it"
        return tiff_reason(source) or (UNKNOWN if head else EMPTY)
    what = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in what.lower() else f"damaged: {what}"


def _plain_jpeg(data: bytes, target: Target) -> Image.Image | None:
    """The bytes that ``_decode`` gives, in a quarter of its time, for a small and simple JPEG. None for others."""
    if not data.startswith(b"\xff\xd8\xff") or b"Exif\0" in data or b"MPF\0" in data:
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        if (
            _reduced(width, height, target)
            or height * width > target.max_pixels
            or color_space not in ("YCbCr", "Gray")
            or jpeg_needs_transform(data, "RGB" if color_space == "YCbCr" else "L")
        ):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB" if color_space == "YCbCr" else "GRAY")  # raises on warnings
    except (ValueError, MemoryError):
        return None
    return Image.fromarray(pixels if color_space == "YCbCr" else pixels[:, :, 0])


def _small_file(path: str) -> bytes | None:
    """The bytes of a file below a mebibyte, else None: one read is faster than a decoder's many."""
    with open(path, "rb") as file:
        data = file.read(MEBIBYTE)
        return data if len(data) < MEBIBYTE else None


def _decode(source: IO[bytes], target: Target) -> Decoded:
    image = open_header(source, target.max_pixels)
    width, height = image.size
    if width * height > target.max_pixels:
        raise Refused(f"{width:,} x {height:,} pixels; data.max_pixels is {target.max_pixels:,}")
    if not width * height:
        raise Refused("an image without pixels")
    is_jpeg = image.format in ("JPEG", "MPO")
    if width * height > MOST_PER_BYTE * (size := source.seek(0, io.SEEK_END)) + SMALL:
        raise Refused(f"{width:,} x {height:,} pixels in {size:,} bytes: one color, or made to fill the memory")
    if unread_planes(image):
        raise Refused("a TIFF of 16 bits with its colors in separate planes; save it with interleaved ones")
    use_native_order(image)
    two_bytes = has_low_bytes(image)
    if is_jpeg and _reduced(width, height, target):
        wanted = _decoded_side(width, height, target)
        image.draft(None, (wanted, wanted))
    take(image.width * image.height, image.format)
    if not is_jpeg:
        image.load()  # PIL turns a TIFF upright, libheif a HEIF, and both set the orientation to 1
    orientation = 1
    if not is_jpeg or "exif" in image.info:
        with contextlib.suppress(Exception):  # a picture with a damaged EXIF block can still be used
            orientation = image.getexif().get(ORIENTATION, 1)
    low = low_bytes(open_header(source, target.max_pixels)) if two_bytes else None
    deep, profile = deep_values(image, low), image.info.get("icc_profile")
    measured = None if deep is None else extent(deep)
    if deep is not None and measured is not None:
        flat = eight_bits(deep, target.range or common_range(measured[None]) or (0.0, 1.0))
    else:
        flat = _flatten(image)
    if profile and image.mode not in ("CMYK", "LAB"):
        flat = to_srgb(flat, profile)
    if flat is image and image.format == "GIF":  # the search for a second frame moves on in the image
        flat = image.copy()
    paged = image.format in PAGED and _paged(image)
    transpose = _UPRIGHT.get(orientation)
    return Decoded(flat if transpose is None else flat.transpose(transpose), measured, paged)


def _paged(image: Image.Image) -> bool:
    """Whether the file of ``image`` holds further images; a damaged second one counts."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 (a decoder's)
        return True


def open_header(source: IO[bytes], max_pixels: int) -> ImageFile:
    """The image, not decoded yet.

    Raises ``Refused`` for an icon of more than ``max_pixels`` and for HEIC without its package; else what PIL raises.
    """
    head = source.read(12)
    source.seek(0)
    try:
        if head.startswith(ICON):  # opening decodes it, and the image inside may be larger than its header says
            Image.MAX_IMAGE_PIXELS = max_pixels
        return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(f"an icon of more pixels than data.max_pixels, {max_pixels:,}") from None
    except UnidentifiedImageError:
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            raise
    finally:
        Image.MAX_IMAGE_PIXELS = None
    try:
        from pillow_heif import HeifImagePlugin  # noqa: F401 (registers itself with PIL)
    except ImportError:
        raise Refused("a HEIC image; install the package pillow-heif, which reads it") from None
    source.seek(0)
    return Image.open(source, formats=("HEIF",))


def _reduced(width: int, height: int, target: Target) -> bool:
    """Whether a JPEG is reduced while it is decoded."""
    return not target.unreduced and min(width, height) >= 2 * _decoded_side(width, height, target)


def _decoded_side(width: int, height: int, target: Target) -> int:
    """The short side below which a JPEG is not reduced while it is decoded: twice the wanted size is left to resize.

    Decoding at a half, a quarter or an eighth is several times faster.
    """
    if target.fit != "pad":
        return 2 * target.size
    return max(2 * target.size * min(width, height) // max(width, height), 1)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _flatten(image: Image.Image) -> Image.Image:
    """Mode L or RGB, of an image of 8 bits: palettes are resolved, transparent pixels become white."""
    clear = image.info.get("transparency")
    if image.mode in ("L", "RGB") and clear is None:
        image.load()
        return image
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        flat = image.convert("RGB") if clear is None else _over_white(image.convert("RGBA"))
        return flat.convert("L") if (palette == palette[:, :1]).all() else flat
    if image.mode in ("LA", "La") or (image.mode in ("1", "L") and clear is not None):
        return _over_white(image.convert("LA"))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("RGBA", "RGBa", "PA") or clear is not None:
        return _over_white(image.convert("RGBA"))
    return to_srgb(image, image.info.get("icc_profile"))


def _over_white(image: Image.Image) -> Image.Image:
    """Mode LA to L, or RGBA to RGB."""
    white = Image.new(image.mode[:-1], image.size, "white")
    rows = max(STRIP // image.width, 1)
    for top in range(0, image.height, rows):  # a mask and a copy of all of it would double the memory
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        white.paste(strip, (0, top), mask=strip.getchannel("A"))
    return white


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The part of ``image`` in ``box``, whose edges are rounded to whole pixels and clipped to the image.

    Raises ``Refused`` if what is left has fewer than ``MIN_BOX`` pixels per side.
    """
    across, down = image.size if box.relative else (1, 1)
    left, right = (round(min(max(edge * across, 0), image.width)) for edge in (box.left, box.left + box.width))
    top, bottom = (round(min(max(edge * down, 0), image.height)) for edge in (box.top, box.top + box.height))
    if min(right - left, bottom - top) < MIN_BOX:
        size = f"{right - left} x {bottom - top} of the image's {image.width:,} x {image.height:,} pixels"
        raise Refused(f"the box holds {size}; at least {MIN_BOX} x {MIN_BOX} are needed")
    return image.crop((left, top, right, bottom))


def square(image: Image.Image, target: Target) -> Image.Image:
    """``size`` x ``size``, antialiased: the center of the image, or all of it between bars, or all of it stretched."""
    size, (width, height) = target.size, image.size
    if (width, height) == (size, size):
        return image
    if target.fit != "crop" and max(width, height) > MAX_SIDE:
        image = image.reduce((-(-width // MAX_SIDE), -(-height // MAX_SIDE)))
    if target.fit == "pad":
        scale = size / max(width, height)
        inner = max(round(width * scale), 1), max(round(height * scale), 1)
        canvas = Image.new(image.mode, (size, size), _edge_color(image))
        canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    box = None if target.fit == "stretch" else _center_box(width, height, 1)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _edge_color(image: Image.Image) -> int | tuple[int, ...]:
    """The mean of the two edges that bars are put beside: white for a product in front of a white wall."""
    width, height = image.size
    boxes = [(0, 0, 1, height), (width - 1, 0, width, height)]
    if height < width:
        boxes = [(0, 0, width, 1), (0, height - 1, width, height)]
    edges = np.stack([np.asarray(image.crop(box), np.float64).reshape(max(width, height), -1) for box in boxes])
    mean = [round(value) for value in edges.mean(axis=(0, 1)).tolist()]
    return mean[0] if len(mean) == 1 else tuple(mean)


def short_side(image: Image.Image, target: Target) -> Image.Image:
    """The short side becomes ``size``; the aspect is kept, but a long side of more than ``MAX_ASPECT`` is cropped."""
    left, top, right, bottom = _center_box(*image.size, MAX_ASPECT)
    width, height = right - left, bottom - top
    scale = target.size / min(width, height)
    size = max(round(width * scale), target.size), max(round(height * scale), target.size)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def _center_box(width: int, height: int, max_aspect: int) -> tuple[float, float, float, float]:
    """The largest centered box whose long side is at most ``max_aspect`` times its short side."""
    short = min(width, height)
    box_width, box_height = min(width, max_aspect * short), min(height, max_aspect * short)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height
