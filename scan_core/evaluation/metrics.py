"""How well clusters follow classes. Labels come in here and nowhere else; clusters are numbered arbitrarily."""

import numpy as np
from scipy.optimize import linear_sum_assignment

ROWS_SORTED = 8192  # at a time


def contingency(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (classes, C) of items by class and cluster, and the class values (classes,), whatever they are."""
    values, index = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(values), num_clusters), dtype=np.int64)
    np.add.at(counts, (index, clusters), 1)
    return counts, values


def match_clusters(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> dict[int, int]:
    """Cluster to class, one to one, so that most items agree (Hungarian method).

    With more clusters than classes some clusters stay without a class, and the other way round.
    """
    counts, values = contingency(labels, clusters, num_clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {int(column): int(values[row]) for row, column in zip(rows, columns, strict=True)}


def accuracy(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> float:
    """ACC: the share of items whose cluster is matched to their class, one to one."""
    counts, _ = contingency(labels, clusters, num_clusters)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels))


def many_to_one_accuracy(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> float:
    """The share of items that are of their cluster's commonest class (the paper's overclustering measure)."""
    counts, _ = contingency(labels, clusters, num_clusters)
    return float(counts.max(axis=0).sum() / len(labels))


def top_accuracy(labels: np.ndarray, probabilities: np.ndarray, k: int) -> float:
    """The share of items whose class is matched to one of their ``k`` likeliest clusters; (N,C) probabilities."""
    matched = match_clusters(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    no_class = min(int(labels.min()), 0) - 1  # a value no item has
    classes = np.array([matched.get(cluster, no_class) for cluster in range(probabilities.shape[1])])
    return float((classes[likeliest(probabilities, k)] == labels[:, None]).any(axis=1).mean())


def likeliest(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` likeliest clusters of each row of ``probabilities`` (N,C), likeliest first, of equal ones the first.

    (N,k) int64. In blocks of rows: a sort of all at once takes several times the memory of ``probabilities``.
    """
    blocks = np.array_split(probabilities, len(probabilities) // ROWS_SORTED + 1)
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k].astype(np.int64) for block in blocks])


def clustering_metrics(labels: np.ndarray, clusters: np.ndarray, num_clusters: int) -> dict[str, float]:
    """``acc``, ``nmi``, ``ari``, ``ami`` and, where clusters outnumber classes, ``acc_many_to_one``.

    ``labels`` and ``clusters`` are (N,) integers, clusters in [0, num_clusters).
    """
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
    """The share of pairs of an item and one of its ``k`` nearest that are of one class; (N,K) positions in N.

    Items without a label (-1) take no part, neither as items nor as neighbours.
    """
    pairs = labels[neighbors[:, :k]]  # (N,k)
    known = (labels[:, None] >= 0) & (pairs >= 0)
    return float((pairs == labels[:, None])[known].mean()) if known.any() else float("nan")
