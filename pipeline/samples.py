"""The picture of the clusters. Byte-stable: no time, no random ids."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from pipeline.charts import MAX_CLUSTERS_DRAWN, short_name

EACH = 12  # images of a cluster
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
    wall = _wall([pixels_of(rows) for rows in best.values()])
    width, height = EACH * 0.58, len(shown) * 0.58  # inches
    figure = plt.figure(figsize=(width + 1.9, height))
    axis = figure.add_axes((1.8 / (width + 1.9), 0, width / (width + 1.9), 1))
    axis.imshow(wall, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axis.axis("off")
    for row, cluster in enumerate(shown):
        text = f"cluster {cluster}\n{sizes[cluster]:,} images"
        if cluster in names:
            text = f"class {short_name(names[cluster])}\ncluster {cluster}, {sizes[cluster]:,} images"
        middle = 1 - (row + 0.5) / len(shown)
        axis.text(-0.015, middle, text, transform=axis.transAxes, ha="right", va="center", fontsize=8)
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
