"""Some images of a source, decoded together: their bytes for the store, and all that is known of them, on disk.

Runs in worker processes: imports nothing that is slow.
"""

import hashlib
import io
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scan_core.data.decode import EMPTY, TOO_LARGE, UNKNOWN, Refused, Target, open_image, short_side, square
from scan_core.data.duplicates import THUMB, gray_of, perceptual_hash
from scan_core.data.sources import Finding, Item, Split

JPEG_QUALITY = 90
BLOCK = 32  # images whose sums are taken together
ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".ico", ".heic", ".heif", ".hif",
}  # fmt: skip


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
    digests: np.ndarray  # (n,32) uint8: SHA-256 of the stored image, of the array store in colour
    hashes: np.ndarray  # (n,) uint64: perceptual
    sums: np.ndarray  # (n,3) int64: of the values, by channel
    squares: np.ndarray  # (n,3) int64


def save_chunk(chunk: Chunk, thumbs: np.ndarray, file: Path) -> None:
    """Writes ``file`` (.npz), whole or not at all. ``thumbs`` is (n,16,16,3) uint8."""
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


def load_thumbs(file: Path) -> np.ndarray:
    """(n,16,16,3) uint8, of the chunk in ``file``."""
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
    stored: list[bytes] = []
    thumbs: list[bytes] = []
    gray: list[bool] = []
    shapes: list[tuple[int, int]] = []
    sums: list[tuple[np.ndarray, np.ndarray]] = []  # of the jpeg store, whose pixels are not kept
    findings = list(findings)
    for item in items:
        try:
            image = open_image(item.data, target)
            image = square(image, target) if target.stored == "array" else short_side(image, target)
            data = image.tobytes() if target.stored == "array" else _jpeg(image)
            small = image.resize((THUMB, THUMB), Image.Resampling.BOX, reducing_gap=1.0)  # whole shrinkages are quicker
            thumbs.append((small if small.mode == "RGB" else small.convert("RGB")).tobytes())
        except Refused as refused:
            reason = str(refused)
            named = item.is_declared_image or os.path.splitext(item.name)[1].lower() in ENDINGS
            other = reason in (UNKNOWN, EMPTY) and not named
            findings.append(Finding(item.name, "ignored" if other else "rejected", reason))
            continue
        except MemoryError:
            findings.append(Finding(item.name, "rejected", TOO_LARGE))
            continue
        taken.append(item)
        stored.append(data)
        gray.append(image.mode == "L")
        shapes.append((image.height, image.width))
        if target.stored == "jpeg":
            sums.append(_sums(np.asarray(image)[None]))

    if target.stored == "array":
        colour = [to_colour(data) if is_gray else data for data, is_gray in zip(stored, gray, strict=True)]
        digests = [_sha256(data) for data in colour]
        stored = stored if all(gray) else colour
        joined = b"".join(stored)
        pixels = np.frombuffer(joined, np.uint8)
        total, squares = _sums(pixels.reshape(len(stored), target.size, target.size, 1 if all(gray) else 3))
    else:
        digests, joined = [_sha256(data) for data in stored], b"".join(stored)
        total, squares = (np.array([each[part][0] for each in sums], np.int64).reshape(-1, 3) for part in (0, 1))
    pictures = np.frombuffer(b"".join(thumbs), np.uint8).reshape(-1, THUMB, THUMB, 3)
    file = folder / f"{number:06d}.bin"
    file.write_bytes(joined)
    chunk = Chunk(
        names=[item.name for item in taken],
        labels=[item.label for item in taken],
        splits=[item.split for item in taken],
        findings=findings,
        gray=np.array(gray, bool),
        ends=np.cumsum([len(data) for data in stored], dtype=np.int64),
        shapes=np.array(shapes, np.int32).reshape(-1, 2),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
        hashes=perceptual_hash(gray_of(pictures)),
        sums=total,
        squares=squares,
    )
    save_chunk(chunk, pictures, file.with_suffix(".npz"))
    return len(taken), len(findings)


def to_colour(data: bytes) -> bytes:
    """Grey values as red, green and blue."""
    return np.repeat(np.frombuffer(data, np.uint8), 3).tobytes()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sums(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sums of squares by channel, (n,3) int64 each, exact; of pixels (n,height,width[,1 or 3]) uint8."""
    count, height, width = pixels.shape[:3]
    channels = pixels.shape[3] if pixels.ndim == 4 else 1
    sums, squares = np.zeros((count, 3), np.int64), np.zeros((count, 3), np.int64)
    for start in range(0, count, BLOCK):  # which stays in the processor's cache
        part = slice(start, start + BLOCK)
        wide = pixels[part].reshape(-1, height, width * channels).astype(np.uint16)
        # First along what lies far apart, in as few bits as hold the sum of a column.
        sums[part] = _by_channel(wide.sum(axis=1, dtype=np.uint16 if 255 * height < 2**16 else np.uint32), channels)
        wide *= wide  # 255 * 255 still fits
        squares[part] = _by_channel(wide.sum(axis=1, dtype=np.uint32), channels)
    return sums, squares


def _by_channel(columns: np.ndarray, channels: int) -> np.ndarray:
    """(n,width*channels) to (n,channels)."""
    total: np.ndarray = columns.reshape(len(columns), columns.shape[1] // channels, channels).sum(1, dtype=np.int64)
    return total
