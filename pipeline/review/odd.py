"""Images that a person may want to look at apart from their groups: dark or blurred ones."""

import numpy as np

from pipeline.review.images import StoredImages

MOST = 5_000  # images that are looked at; others are left out
SIDE, BATCH = 96, 64  # pixels, images at a time
DARK, BRIGHTEST = 0.12, 0.4  # mean luma, and that which 99 of 100 pixels do not reach
BLURRED = 0.1  # of the median sharpness
LISTED = 200
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def odd_images(images: StoredImages) -> dict[str, list[int]]:
    """``dark`` and ``blurred`` images, the most so first."""
    measured = [
        measure(images.squares(start, min(start + BATCH, MOST), SIDE)) for start in range(0, _count(images), BATCH)
    ]
    luma, brightest, sharpness = (np.concatenate(each) for each in zip(*measured, strict=True))
    dark = (luma < DARK) & (brightest < BRIGHTEST)
    blurred = (sharpness < BLURRED * np.median(sharpness)) & ~dark
    return {
        "dark": _first(luma, dark),
        "blurred": _first(sharpness, blurred),
    }


def measure(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B,side,side,channels) uint8 to mean luma, its 99th percentile, and sharpness: (B,) float32 each.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al. 2000) over that of the luma: fog is no blur.
    """
    scaled = pixels.astype(np.float32) / 255
    gray = scaled @ LUMA if pixels.shape[3] == 3 else scaled[..., 0]
    inside = gray[:, 1:-1, 1:-1]
    laplacian = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:] - 4 * inside
    contrast = gray.var(axis=(1, 2)).clip(min=1e-6)
    flat = gray.reshape(len(gray), -1)
    return flat.mean(axis=1), np.percentile(flat, 99, axis=1).astype(np.float32), laplacian.var(axis=(1, 2)) / contrast


def _count(images: StoredImages) -> int:
    return min(len(images), MOST)


def _first(values: np.ndarray, chosen: np.ndarray) -> list[int]:
    rows = np.flatnonzero(chosen)
    found: list[int] = rows[np.argsort(values[rows], kind="stable")[:LISTED]].tolist()
    return found
