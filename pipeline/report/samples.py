"""The pictures of clusters and of neighbors as PNG, byte-stable."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report.drawing import MAX_CLUSTERS_DRAWN, any_script, short_name
from scan_core.evaluation.scores import Prediction

COLUMNS = 12  # images in a row
SHOWN = 8  # images whose neighbors are drawn
INCHES = 0.58  # height of a row
PIXELS = 64  # largest side of a drawn image


def draw_samples(
    path: Path,
    pixels_of: Callable[[np.ndarray], np.ndarray],
    prediction: Prediction,
    names: dict[int, str],
    numbers: Sequence[int],
) -> None:
    """A PNG with one row per cluster: its most confident images, from left to right.

    ``pixels_of`` maps (n,) positions in the ``prediction`` to (n,height,width,channels) uint8. ``names`` are the
    classes matched to clusters, ``numbers`` (C,) those of the groups that clusters are shown as.
    """
    sizes = np.bincount(prediction.cluster)
    shown = [int(cluster) for cluster in np.argsort(-sizes, kind="stable")[:MAX_CLUSTERS_DRAWN] if sizes[cluster]]
    if names:
        shown.sort(key=lambda cluster: (cluster not in names, names.get(cluster, ""), cluster))
    best = {}
    for cluster in shown:
        members = np.flatnonzero(prediction.cluster == cluster)
        best[cluster] = members[np.argsort(-prediction.confidence[members], kind="stable")][:COLUMNS]
    figure, axis = _figure(_wall([pixels_of(rows) for rows in best.values()]), len(shown), margin=1.8)
    for row, cluster in enumerate(shown):
        text = f"group {numbers[cluster]}\n{sizes[cluster]:,} images"
        if cluster in names:
            text = f"class {short_name(names[cluster])}\ngroup {numbers[cluster]}, {sizes[cluster]:,} images"
        middle = 1 - (row + 0.5) / len(shown)
        axis.text(-0.015, middle, text, transform=axis.transAxes, ha="right", va="center", fontsize=8)
    _save(figure, path)


def draw_neighbors(path: Path, pixels_of: Callable[[np.ndarray], np.ndarray], nearest: np.ndarray) -> None:
    """A PNG with one row per image: the image, a gap, then its nearest neighbors, the most similar first.

    ``pixels_of`` maps (n,) positions in ``nearest`` (N,K) to (n,height,width,channels) uint8. The images are spaced
    evenly over the split, which is a random sample, because rows are ordered by content hash.
    """
    rows = np.linspace(0, len(nearest) - 1, min(SHOWN, len(nearest))).astype(np.int64)
    shown = np.concatenate([rows[:, None], nearest[rows, : COLUMNS - 1]], axis=1)  # at most (SHOWN,COLUMNS)
    wall = _wall([pixels_of(row) for row in shown])
    column = wall.shape[1] // COLUMNS  # the width of an image and of the gap beside it
    gap = np.full_like(wall[:, : column // 2], 255)
    figure, _ = _figure(np.concatenate([wall[:, :column], gap, wall[:, column:]], axis=1), len(shown), margin=0)
    _save(figure, path)


def _figure(wall: np.ndarray, rows: int, margin: float) -> tuple[Figure, Axes]:
    """A figure of ``wall`` alone, with ``margin`` inches on the left."""
    height = rows * INCHES
    width = height * wall.shape[1] / wall.shape[0] + margin
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((margin / width, 0, 1 - margin / width, 1))
    axis.imshow(wall, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axis.axis("off")
    return figure, axis


def _save(figure: Figure, path: Path) -> None:
    with any_script():
        figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _wall(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of up to 12 (n,height,width,channels) uint8 images on white, as one image, because many draw slowly."""
    side = min(rows[0].shape[1], PIXELS)
    gap, channels = max(1, side // 16), rows[0].shape[3]
    wall = np.full((len(rows) * (side + gap), COLUMNS * (side + gap), channels), 255, np.uint8)
    for number, pictures in enumerate(rows):
        top = number * (side + gap)
        for column, picture in enumerate(pictures):
            left = column * (side + gap)
            small = Image.fromarray(picture.squeeze()).resize((side, side), Image.Resampling.BOX)
            wall[top : top + side, left : left + side] = np.asarray(small).reshape(side, side, channels)
    return wall.squeeze()
