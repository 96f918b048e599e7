"""Colors in sRGB, whatever profile a file has: phones write Display P3, scanners Adobe RGB, printers CMYK."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

SAME = 3  # levels of 255 by which a profile may differ from sRGB to be taken for it: there are many versions of sRGB
MARKER = b"ICC_PROFILE\0"  # of the segments of a JPEG
MODES = ("L", "RGB", "CMYK", "LAB")


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """``image``, of any mode, as L or RGB in sRGB. Without a profile that fits, colors are taken as sRGB's."""
    change = transform(profile, image.mode) if profile and image.mode in MODES else None
    if change is None:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    changed: Image.Image = change.apply(image)
    return changed.convert("L") if image.mode == "L" else changed


@lru_cache(64)
def transform(profile: bytes, mode: str) -> Any:
    """littlecms' transform from ``profile`` to sRGB. None if the profile is sRGB, damaged, or not one of ``mode``."""
    from PIL import ImageCms  # only few images need it

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        change = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode not in ("L", "RGB"):
            return change
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        probe = Image.fromarray(
            levels[None] if mode == "L" else np.stack(np.meshgrid(*[levels] * 3), -1).reshape(1, -1, 3)
        )
        difference = np.asarray(change.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
        return change if np.abs(difference).max() > SAME else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def jpeg_needs_transform(data: bytes, mode: str) -> bool:
    """Whether a JPEG has a profile other than sRGB, told without opening it; one in several parts counts as such."""
    at = data.find(MARKER)
    if at < 4:
        return False
    start, end = at + len(MARKER) + 2, at - 2 + int.from_bytes(data[at - 2 : at], "big")
    return data[start - 1] != 1 or transform(data[start:end], mode) is not None
