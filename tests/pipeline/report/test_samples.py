"""The pictures of clusters and neighbors: which images, in which order, and how many."""

import numpy as np
import pytest
from PIL import Image

from pipeline.report import samples
from pipeline.report.drawing import MAX_CLUSTERS_DRAWN
from pipeline.report.samples import COLUMNS, PIXELS, SHOWN, draw_neighbors, draw_samples
from scan_core.evaluation.scores import Prediction


def noted_walls(monkeypatch):
    """The images that will be shown, before matplotlib draws them."""
    walls = []
    original = samples._wall
    monkeypatch.setattr(samples, "_wall", lambda rows: walls.append(original(rows)) or walls[-1])
    return walls


def drawn(monkeypatch, tmp_path, pixels, probabilities, names):
    """The image that is shown, and the rows' texts."""
    walls = noted_walls(monkeypatch)
    texts = []
    text = samples.plt.Axes.text

    def noted(axis, x, y, what, **how):
        texts.append((y, what))
        return text(axis, x, y, what, **how)

    monkeypatch.setattr(samples.plt.Axes, "text", noted)
    draw_samples(
        tmp_path / "clusters.png", lambda rows: pixels[rows], Prediction.of(probabilities), names, range(10, 60)
    )
    return walls[0], [what for _, what in sorted(texts, reverse=True)]


def test_each_row_has_its_cluster_s_most_confident_images_first(monkeypatch, tmp_path):
    pixels = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None] * 10, (8, 16, 16, 1))
    confidence = np.array([0.6, 0.9, 0.8, 0.7, 0.6, 0.9, 0.75, 0.8])
    probabilities = np.stack([1 - confidence, confidence], axis=1)
    probabilities[5:] = probabilities[5:, ::-1]
    wall, texts = drawn(monkeypatch, tmp_path, pixels, probabilities, {0: "cat"})
    assert wall.shape == (2 * 17, COLUMNS * 17)
    assert wall[8, 8::17].tolist() == [50, 70, 60, *[255] * (COLUMNS - 3)]  # the one that has a class comes first
    assert wall[17 + 8, 8::17].tolist() == [10, 20, 30, 0, 40, *[255] * (COLUMNS - 5)]
    assert wall[:, 16].tolist() == [255] * 34
    assert texts == ["class cat\ngroup 10, 3 images", "group 11\n5 images"]


@pytest.mark.parametrize(("side", "channels", "shown"), [(16, 1, 16), (200, 3, PIXELS)])
def test_large_images_are_made_smaller(monkeypatch, tmp_path, side, channels, shown):
    pixels = np.full((3, side, side, channels), 40, np.uint8)
    wall, _ = drawn(monkeypatch, tmp_path, pixels, np.eye(3), {})
    assert wall.shape[0] == 3 * (shown + shown // 16) and wall.ndim == (3 if channels == 3 else 2)
    assert (wall[:shown, :shown] == 40).all() and (wall[shown] == 255).all()


def test_no_more_clusters_are_shown_than_are_said(tmp_path):
    heights = []
    for clusters in (MAX_CLUSTERS_DRAWN, MAX_CLUSTERS_DRAWN + 9):
        picture = tmp_path / "clusters.png"
        prediction = Prediction.of(np.eye(clusters))
        draw_samples(picture, lambda rows: np.zeros((len(rows), 4, 4, 1), np.uint8), prediction, {}, range(1000))
        heights.append(Image.open(picture).height)
    assert heights[0] == heights[1]


def test_neighbors_are_right_of_their_image_the_most_similar_first(monkeypatch, tmp_path):
    count = 50
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 1))
    nearest = np.stack([np.random.default_rng(row).permutation(count)[:20] for row in range(count)])
    walls = noted_walls(monkeypatch)
    draw_neighbors(tmp_path / "neighbors.png", lambda rows: pixels[rows], nearest)
    rows = walls[0][8::17, 8::17]
    assert rows.shape == (SHOWN, COLUMNS)
    assert rows[0, 0] == 0 and rows[-1, 0] == count - 1
    assert (np.diff(rows[:, 0].astype(int)) >= 6).all()
    for row in rows:
        assert row[1:].tolist() == nearest[row[0], : COLUMNS - 1].tolist()


def test_a_gap_separates_an_image_from_its_neighbors(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(samples.plt.Axes, "imshow", lambda axis, wall, **how: shown.append(wall))
    draw_neighbors(
        tmp_path / "neighbors.png", lambda rows: np.zeros((len(rows), 32, 32, 3), np.uint8), np.array([[1], [0]])
    )
    white = (shown[0][:32] == 255).all(axis=(0, 2))
    assert np.flatnonzero(~white).tolist() == [*range(32), *range(51, 83)]  # two pixels of gap, and half a column
