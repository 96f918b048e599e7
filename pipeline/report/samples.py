"""The pictures of clusters and of neighbours. Byte-stable: no time, no random ids."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report.charts import MAX_CLUSTERS_DRAWN, short_name

EACH = 12  # images in a row
SHOWN = 8  # images with their neighbours
INCHES = 0.58  # a side
PIXELS = 64  # a side, at most


def draw_samples(
    path: Path, pixels_of: Callable[[np.ndarray], np.ndarray], probabilities: np.ndarray, names: dict[int, str]
) -> None:
    """A PNG with one row a cluster: its most confident images, from left to right.

    ``pixels_of`` gives (n,height,width,channels) uint8 for (n,) rows of ``probabilities`` (N,C).
    """
    clusters = probabilities.argmax(axis=1)
    sizes = np.bincount(clusters, minlength=probabilities.shape[1])
    shown = [int(cluster) for cluster in np.argsort(-sizes, kind="stable")[:MAX_CLUSTERS_DRAWN] if sizes[cluster]]
    if names:
        shown.sort(key=lambda cluster: (cluster not in names, names.get(cluster, ""), cluster))
    best = {}
    for cluster in shown:
        members = np.flatnonzero(clusters == cluster)
        best[cluster] = members[np.argsort(-probabilities[members, cluster], kind="stable")][:EACH]
    figure, axis = _figure(_wall([pixels_of(rows) for rows in best.values()]), len(shown), margin=1.8)
    for row, cluster in enumerate(shown):
        text = f"cluster {cluster}\n{sizes[cluster]:,} images"
        if cluster in names:
            text = f"class {short_name(names[cluster])}\ncluster {cluster}, {sizes[cluster]:,} images"
        middle = 1 - (row + 0.5) / len(shown)
        axis.text(-0.015, middle, text, transform=axis.transAxes, ha="right", va="center", fontsize=8)
    _save(figure, path)


def draw_neighbors(path: Path, pixels_of: Callable[[np.ndarray], np.ndarray], nearest: np.ndarray) -> None:
    """A PNG with one row an image: itself, apart, then its nearest neighbours, the most similar first.

    ``pixels_of`` is as above; ``nearest`` (N,K) int64 are each row's neighbours. The images are spaced evenly: rows
    are in no order that means anything.
    """
    rows = np.linspace(0, len(nearest) - 1, min(SHOWN, len(nearest))).astype(np.int64)
    shown = np.concatenate([rows[:, None], nearest[rows, : EACH - 1]], axis=1)  # (SHOWN,EACH) or less
    wall = _wall([pixels_of(row) for row in shown])
    column = wall.shape[1] // EACH  # an image and the gap
    apart = np.full_like(wall[:, : column // 2], 255)
    figure, _ = _figure(np.concatenate([wall[:, :column], apart, wall[:, column:]], axis=1), len(shown), margin=0)
    _save(figure, path)


def _figure(wall: np.ndarray, rows: int, margin: float) -> tuple[Figure, Axes]:
    """``wall`` and nothing else, with ``margin`` inches at its left."""
    height = rows * INCHES
    width = height * wall.shape[1] / wall.shape[0] + margin
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((margin / width, 0, 1 - margin / width, 1))
    axis.imshow(wall, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axis.axis("off")
    return figure, axis


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _wall(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of up to 12 (n,height,width,channels) uint8 images on white, as one image: one axis is drawn quickly."""
    side = min(rows[0].shape[1], PIXELS)
    gap, channels = max(1, side // 16), rows[0].shape[3]
    wall = np.full((len(rows) * (side + gap), EACH * (side + gap), channels), 255, np.uint8)
    for number, pictures in enumerate(rows):
        top = number * (side + gap)
        for column, picture in enumerate(pictures):
            left = column * (side + gap)
            small = Image.fromarray(picture.squeeze()).resize((side, side), Image.Resampling.BOX)
            wall[top : top + side, left : left + side] = np.asarray(small).reshape(side, side, channels)
    return wall.squeeze()
