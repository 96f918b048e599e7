"""Baselines and scores of one split, as plain numbers. What needs labels is absent where there are none."""

import math
import warnings
from collections.abc import Iterator

import numpy as np

from scan_core.evaluation.metrics import accuracy, clustering_metrics, match_clusters, neighbor_purity, top_accuracy

PURITY_AT = (1, 5, 10, 20, 50)
SUREST = range(5, 101, 5)  # percent of the items
FIT_ROWS = 20_000  # k-means is fitted on no more: rows are in the order of their content, so the first are a sample


def model_scores(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Scores of a network's clusters: ``labels`` (N,) with -1 where unknown, ``probabilities`` (N,C)."""
    clusters = probabilities.argmax(axis=1)
    count = probabilities.shape[1]
    scores = {
        "clusters_alive": len(np.unique(clusters)),
        "confident_share": float((probabilities.max(axis=1) > threshold).mean()),
    }
    known = labels >= 0
    if known.any():
        scores |= clustering_metrics(labels[known], clusters[known], count)
        if count >= 5:
            scores["top5"] = top_accuracy(labels[known], probabilities[known], 5)
    return scores


def kmeans_scores(
    train: np.ndarray, splits: dict[str, tuple[np.ndarray, np.ndarray]], clusters: int, runs: int
) -> dict[str, dict[str, float]]:
    """k-means fitted on (a sample of) ``train`` (N,D) with ``runs`` starts: mean and standard deviation by split.

    ``splits`` are name → (features (M,D), labels (M,) with -1 where unknown). One k-means++ start a run, so that the
    spread is that of a single run.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    train = train[: max(FIT_ROWS, 50 * clusters)]
    collected: dict[str, list[dict[str, float]]] = {name: [] for name in splits}
    for run in range(runs):
        # Two threads' sums are the same in either order; those of more are added as the threads come to their end.
        with warnings.catch_warnings(), threadpool_limits(2, "openmp"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters: seen in alive
            kmeans = KMeans(min(clusters, len(train)), n_init=1, random_state=run).fit(train)
        for name, (features, labels) in splits.items():
            assigned = kmeans.predict(features)
            scores: dict[str, float] = {"clusters_alive": len(np.unique(assigned))}
            known = labels >= 0
            if known.any():
                scores |= clustering_metrics(labels[known], assigned[known], clusters)
            collected[name].append(scores)
    return {name: _mean_and_std(each) for name, each in collected.items()}


def _mean_and_std(runs: list[dict[str, float]]) -> dict[str, float]:
    summary: dict[str, float] = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        summary[key] = float(np.mean(values))
        summary[f"{key}_std"] = float(np.std(values, ddof=1))
    return summary


def purity_scores(labels: np.ndarray, neighbors: np.ndarray) -> dict[str, float]:
    """``purity_K`` for K in 1, 5, 10, 20, 50 as far as K were mined and two labelled images are neighbours.

    ``labels`` is (N,) with -1 where unknown, ``neighbors`` (N,k) positions.
    """
    found = {f"purity_{k}": neighbor_purity(labels, neighbors, k) for k in PURITY_AT if k <= neighbors.shape[1]}
    return {name: purity for name, purity in found.items() if not math.isnan(purity)}


def accuracy_by_epoch(labels: np.ndarray, assignments: np.ndarray, clusters: int) -> Iterator[tuple[int, float]]:
    """(epoch, ACC) of stored ``assignments`` (epochs,N); nothing without labels."""
    known = labels >= 0
    if known.any():
        for epoch, assigned in enumerate(assignments):
            yield epoch, accuracy(labels[known], assigned[known], clusters)


def accuracy_of_surest(labels: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[int, float]]:
    """(percent, ACC) of the surest 5, 10, … 100 % of the items: of those whose likeliest cluster is likeliest.

    ``labels`` is (N,) with -1 where unknown, ``probabilities`` (N,C). Clusters are matched on all labelled items once,
    so that the last ACC is that of all. Nothing without labels.
    """
    known = labels >= 0
    if known.any():
        labels, probabilities = labels[known], probabilities[known]
        clusters = probabilities.argmax(axis=1)
        matched = match_clusters(labels, clusters, probabilities.shape[1])
        right = labels == np.array([matched.get(cluster, -1) for cluster in range(probabilities.shape[1])])[clusters]
        surest = np.argsort(-probabilities.max(axis=1), kind="stable")
        for percent in SUREST:
            yield percent, float(right[surest[: -(-percent * len(surest) // 100)]].mean())


def predicted_classes(labels: np.ndarray, clusters: np.ndarray, count: int) -> dict[int, int]:
    """Cluster → class by one-to-one matching on the items whose label is known; empty without labels.

    A cluster without any item of the class that is left for it gets none.
    """
    known = labels >= 0
    if not known.any():
        return {}
    found = set(zip(clusters[known].tolist(), labels[known].tolist(), strict=True))
    matched = match_clusters(labels[known], clusters[known], count)
    return {cluster: label for cluster, label in matched.items() if (cluster, label) in found}
