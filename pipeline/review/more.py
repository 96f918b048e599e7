"""What the page has folded away at its end: k-means beside the result, scores, charts, settings."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline import artifacts
from pipeline.params import PARAMS_FILE, Params
from pipeline.report.page import MEASURES, PLOT_COLUMNS, QUALITY, quality_cell, score_cell
from pipeline.review.images import StoredImages
from scan_core.errors import ScanError

COMPARED = 20_000  # images at most that k-means divides
STARTS = 5
PLOTS = (*PLOT_COLUMNS, "pretext", "cluster", "selflabel")


def more(images: StoredImages, clusters: np.ndarray, params: Params) -> dict[str, Any]:
    """``clusters`` (N,) are those of the model, without corrections."""
    metrics = artifacts.load_json(artifacts.METRICS)
    reported = metrics["val" if "val" in images.splits else "train"]
    return {
        "kmeans": {
            "agreement": kmeans_agreement(images.embeddings[:COMPARED], clusters[:COMPARED]),
            "acc": reported["kmeans_embeddings"].get("acc"), "acc_result": reported["selflabel"].get("acc"),
        },
        "scores": _scores(reported, metrics["val"]["quality"] | reported["quality"]),
        "charts": _charts(images, clusters, artifacts.load_json(artifacts.GROUPS), params.pretext.method),
        "settings": PARAMS_FILE.read_text(encoding="utf-8"),
    }  # fmt: skip


def kmeans_agreement(embeddings: np.ndarray, clusters: np.ndarray) -> float:
    """The share of images on which k-means agrees, once its clusters are renamed."""
    from scan_core.clustering.spectral import kmeans_clusters

    number = int(clusters.max()) + 1
    if number < 2:
        return 1.0
    labels, _ = kmeans_clusters(embeddings, number, 0, STARTS)
    table = np.zeros((number, number), np.int64)
    np.add.at(table, (labels, clusters), 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(clusters))


def _scores(reported: dict[str, Any], quality: dict[str, float]) -> list[list[str]]:
    of_result = reported["selflabel"]
    found = [[title, score_cell(of_result, name)] for name, title in MEASURES.items() if name in of_result]
    return found + [
        [title, quality_cell(quality[name], is_share)]
        for name, (title, _, is_share) in QUALITY.items()
        if name in quality
    ]


def _charts(images: StoredImages, clusters: np.ndarray, groups: dict[str, Any], method: str) -> list[dict[str, str]]:
    from pipeline.report.charts import draw_charts
    from scan_core.evaluation.metrics import match_clusters

    plots: dict[str, Any] = {name: artifacts.load_csv(artifacts.PLOTS / f"{name}.csv") for name in PLOTS}
    for name in PLOTS:
        if name != "confusion":  # whose classes may be called 9
            plots[name] = [_typed(row) for row in plots[name]]
    names = {}
    if images.labels:
        classes = sorted({*images.labels} - {""})
        labels = np.array([classes.index(each) if each else -1 for each in images.labels])
        known = labels >= 0
        pairs = set(zip(clusters[known].tolist(), labels[known].tolist(), strict=True))
        matched = match_clusters(labels[known], clusters[known], groups["number"])
        names = {cluster: classes[label] for cluster, label in matched.items() if (cluster, label) in pairs}
    try:
        return draw_charts(plots, names, groups, method)
    except KeyError as error:
        raise ScanError(
            f"{artifacts.PLOTS} is of another version of scan (no column {error}); run scan run again"
        ) from None


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """A row of a CSV file, whose numbers are numbers."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        try:
            found[name] = float(value) if "." in value or "e" in value else int(value)
        except ValueError:
            found[name] = value
    return found
