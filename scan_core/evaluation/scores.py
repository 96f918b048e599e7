"""The scores of one split, as plain numbers. A score that needs labels is absent if there are none."""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scan_core.evaluation.metrics import (
    accuracy,
    classes_of_clusters,
    clustering_metrics,
    match_clusters,
    neighbor_purity,
    rank_clusters,
    top_accuracy,
)
from scan_core.evaluation.probes import probe_scores
from scan_core.evaluation.quality import quality_scores

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

TOP = 5  # clusters per image that are kept
PURITY_AT = (1, 5, 10, 20, 50)  # neighbors
COVERAGES = range(5, 101, 5)  # percent of the images
MAX_FIT_ROWS = 20_000  # k-means is fitted on the first rows: a sample, because rows are ordered by content hash


@dataclass(frozen=True)
class Prediction:
    """The most probable clusters of N images, the most probable first: at most ``TOP`` of the C clusters."""

    clusters: np.ndarray  # (N,TOP) int64
    probabilities: np.ndarray  # (N,TOP) float32

    @classmethod
    def of(cls, probabilities: np.ndarray) -> "Prediction":
        """From all (N,C) probabilities."""
        ranked = rank_clusters(probabilities, TOP)
        return cls(ranked, np.take_along_axis(probabilities, ranked, axis=1))

    @property
    def cluster(self) -> np.ndarray:
        """(N,) the most probable cluster."""
        return self.clusters[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """(N,) the probability of the most probable cluster."""
        return self.probabilities[:, 0]


@dataclass(frozen=True)
class SplitData:
    """What is known of a split's N images after training."""

    rows: np.ndarray  # (N,) int64 rows of the image store
    labels: np.ndarray  # (N,) int64; -1: unknown
    pixels: np.ndarray  # (N,P) float32 in [0,1], for a baseline; P is 0 without labels
    embeddings: np.ndarray  # (N,D) float32 of length 1
    neighbors: np.ndarray  # (N,K) int64 positions in the split, the nearest first
    predictions: dict[str, Prediction]  # of the models after "cluster" and after "selflabel"
    heads: np.ndarray | None  # (H,N) the cluster of each image under each head, if that was stored

    @property
    def final(self) -> Prediction:
        """The prediction of the model that is handed on."""
        return self.predictions["selflabel"]


def score_splits(
    splits: dict[str, SplitData],
    num_clusters: int,
    threshold: float,
    val_neighbors: int,
    kmeans_runs: int,
    probes: bool,
) -> dict[str, dict[str, Any]]:
    """All scores of ``train`` and ``val`` by split and step: what ``metrics.json`` holds.

    ``threshold`` is the probability above which an image is confident, ``val_neighbors`` how many neighbors count for
    the neighbor agreement. ``probes`` adds ``uses_labels`` to val. Without labels there is nothing to compare with
    k-means, which is left out.
    """
    train, val = splits["train"], splits["val"]
    labeled = any((data.labels >= 0).any() for data in splits.values())
    features = (train.pixels, train.embeddings) if labeled else ()
    baselines = [fit_kmeans(each, num_clusters, kmeans_runs) for each in features]
    metrics = {
        name: score_split(data, baselines, num_clusters, threshold, val_neighbors) for name, data in splits.items()
    }
    if probes:
        fit = ~np.isin(train.rows, val.rows)  # under the protocol "all", val is a part of train
        scores = probe_scores(train.embeddings[fit], train.labels[fit], val.embeddings, val.labels)
        metrics["val"] |= {"uses_labels": scores} if scores else {}
    return metrics


def score_split(
    data: SplitData, baselines: list[list["KMeans"]], num_clusters: int, threshold: float, val_neighbors: int
) -> dict[str, dict[str, float]]:
    """The scores of one split by step; ``baselines``: k-means fits on train's pixels and on its embeddings, or none."""
    labels, neighbors = data.labels, data.neighbors[:, :val_neighbors]
    kmeans = [
        kmeans_scores(fits, features, labels, num_clusters)
        for fits, features in zip(baselines, (data.pixels, data.embeddings), strict=False)
    ] or [{}, {}]
    return {
        "kmeans_pixels": kmeans[0],
        "kmeans_embeddings": kmeans[1],
        **{name: model_scores(labels, each, num_clusters, threshold) for name, each in data.predictions.items()},
        "neighbors": purity_scores(labels, data.neighbors),
        "quality": quality_scores(data.final.cluster, data.embeddings, neighbors, data.heads),
    }


def model_scores(labels: np.ndarray, prediction: Prediction, num_clusters: int, threshold: float) -> dict[str, float]:
    """Scores of a network's clusters; ``labels`` is (N,) with -1 for unknown."""
    scores = {
        "clusters_used": len(np.unique(prediction.cluster)),
        "confident_share": float((prediction.confidence > threshold).mean()),
    }
    known = labels >= 0
    if known.any():
        scores |= clustering_metrics(labels[known], prediction.cluster[known], num_clusters)
        if num_clusters >= TOP:
            scores["top5"] = top_accuracy(labels[known], prediction.clusters[known], num_clusters)
    return scores


def fit_kmeans(features: np.ndarray, num_clusters: int, runs: int) -> list["KMeans"]:
    """``runs`` fits of k-means on (a sample of) ``features`` (N,D), each from one k-means++ initialization."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    features = features[: max(MAX_FIT_ROWS, 50 * num_clusters)]
    # The sum of two threads' results does not depend on their order. With more threads the last bits would.
    with warnings.catch_warnings(), threadpool_limits(2, "openmp"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters: see clusters_used
        return [
            KMeans(min(num_clusters, len(features)), n_init=1, random_state=run).fit(features) for run in range(runs)
        ]  # fmt: skip


def kmeans_scores(
    fits: list["KMeans"], features: np.ndarray, labels: np.ndarray, num_clusters: int
) -> dict[str, float]:  # fmt: skip
    """Mean and sample standard deviation (``_std``) over ``fits`` of the scores on ``features`` (N,D)."""
    runs: list[dict[str, float]] = []
    known = labels >= 0
    for fit in fits:
        assigned = fit.predict(features)
        runs.append({"clusters_used": len(np.unique(assigned))})
        if known.any():
            runs[-1] |= clustering_metrics(labels[known], assigned[known], num_clusters)
    values = {name: [run[name] for run in runs] for name in runs[0]}
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return means | {f"{name}_std": float(np.std(each, ddof=1)) for name, each in values.items()}


def purity_scores(labels: np.ndarray, neighbors: np.ndarray) -> dict[str, float]:
    """``purity_K`` for each K of ``PURITY_AT`` up to the number of mined neighbors.

    ``labels`` is (N,) with -1 for unknown, ``neighbors`` (N,K) positions. A purity is absent if no pair of neighbors
    has two labels.
    """
    scores = {f"purity_{k}": neighbor_purity(labels, neighbors, k) for k in PURITY_AT if k <= neighbors.shape[1]}
    return {name: purity for name, purity in scores.items() if not math.isnan(purity)}


def accuracy_by_epoch(labels: np.ndarray, assignments: np.ndarray, num_clusters: int) -> list[float]:
    """ACC of each row of the stored ``assignments`` (epochs,N); empty without labels."""
    known = labels >= 0
    if not known.any():
        return []
    return [accuracy(labels[known], assigned[known], num_clusters) for assigned in assignments]


def accuracy_at_coverage(labels: np.ndarray, prediction: Prediction, num_clusters: int) -> list[float]:
    """Selective accuracy: ACC on the most confident 5, 10, … 100 % of the images (``COVERAGES``).

    Geifman and El-Yaniv 2017. ``labels`` is (N,) with -1 for unknown. Clusters are matched to classes once, on all
    labeled images, so that the last ACC is that of the whole split. Empty without labels.
    """
    known = labels >= 0
    if not known.any():
        return []
    labels, assigned = labels[known], prediction.cluster[known]
    correct = labels == classes_of_clusters(labels, assigned, num_clusters)[assigned]
    correct = correct[np.argsort(-prediction.confidence[known], kind="stable")]  # the most confident first
    return [float(correct[: -(-percent * len(correct) // 100)].mean()) for percent in COVERAGES]


def predicted_classes(labels: np.ndarray, prediction: Prediction, num_clusters: int) -> dict[int, int]:
    """Cluster → class, matched one to one on the images whose label is known; empty without labels.

    A cluster that holds no image of the class that the matching leaves for it gets no class.
    """
    known = labels >= 0
    if not known.any():
        return {}
    labels, assigned = labels[known], prediction.cluster[known]
    pairs = set(zip(assigned.tolist(), labels.tolist(), strict=True))
    matched = match_clusters(labels, assigned, num_clusters)
    return {cluster: label for cluster, label in matched.items() if (cluster, label) in pairs}
