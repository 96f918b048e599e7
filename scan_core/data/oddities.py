"""Files that a decoder refuses for something beside the picture, and why it refuses others."""

from typing import IO

import simplejpeg
from PIL import Image

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NOT_THE_PICTURE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of PNG
BITS, COMPRESSION, SAMPLES, PLANES, FORMAT = 258, 259, 277, 284, 339  # tags of TIFF
FORMATS = {1: "unsigned", 2: "signed", 3: "float", 4: "undefined", 5: "complex", 6: "complex"}
BANDS = 4
SEPARATE = 2


def complete_jpeg(source: IO[bytes]) -> bytes | None:
    """A JPEG that lacks its end marker and nothing else, with it. None for any other file."""
    source.seek(0)
    if source.read(3) != JPEG_START:
        return None
    source.seek(0)
    data = source.read()
    if data.endswith(JPEG_END):
        return None
    data = data.rstrip(b"\xff") + JPEG_END
    try:
        color_space = simplejpeg.decode_jpeg_header(data)[2]
        simplejpeg.decode_jpeg(data, "CMYK" if color_space in ("CMYK", "YCCK") else "GRAY")  # raises if more is missing
    except ValueError:
        return None
    return data


def without_text(source: IO[bytes]) -> bytes | None:
    """A PNG without its texts and profile, which may be longer than a decoder takes. None if it has none."""
    source.seek(0)
    if source.read(8) != PNG_START:
        return None
    kept, dropped = [PNG_START], False
    while len(head := source.read(8)) == 8:
        body = source.read(int.from_bytes(head[:4], "big") + 4)  # with the checksum
        if head[4:] in NOT_THE_PICTURE:
            dropped = True
        else:
            kept += [head, body]
    return b"".join(kept) if dropped else None


def unread_planes(image: Image.Image) -> bool:
    """Whether ``image`` has more than 8 bits and its colors one after the other: Pillow makes other colors of it."""
    tags = getattr(image, "tag_v2", {})
    return image.mode in ("RGB", "RGBA", "CMYK") and tags.get(PLANES) == SEPARATE and max(tags.get(BITS, (8,))) > 8


def tiff_reason(source: IO[bytes]) -> str | None:
    """Why a TIFF is of a kind that is not read. None if it is no TIFF, or none whose tags can be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    source.seek(0)
    if source.read(4) not in TIFF_STARTS:
        return None
    source.seek(0)
    try:
        head = source.read(8)
        head += source.read(8) if head[2] == 43 or head[3] == 43 else b""  # BigTIFF
        tags = ImageFileDirectory_v2(head)
        source.seek(tags.next)
        tags.load(source)
        if not len(tags):
            raise ValueError
        bands, bits = int(tags.get(SAMPLES, 1)), max(tags.get(BITS, (1,)))
        kind = FORMATS.get(max(tags.get(FORMAT, (1,))), "unknown")
    except Exception:  # noqa: BLE001 (damaged tags)
        return "damaged: the tags of a TIFF cannot be read"
    if bands > BANDS:
        return f"{bands} bands; at most {BANDS} are read; save three of them as an image"
    about = (
        f"{bands} {'band' if bands == 1 else 'bands'} of {bits} bits ({kind}), compression {tags.get(COMPRESSION, 1)}"
    )
    return f"a TIFF that is not read: {about}"
