"""Figures of the ledger, as PNG files without time or host."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.tables import Experiment
from pipeline.report.drawing import BLUE, ORANGE


def draw_points(path: Path, experiment: Experiment, values: list[list[dict[str, float]]], preset: str) -> None:
    """Mean and standard deviation of ACC over seeds, one point per row, and the paper's points if it has any."""
    accuracy = 100 * np.array([[scores["acc"] for scores in seeds] for seeds in values])  # (rows,seeds)
    x = np.array([float(row.label) for row in experiment.rows])
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    spread = accuracy.std(axis=1, ddof=1) if accuracy.shape[1] > 1 else None
    axis.errorbar(x, accuracy.mean(axis=1), spread, fmt="o-", color=BLUE, capsize=3, label="here")
    heading, published = experiment.published(preset)
    points = [(value, float(number)) for value, number in zip(x, published, strict=True) if number]
    if points:
        axis.plot(*zip(*points, strict=True), "s--", color=ORANGE, label=heading)
        axis.legend()
    axis.set(xlabel=experiment.x_label, ylabel=experiment.y_label)
    _save(figure, path)


def draw_lines(path: Path, experiment: Experiment, curves: list[list[list[tuple[float, float]]]]) -> None:
    """One line per row: the mean over seeds in a band of the standard deviation. It ends where the shortest ends."""
    figure, axis = plt.subplots(figsize=(4.6, 3.1))
    for row, seeds in zip(experiment.rows, curves, strict=True):
        length = min(len(points) for points in seeds)
        x = [point[0] for point in seeds[0][:length]]
        y = 100 * np.array([[point[1] for point in points[:length]] for points in seeds])  # (seeds,length)
        mean, spread = y.mean(axis=0), y.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(length)
        axis.plot(x, mean, label=row.label)
        axis.fill_between(x, mean - spread, mean + spread, alpha=0.2, linewidth=0)
    axis.set(xlabel=experiment.x_label, ylabel=experiment.y_label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))  # epochs, neighbors
    # The legend is above the axes because no corner is free in every figure.
    axis.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, path)


def draw_quality(path: Path, points: dict[str, np.ndarray]) -> None:
    """One panel per measure, with its value and ACC of each run. ``points``: measure → (runs,2)."""
    panels = max(len(points), 1)
    figure, axes = plt.subplots(1, panels, figsize=(2.6 * panels, 2.7), squeeze=False, sharey=True)
    for axis, (label, pairs) in zip(axes[0], points.items(), strict=False):
        axis.plot(pairs[:, 0], 100 * pairs[:, 1], "o", color=BLUE, markersize=3, alpha=0.6)
        axis.set_xlabel(label, fontsize=8)
    axes[0, 0].set_ylabel("ACC, %")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
