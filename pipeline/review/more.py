"""What the page has folded away at its end: k-means beside the result, scores, charts, settings."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline import artifacts
from pipeline.params import Params
from pipeline.report.charts import draw_charts
from pipeline.report.scores import score_rows, settings_text
from pipeline.report.tables import PLOT_COLUMNS, reported_split
from pipeline.review.images import StoredImages
from scan_core.errors import ScanError

COMPARED = 5_000  # images at most that k-means divides
STARTS = 3
PLOTS = (*PLOT_COLUMNS, "pretext", "cluster", "selflabel")


def more(images: StoredImages, params: Params, numbers: tuple[int, ...]) -> dict[str, Any]:
    """``numbers`` (C,) are those of the groups that the model's clusters are."""
    at = images.at
    metrics = artifacts.load_json(at(artifacts.METRICS))
    plots: dict[str, list[dict[str, Any]]] = {
        name: list(artifacts.load_csv(at(artifacts.PLOTS / f"{name}.csv"))) for name in PLOTS
    }
    plots["sizes"] = [{name: int(value) for name, value in row.items()} for row in plots["sizes"]]
    reported = metrics[reported_split(params.data.protocol)]
    kept = artifacts.load_json(artifacts.MODELS / "selflabel.json")
    verdict = artifacts.load_json(at(artifacts.VERDICT))
    try:
        return {
            "kmeans": {
                "agreement": kmeans_agreement(images.embeddings[:COMPARED], images.clusters[:COMPARED]),
                "acc": reported["kmeans_embeddings"].get("acc"), "acc_result": reported["selflabel"].get("acc"),
            },
            "scores": score_rows(params, images.stats, metrics, kept, verdict, plots, numbers),
            "charts": draw_charts(
                plots, _matched(images), artifacts.load_json(artifacts.GROUPS), params.pretext.method, numbers
            ),
            "settings": settings_text(params),
        }  # fmt: skip
    except KeyError as error:
        raise ScanError(
            f"{artifacts.PLOTS} is of another version of scan (no column {error}); run scan run again"
        ) from None


def kmeans_agreement(embeddings: np.ndarray, clusters: np.ndarray) -> float:
    """The share of images on which k-means agrees, once its clusters are renamed."""
    from scan_core.clustering.spectral import kmeans_clusters

    number = int(clusters.max()) + 1
    if number < 2:
        return 1.0
    labels, _ = kmeans_clusters(embeddings, min(number, len(embeddings)), 0, STARTS)
    table = np.zeros((number, number), np.int64)
    np.add.at(table, (labels, clusters), 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(clusters))


def _matched(images: StoredImages) -> dict[int, str]:
    """Cluster → class, on the images that are reported on: as evaluate has matched them for the plots."""
    from scan_core.evaluation.metrics import match_clusters

    labels, names = images.classes
    known = (labels >= 0) & (np.array(images.splits) == ("val" if "val" in images.splits else "train"))
    if not known.any():
        return {}
    labels, clusters = labels[known], images.clusters[known]
    pairs = set(zip(clusters.tolist(), labels.tolist(), strict=True))
    matched = match_clusters(labels, clusters, artifacts.load_number())
    return {cluster: names[label] for cluster, label in matched.items() if (cluster, label) in pairs}
