"""What a source of images is.

A source yields its images one by one in an order of its own, and a finding for each file that it does not take.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "val", "extra"]
IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".ico", ".heic", ".heif", ".hif",
}  # fmt: skip
LFS = b"version https://git-lfs"  # the text that Git LFS puts in a file's place until it is fetched begins so
# Also those that turn the direction of what follows them.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Box(NamedTuple):
    """A rectangle in an image that is upright as its EXIF tag says, in pixels or in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float
    relative: bool = False  # shares, not pixels


class Item(NamedTuple):
    """One image, or one part of an image, that has not been decoded yet."""

    name: str  # the source's own: a path inside the folder or archive, or set/row; of a part see ``part_name``
    data: str | bytes | np.ndarray  # a file's path, an encoded image, or (height,width[,channels]) uint8 pixels
    label: str | None = None
    split: Split | None = None  # the source's own split; extra: beyond what is clustered
    is_declared_image: bool = False  # the source says that this is an image (a table's row), whatever the name ends in
    box: Box | None = None  # the part of the image that is meant; None: all of it


class Finding(NamedTuple):
    """Something in the source that did not become an image of the store, or that equals another image, and why."""

    name: str
    kind: Literal["rejected", "ignored", "duplicate", "near_duplicate"]  # data.max_rejected limits "rejected" alone
    reason: str


@dataclass(frozen=True)
class Source:
    """A source that has been checked but not read."""

    read: Callable[[], Iterator[Item | Finding]]  # each call yields the same things in the same order
    classes: list[str] | None = None  # the set's own order of its classes; None: sorted names
    total: int | None = None  # images, if the count is known before reading
    # Labels and splits by the names of all images, if an image alone cannot tell its own.
    layout: Callable[[Sequence[str]], tuple[list[str | None], list[Split | None]]] | None = None
    # What a person should know of how it is read, and of how many images that is so; complete once it has been read.
    notes: dict[str, int] = field(default_factory=dict)


def part_name(image: str, number: int) -> str:
    """The name of the part of ``image`` in its box ``number``, counted from 1."""
    return f"{image}#{number}"


def image_name(part: str) -> str:
    """The image that ``part_name`` named a part of."""
    return part.rpartition("#")[0]


def printable(name: str) -> str:
    """A name as text that any file can hold and any terminal can show.

    A byte that is not UTF-8 is written as ``\\udcNN``, a control character as ``\\n`` or ``\\x1b``.
    """
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def class_order(names: set[str]) -> list[str]:
    """``names`` sorted: by value if all are numbers, so that 10 comes after 9, else as text."""
    try:
        values = {name: Decimal(name) for name in names}
    except InvalidOperation:
        return sorted(names)
    if not all(value.is_finite() for value in values.values()):
        return sorted(names)
    return sorted(names, key=lambda name: (values[name], name))
