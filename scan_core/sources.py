"""Where images come from: each source yields arrays, the source's own names and, where it has them, labels."""

from dataclasses import dataclass

import numpy as np

from scan_core.settings import Data


@dataclass(frozen=True)
class Source:
    """Images of one source, in its own order."""

    pixels: np.ndarray  # (N,height,width,channels) uint8
    names: list[str]  # (N,) where each came from
    labels: np.ndarray  # (N,) int64, -1 where unknown
    classes: list[str]


def read_source(settings: Data) -> Source:
    """Images of ``settings.name`` at ``settings.size`` pixels."""
    return {"digits": _digits}[settings.name](settings.size)


def _digits(size: int) -> Source:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images, 8x8, 17 grey levels, ten classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (N,8,8)
    resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in gray]
    return Source(
        pixels=np.stack(resized)[..., None],  # (N,size,size,1)
        names=[f"digits/{row:04d}" for row in range(len(gray))],
        labels=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
    )
