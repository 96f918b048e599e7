"""How well clusters follow classes. Clusters are numbered arbitrarily, so every score matches or compares pairs.

Arrays: ``labels`` and ``clusters`` (N,) integers, clusters in [0, num_clusters). Labels may be any integers.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

ROWS_SORTED = 8192  # at a time


def contingency(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (classes, C) of images by class and cluster, and the labels (classes,) of the rows."""
    values, index = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(values), num_clusters), dtype=np.int64)
    np.add.at(counts, (index, clusters), 1)
    return counts, values


def match_clusters(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> dict[int, int]:
    """Cluster → class, one to one, so that most images agree (Hungarian method, Kuhn 1955).

    The larger of the two sets keeps members without a partner.
    """
    counts, values = contingency(labels, clusters, num_clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {int(column): int(values[row]) for row, column in zip(rows, columns, strict=True)}


def classes_of_clusters(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """(C,) the class matched to each cluster; for a cluster without a class, a value that is no label."""
    matched = match_clusters(labels, clusters, num_clusters)
    no_class = min(int(labels.min()), 0) - 1
    return np.array([matched.get(cluster, no_class) for cluster in range(num_clusters)])


def accuracy(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> float:
    """ACC: the share of images whose cluster is matched to their class, one to one."""
    counts, _ = contingency(labels, clusters, num_clusters)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels))


def many_to_one_accuracy(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> float:
    """The share of images that are of the most frequent class of their cluster (the paper's overclustering measure)."""
    counts, _ = contingency(labels, clusters, num_clusters)
    return float(counts.max(axis=0).sum() / len(labels))


def top_accuracy(labels: np.ndarray, ranked: np.ndarray, num_clusters: int) -> float:
    """The share of images whose class is matched to one of their ``ranked`` (N,k) clusters, the most probable first."""
    classes = classes_of_clusters(labels, ranked[:, 0], num_clusters)
    return float((classes[ranked] == labels[:, None]).any(axis=1).mean())


def rank_clusters(probabilities: np.ndarray, k: int) -> np.ndarray:
    """(N,k) int64: the ``k`` most probable clusters of each row of ``probabilities`` (N,C), the most probable first.

    Of clusters with the same probability the first comes first. Rows are sorted in blocks, because a sort of all rows
    takes several times the memory of ``probabilities``.
    """
    blocks = np.array_split(probabilities, len(probabilities) // ROWS_SORTED + 1)
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k].astype(np.int64) for block in blocks])


def clustering_metrics(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> dict[str, float]:
    """``acc``, ``nmi``, ``ari``, ``ami`` and, if clusters outnumber the classes, ``acc_many_to_one``."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    values = {
        "acc": accuracy(labels, clusters, num_clusters),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
    }
    if num_clusters > len(np.unique(labels)):
        values["acc_many_to_one"] = many_to_one_accuracy(labels, clusters, num_clusters)
    return values


def neighbor_purity(labels: np.ndarray, neighbors: np.ndarray, k: int) -> float:
    """The share of pairs of an image and one of its ``k`` nearest neighbors that are of one class; NaN without pairs.

    ``neighbors`` is (N,K) positions in N. Pairs in which a label is unknown (-1) do not count.
    """
    pairs = labels[neighbors[:, :k]]  # (N,k)
    known = (labels[:, None] >= 0) & (pairs >= 0)
    return float((pairs == labels[:, None])[known].mean()) if known.any() else float("nan")
