"""From an encoded image to what the store keeps. Runs in worker processes: imports nothing that is slow.

Every image comes out in one of two modes, grey (L) or colour (RGB), upright, its alpha over white.
"""

import hashlib
import io
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from scan_core.duplicates import THUMB, perceptual_hash
from scan_core.settings import Data
from scan_core.sources import Finding, Item, Split

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".ico", ".heic", ".heif", ".hif",
}  # fmt: skip
JPEG_QUALITY = 90
WIDEST = 4  # sides of an image in the jpeg store are at most 1 to 4: a strip of one pixel would grow to millions
ORIENTATION = 0x0112  # EXIF
ICON = b"\0\0\1\0"
MEBIBYTE = 2**20
LONGEST = 65536  # pixels of a side that resize is given: its memory grows with it
UNKNOWN = "not an image of a known format"
EMPTY = "empty file"
TOO_LARGE = "too large for the memory"

Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and is checked before anything is decoded


class Refused(Exception):
    """Why an image cannot be used."""


@dataclass(frozen=True)
class Target:
    """What every image becomes."""

    size: int
    fit: Literal["crop", "pad", "stretch"]
    stored: Literal["array", "jpeg"]
    max_pixels: int


def target_of(settings: Data) -> Target:
    """What ``settings`` make of an image."""
    return Target(settings.size, settings.fit, settings.stored, settings.max_pixels)


def open_image(data: str | bytes | np.ndarray, target: Target) -> Image.Image:
    """The decoded image, mode L or RGB, of a file, of an encoded image, or of pixels. Raises ``Refused``."""
    if isinstance(data, np.ndarray):
        return _flatten(Image.fromarray(data))
    try:
        # A large file is not read whole: it may be a film, which is known by its first bytes.
        whole = data if isinstance(data, bytes) else _small_file(data)
        source: IO[bytes] = open(data, "rb") if whole is None else io.BytesIO(whole)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    image = _plain_jpeg(whole, target) if whole else None
    if image:
        return image
    with source:
        try:
            return _decode(source, target)
        except Refused:
            raise
        except UnidentifiedImageError:
            source.seek(0)
            head = source.read(1)
            raise Refused(UNKNOWN if head else EMPTY) from None
        except MemoryError:
            raise Refused(TOO_LARGE) from None
        except Exception as error:  # noqa: BLE001 (a damaged file makes decoders raise anything)
            what = " ".join(str(error).split()) or type(error).__name__
            raise Refused("truncated" if "truncated" in what.lower() else f"damaged: {what}") from None


def _plain_jpeg(data: bytes, target: Target) -> Image.Image | None:
    """A small JPEG without oddities, the same as ``_decode`` makes of it in a quarter of the time; None for others."""
    if not data.startswith(b"\xff\xd8\xff") or b"Exif\0" in data or b"MPF\0" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        large = min(height, width) >= 2 * _decoded_side(width, height, target) or height * width > target.max_pixels
        if large or colours not in ("YCbCr", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB" if colours == "YCbCr" else "GRAY")  # strict: raises on warnings
    except (ValueError, MemoryError):
        return None
    return Image.fromarray(pixels if colours == "YCbCr" else pixels[:, :, 0])


def _small_file(path: str) -> bytes | None:
    """The bytes of a file below a mebibyte: one read is quicker than a decoder's many."""
    with open(path, "rb") as file:
        data = file.read(MEBIBYTE)
        return data if len(data) < MEBIBYTE else None


def _decode(source: IO[bytes], target: Target) -> Image.Image:
    image = _opened(source, target)
    width, height = image.size
    if width * height > target.max_pixels:
        raise Refused(f"{width:,} x {height:,} pixels; data.max_pixels is {target.max_pixels:,}")
    if not width * height:
        raise Refused("an image without pixels")
    if image.format in ("JPEG", "MPO"):
        wanted = _decoded_side(width, height, target)
        if min(width, height) >= 2 * wanted:
            image.draft(None, (wanted, wanted))
        turned = "exif" in image.info
    else:
        image.load()  # which turns a TIFF, and then says so
        turned = image.format != "HEIF"  # that one is turned by its decoder
    orientation = 1
    if turned:
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except Exception:  # noqa: BLE001 (a damaged EXIF block makes no bad picture)
            orientation = 1
    image = _flatten(image)
    transpose = _UPRIGHT.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _opened(source: IO[bytes], target: Target) -> Image.Image:
    """The image, not decoded yet."""
    head = source.read(8)
    source.seek(0)
    try:
        if head.startswith(ICON):  # the one that is: and what it holds may be larger than it says
            Image.MAX_IMAGE_PIXELS = target.max_pixels
        return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(f"an icon of more pixels than data.max_pixels, {target.max_pixels:,}") from None
    except UnidentifiedImageError:
        if head[4:] != b"ftyp":
            raise
    finally:
        Image.MAX_IMAGE_PIXELS = None
    from pillow_heif import HeifImagePlugin  # noqa: F401 (photos of phones; registers itself)

    source.seek(0)
    return Image.open(source, formats=("HEIF",))


def _decoded_side(width: int, height: int, target: Target) -> int:
    """The short side at which a JPEG is decoded where it is larger: a half, quarter or eighth is several times faster.

    Twice the wanted size is left to resize.
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
    """Mode L or RGB: 16 bits to 8, palettes resolved, alpha over white."""
    clear = image.info.get("transparency")
    if image.mode in ("L", "RGB") and clear is None:
        image.load()
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        gray = _eight_bits(values)
        if isinstance(clear, int):
            gray.paste(255, mask=Image.fromarray(values == clear))
        return gray
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
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Mode LA to L, or RGBA to RGB."""
    white = Image.new(image.mode[:-1], image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _eight_bits(values: np.ndarray) -> Image.Image:
    """Grey values of 16 or 32 bits, or floats, as 8 bits: 0..65535 and 0..1 to 0..255, others by their own range."""
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = (0.0, 65535.0) if np.issubdtype(values.dtype, np.integer) else (0.0, 1.0)
    if numbers.min() < low or numbers.max() > high:
        low, high = float(numbers.min()), float(numbers.max())
    return Image.fromarray(np.round((numbers - low) * (255 / (high - low or 1))).astype(np.uint8))


def square(image: Image.Image, target: Target) -> Image.Image:
    """``size`` x ``size``: the centre of the image, all of it between bars, or all of it stretched; antialiased."""
    size, (width, height) = target.size, image.size
    if (width, height) == (size, size):
        return image
    if target.fit != "crop" and max(width, height) > LONGEST:
        image = image.reduce((-(-width // LONGEST), -(-height // LONGEST)))
    if target.fit == "pad":
        scale = size / max(width, height)
        inner = max(round(width * scale), 1), max(round(height * scale), 1)
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    box = None if target.fit == "stretch" else _centre(width, height, 1)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def short_side(image: Image.Image, target: Target) -> Image.Image:
    """The short side at ``size``, aspect kept up to 1 to 4."""
    left, top, right, bottom = _centre(*image.size, WIDEST)
    width, height = right - left, bottom - top
    scale = target.size / min(width, height)
    size = max(round(width * scale), target.size), max(round(height * scale), target.size)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def _centre(width: int, height: int, widest: int) -> tuple[float, float, float, float]:
    """The largest box about the centre whose sides are at most 1 to ``widest``."""
    short = min(width, height)
    box_width, box_height = min(width, widest * short), min(height, widest * short)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


@dataclass
class Chunk:
    """Some images of a source as they came out, in the source's order: one row for each that was taken."""

    names: list[str]
    labels: list[str | None]
    splits: list[Split | None]
    findings: list[Finding]
    gray: np.ndarray  # (n,) bool
    ends: np.ndarray  # (n,) int64: where each image's bytes end in the chunk's .bin
    shapes: np.ndarray  # (n,2) int32: height, width as stored
    digests: np.ndarray  # (n,32) uint8: SHA-256 of the stored colour image
    gray_digests: np.ndarray  # (n,32) uint8: and of the grey one, for when all images are grey
    hashes: np.ndarray  # (n,) uint64: perceptual
    sums: np.ndarray  # (n,3) int64: of the values, by channel
    squares: np.ndarray  # (n,3) int64


def save_chunk(chunk: Chunk, thumbs: np.ndarray, file: Path) -> None:
    """Writes ``file`` (.npz), whole or not at all. ``thumbs`` is (n,16,16) uint8."""
    arrays = {name: value for name, value in vars(chunk).items() if isinstance(value, np.ndarray)}
    text = json.dumps({
        "names": chunk.names,
        "labels": chunk.labels,
        "splits": chunk.splits,
        "findings": [[finding.name, finding.kind, finding.reason] for finding in chunk.findings],
    })  # fmt: skip
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.savez(opened, text=np.frombuffer(text.encode(), np.uint8), thumbs=thumbs, **arrays)  # type: ignore[arg-type]
    os.replace(partial, file)


def load_chunk(file: Path) -> Chunk:
    """What ``save_chunk`` wrote, without the thumbnails."""
    with np.load(file, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in saved.files if name != "thumbs"}
    text = json.loads(arrays.pop("text").tobytes())
    findings = [Finding(*each) for each in text.pop("findings")]
    return Chunk(findings=findings, **text, **arrays)


def load_thumbs(file: Path) -> np.ndarray:
    """(n,16,16) uint8, of the chunk in ``file``."""
    with np.load(file, allow_pickle=False) as saved:
        thumbs: np.ndarray = saved["thumbs"]
        return thumbs


def decode_chunk(
    items: list[Item], findings: list[Finding], target: Target, folder: Path, number: int
) -> tuple[int, int]:
    """Decodes ``items`` into ``folder``: the images' bytes (.bin), then what is known of them (.npz).

    Images of the array store lie in the .bin as colour, or as grey where all of the chunk are. Returns how many were
    taken and how many were not.
    """
    warnings.simplefilter("ignore")  # decoders warn about harmless oddities
    taken: list[Item] = []
    images: list[Image.Image] = []
    findings = list(findings)
    fit = square if target.stored == "array" else short_side
    for item in items:
        try:
            images.append(fit(open_image(item.data, target), target))
            taken.append(item)
        except Refused as refused:
            reason = str(refused)
            other = reason in (UNKNOWN, EMPTY) and os.path.splitext(item.name)[1].lower() not in ENDINGS
            findings.append(Finding(item.name, "ignored" if other else "rejected", reason))
        except MemoryError:
            findings.append(Finding(item.name, "rejected", TOO_LARGE))
    thumbs = np.frombuffer(b"".join(map(_thumb, images)), np.uint8).reshape(-1, THUMB, THUMB)
    payload, arrays = _measure(images, thumbs, target)
    data = folder / f"{number:06d}.bin"
    data.write_bytes(b"".join(payload))
    chunk = Chunk(
        names=[item.name for item in taken],
        labels=[item.label for item in taken],
        splits=[item.split for item in taken],
        findings=findings,
        **arrays,
    )
    save_chunk(chunk, thumbs, data.with_suffix(".npz"))
    return len(taken), len(findings)


def _measure(
    images: list[Image.Image], thumbs: np.ndarray, target: Target
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Each image's bytes for the store, and the arrays of ``Chunk``."""
    gray = np.array([image.mode == "L" for image in images], dtype=bool)
    encode = _jpeg if target.stored == "jpeg" else Image.Image.tobytes
    payload = [encode(image) for image in images]
    gray_digests = [_sha256(data) if is_gray else bytes(32) for data, is_gray in zip(payload, gray, strict=True)]
    if target.stored == "array" and not gray.all():
        payload = [
            image.convert("RGB").tobytes() if is_gray else data
            for data, image, is_gray in zip(payload, images, gray, strict=True)
        ]
        digests = [_sha256(data) for data in payload]
    elif target.stored == "array":
        digests = [_sha256(image.convert("RGB").tobytes()) for image in images]
    else:
        digests = [_sha256(data) for data in payload]
    sums, squares = _array_sums(payload, target.size) if target.stored == "array" else _image_sums(images)
    return payload, {
        "gray": gray,
        "ends": np.cumsum([len(each) for each in payload], dtype=np.int64),
        "shapes": np.array([(image.height, image.width) for image in images], np.int32).reshape(-1, 2),
        "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        "gray_digests": np.frombuffer(b"".join(gray_digests), np.uint8).reshape(-1, 32),
        "hashes": perceptual_hash(thumbs),
        "sums": sums,
        "squares": squares,
    }


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _thumb(image: Image.Image) -> bytes:
    gray = image if image.mode == "L" else image.convert("L")
    return gray.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _array_sums(payload: list[bytes], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sums of squares by channel, (n,3) int64 each, exact, of n images of ``size`` x ``size`` pixels."""
    if not payload:
        return np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)
    channels = len(payload[0]) // size**2
    wide = np.frombuffer(b"".join(payload), np.uint8).reshape(len(payload), size, size * channels).astype(np.uint16)
    sums = _by_channel(wide, channels)
    wide *= wide  # 255 * 255 still fits
    return sums, _by_channel(wide, channels)


def _by_channel(values: np.ndarray, channels: int) -> np.ndarray:
    rows = np.add.reduce(values, axis=1, dtype=np.uint32)  # (n,width*channels): first along what lies far apart
    sums = rows.reshape(len(values), -1, channels).sum(axis=1, dtype=np.int64)  # (n,channels)
    return np.broadcast_to(sums, (len(values), 3))


def _image_sums(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """The same of images of any shape."""
    sums, squares = np.zeros((len(images), 3), np.int64), np.zeros((len(images), 3), np.int64)
    for row, image in enumerate(images):
        channels = len(image.getbands())
        wide = np.asarray(image).reshape(1, image.height, image.width * channels).astype(np.uint16)
        sums[row] = _by_channel(wide, channels)[0]
        wide *= wide
        squares[row] = _by_channel(wide, channels)[0]
    return sums, squares
