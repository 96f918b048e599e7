"""A chunk: some images of a source, decoded together. On disk it is their bytes (.bin) and the rest (.npz).

Worker processes import this module, so it imports nothing slow.
"""

import hashlib
import io
import itertools
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from scan_core.data import workers
from scan_core.data.decode import EMPTY, TOO_LARGE, UNKNOWN, Decoded, Refused, Target, crop, decode, short_side, square
from scan_core.data.duplicates import THUMB, gray_of, perceptual_hash
from scan_core.data.types import IMAGE_SUFFIXES, Box, Finding, Item, Split

JPEG_QUALITY = 90
CONTENT = 16  # bytes
BLOCK = 32  # images summed at once: they fit into a core's cache


@dataclass
class Chunk:
    """N decoded images in the source's order, and what was not taken. The joined chunks of a source are its catalog."""

    names: list[str]
    labels: list[str | None]
    splits: list[Split | None]
    findings: list[Finding]
    gray: np.ndarray  # (N,) bool
    ends: np.ndarray  # (N,) int64: where each image's bytes end in the chunk's .bin
    shapes: np.ndarray  # (N,2) int32: height, width as stored
    digests: np.ndarray  # (N,32) uint8: SHA-256 of the stored JPEG, or of the array's pixels in color
    contents: np.ndarray  # (N,16) uint8: what names the image in the source, see ``content_of``
    hashes: np.ndarray  # (N,) uint64: perceptual
    sums: np.ndarray  # (N,3) int64: of the pixels, per channel; of a gray image three times the same
    squares: np.ndarray  # (N,3) int64: of the pixels squared
    extents: np.ndarray  # (N,4) float64: of images of more than 8 bits, see ``depth.extent``; NaN: 8 bits
    ranges: np.ndarray  # (N,2) float64: the scale of these, that of the set; NaN: 8 bits, or the image's own
    paged: np.ndarray  # (N,) bool: the file holds more pages or frames, of which this is the first


def save_chunk(chunk: Chunk, thumbs: np.ndarray, file: Path) -> None:
    """Writes ``file`` (.npz), whole or not at all. ``thumbs`` is (N,32,32,3) uint8."""
    arrays = {name: value for name, value in vars(chunk).items() if isinstance(value, np.ndarray)}
    rows = np.empty(len(chunk.names), [(name, value.dtype, value.shape[1:]) for name, value in arrays.items()])
    for name, value in arrays.items():
        rows[name] = value
    text = json.dumps({
        "names": chunk.names,
        "labels": chunk.labels,
        "splits": chunk.splits,
        "findings": [[finding.name, finding.kind, finding.reason] for finding in chunk.findings],
    })  # fmt: skip
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.savez(opened, text=np.frombuffer(text.encode(), np.uint8), rows=rows, thumbs=thumbs)
    os.replace(partial, file)


def load_chunk(file: Path) -> Chunk:
    """What ``save_chunk`` wrote, without the thumbnails."""
    with np.load(file, allow_pickle=False) as saved:
        text, rows = json.loads(saved["text"].tobytes()), saved["rows"]
    findings = [Finding(*each) for each in text.pop("findings")]
    return Chunk(findings=findings, **text, **{name: rows[name] for name in rows.dtype.names})


def has_digests(chunk: Chunk, target: Target, data: bytes) -> bool:
    """Whether ``data`` are the chunk's images, bit by bit."""
    starts = np.r_[0, chunk.ends].tolist()
    if starts[-1] != len(data):
        return False
    is_gray = target.stored == "array" and chunk.gray.all()
    images = (data[start:end] for start, end in itertools.pairwise(starts))
    digests = (hashlib.sha256(to_color(each) if is_gray else each).digest() for each in images)
    return all(found == wanted.tobytes() for found, wanted in zip(digests, chunk.digests, strict=True))


def load_thumbs(file: Path) -> np.ndarray:
    """The thumbnails of the chunk in ``file``, (N,32,32,3) uint8."""
    with np.load(file, allow_pickle=False) as saved:
        thumbs: np.ndarray = saved["thumbs"]
        return thumbs


def decode_chunk(
    items: list[Item], findings: list[Finding], target: Target, folder: Path, number: int
) -> tuple[int, int]:
    """Decodes ``items`` into ``folder`` as chunk ``number``. Returns how many were taken and how many were not.

    ``findings`` are the source's own; the chunk has them too. Images of the array store are written in color, unless
    all of the chunk are gray.
    """
    warnings.simplefilter("ignore")  # decoders warn about harmless oddities
    images: list[_Image] = []
    findings = list(findings)
    opened: tuple[object, Decoded, bytes] | None = None
    for position, item in enumerate(items):
        workers.begin(number, position)
        try:
            # The parts of an image share its data: it is decoded once for all of them.
            if opened is None or opened[0] is not item.data:
                opened = None  # so that only one image is in memory
                workers.give_back()
                opened = item.data, decode(item.data, target), content_of(item.data)
            images.append(_resize(item, *opened[1:], target))
        except (Refused, MemoryError) as error:
            findings.append(_refusal(item, error))
    opened = None
    workers.end()
    is_array, all_gray = target.stored == "array", all(image.gray for image in images)
    in_color = [to_color(image.data) if is_array and image.gray else image.data for image in images]
    data = [image.data for image in images] if all_gray else in_color
    joined = b"".join(data)
    if is_array:
        shape = (len(images), target.size, target.size, 1 if all_gray else 3)
        sums = _channel_sums(np.frombuffer(joined, np.uint8).reshape(shape))
    else:
        sums = np.concatenate([_NO_SUMS, *(image.sums for image in images)], axis=1)
    thumbs = np.frombuffer(b"".join(image.thumb for image in images), np.uint8).reshape(-1, THUMB, THUMB, 3)
    digests = b"".join(hashlib.sha256(each).digest() for each in in_color)
    chunk = Chunk(
        names=[image.item.name for image in images],
        labels=[image.item.label for image in images],
        splits=[image.item.split for image in images],
        findings=findings,
        gray=np.array([image.gray for image in images], bool),
        ends=np.cumsum([len(each) for each in data], dtype=np.int64),
        shapes=np.array([image.shape for image in images], np.int32).reshape(-1, 2),
        digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
        contents=np.frombuffer(b"".join(image.content for image in images), np.uint8).reshape(-1, CONTENT),
        hashes=perceptual_hash(gray_of(thumbs)),
        sums=sums[0],
        squares=sums[1],
        extents=np.array([image.extent for image in images], np.float64).reshape(-1, 4),
        ranges=np.array([_range_of(image, target) for image in images], np.float64).reshape(-1, 2),
        paged=np.array([image.paged for image in images], bool),
    )
    file = folder / f"{number:06d}.bin"
    file.write_bytes(joined)
    save_chunk(chunk, thumbs, file.with_suffix(".npz"))
    return len(images), len(findings)


class _Image(NamedTuple):
    """One decoded image of a chunk."""

    item: Item
    content: bytes
    data: bytes  # array store: the pixels, gray or color; jpeg store: the JPEG
    gray: bool
    shape: tuple[int, int]  # height, width
    thumb: bytes  # (32,32,3) uint8
    sums: np.ndarray  # jpeg store: (2,1,3), because the pixels are not kept; array store: (2,0,3)
    extent: np.ndarray  # (4,)
    paged: bool


def _range_of(image: _Image, target: Target) -> tuple[float, float]:
    """The range of ``target`` if ``image`` was scaled with it."""
    return (np.nan, np.nan) if target.range is None or np.isnan(image.extent[0]) else target.range


def _resize(item: Item, decoded: Decoded, content: bytes, target: Target) -> _Image:
    """``decoded`` and ``content`` are those of ``item``, or of what it is a part of.

    Raises ``Refused`` or ``MemoryError``.
    """
    image = decoded.image
    if item.box:
        image, content = crop(image, item.box), part_content(content, item.box)
    if target.stored == "array":
        image = square(image, target)
        data, sums = image.tobytes(), _NO_SUMS
    else:
        image = short_side(image, target) if target.fit == "crop" else square(image, target)
        data, sums = _jpeg(image), _channel_sums(np.asarray(image)[None])
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX, reducing_gap=1.0)  # whole factors first: faster
    thumb = thumb if thumb.mode == "RGB" else thumb.convert("RGB")
    shape = image.height, image.width
    extent = _NO_EXTENT if decoded.extent is None else decoded.extent
    return _Image(item, content, data, image.mode == "L", shape, thumb.tobytes(), sums, extent, decoded.paged)


def content_of(data: str | bytes | np.ndarray) -> bytes:
    """16 bytes that name an image's file, or its pixels, whatever the file is called and wherever it lies.

    Unlike a digest of what is stored, they do not depend on how it is decoded. Raises ``Refused`` if the file is gone.
    """
    if isinstance(data, np.ndarray):
        found = hashlib.sha256(str(data.shape).encode() + np.ascontiguousarray(data).tobytes())
    elif isinstance(data, bytes):
        found = hashlib.sha256(data)
    else:
        try:
            with open(data, "rb") as file:
                found = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise Refused(f"cannot be read: {error.strerror}") from None
    return found.digest()[:CONTENT]


def part_content(content: bytes, box: Box) -> bytes:
    """What names the part in ``box`` of the image that ``content`` names."""
    return hashlib.sha256(content + repr(tuple(box)).encode()).digest()[:CONTENT]


def _refusal(item: Item, error: Refused | MemoryError) -> Finding:
    """A finding that is only ``ignored`` if neither the name nor the content of ``item`` claims to be an image."""
    reason = str(error) if isinstance(error, Refused) else TOO_LARGE
    claims = item.is_declared_image or os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES
    return Finding(item.name, "rejected" if claims or reason not in (UNKNOWN, EMPTY) else "ignored", reason)


def to_color(pixels: bytes) -> bytes:
    """Each gray value three times: as red, green and blue."""
    return np.repeat(np.frombuffer(pixels, np.uint8), 3).tobytes()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


_NO_SUMS = np.empty((2, 0, 3), np.int64)
_NO_EXTENT = np.full(4, np.nan)


def _channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Sums of the values and of their squares per channel, (2,N,3) int64, exact.

    ``pixels`` is (N,height,width) or (N,height,width,channels) uint8. One channel's sums are in all three columns.
    """
    count, height, width = pixels.shape[:3]
    channels = pixels.shape[3] if pixels.ndim == 4 else 1
    sums = np.empty((2, count, 3), np.int64)
    for start in range(0, count, BLOCK):
        part = slice(start, start + BLOCK)
        wide = pixels[part].reshape(-1, height, width * channels).astype(np.uint16)
        # Columns come first because the sum along the height is fast; uint16 holds it up to a height of 257.
        columns = wide.sum(axis=1, dtype=np.uint16 if 255 * height < 2**16 else np.uint32)
        sums[0, part] = columns.reshape(-1, width, channels).sum(axis=1, dtype=np.int64)
        wide *= wide  # 255 * 255 fits into uint16
        columns = wide.sum(axis=1, dtype=np.uint32)
        sums[1, part] = columns.reshape(-1, width, channels).sum(axis=1, dtype=np.int64)
    return sums
