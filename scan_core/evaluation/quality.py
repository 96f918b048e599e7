"""How good clusters are as far as it shows without labels, from arrays that are there in every run. No label comes in.

None of these says that a cluster is what a person would call a class: they say whether the clusters are stable, follow
the mined neighbours, and follow the frozen embeddings.
"""

import itertools

import numpy as np

# The linear model sees no more rows, or so many a cluster. They are in the order of their content: a sample.
FIT_ROWS, ROWS_A_CLUSTER = 20_000, 20
FOLDS = 5
BLOCK = 8_192  # rows at a time: memory grows as N


def quality_scores(
    clusters: np.ndarray, embeddings: np.ndarray, neighbors: np.ndarray, heads: np.ndarray | None = None
) -> dict[str, float]:
    """All measures of one split by name, those left out that the data does not allow.

    ``clusters`` (N,) int, ``embeddings`` (N,D) of unit rows, ``neighbors`` (N,K) positions in N, ``heads`` (H,N) what
    each head made of the same images, where that is known.
    """
    scores = {
        "heads_ari": None if heads is None else heads_ari(heads),
        "neighbor_consistency": neighbor_consistency(clusters, neighbors),
        "silhouette": silhouette(embeddings, clusters),
        "linear_predictability": linear_predictability(embeddings, clusters),
    }
    return {name: value for name, value in scores.items() if value is not None}


def heads_ari(heads: np.ndarray) -> float | None:
    """Mean adjusted Rand index (Hubert and Arabie 1985) of all pairs of the (H,N) rows; None of fewer than two heads.

    1: the heads found the same groups; 0: they agree as by chance.
    """
    from sklearn.metrics import adjusted_rand_score

    pairs = [adjusted_rand_score(one, other) for one, other in itertools.combinations(heads, 2)]
    return float(np.mean(pairs)) if pairs else None


def neighbor_consistency(clusters: np.ndarray, neighbors: np.ndarray) -> float | None:
    """The share of pairs of an image and one of its (N,K) neighbours that are in one cluster; None without pairs."""
    if not neighbors.size:
        return None
    return float((clusters[neighbors] == clusters[:, None]).mean())


def silhouette(embeddings: np.ndarray, clusters: np.ndarray) -> float | None:
    """Mean silhouette (Rousseeuw 1987) under the cosine distance; None where fewer than two clusters are in use.

    Each image's (b - a) / max(a, b), with a its mean distance to the others of its cluster and b that to the nearest
    other cluster; 0 where it is alone. Of unit rows, the mean cosine distance to a set is one minus the product with
    the set's mean, so that all N images are used, in time and memory that grow as N. ``embeddings`` is (N,D).
    """
    used, own = np.unique(clusters, return_inverse=True)  # (C,), (N,) positions in it
    if len(used) < 2:
        return None
    sizes = np.bincount(own).astype(np.float64)  # (C,)
    sums = np.zeros((len(used), embeddings.shape[1]))  # (C,D)
    np.add.at(sums, own, embeddings)
    total = 0.0
    for start in range(0, len(clusters), BLOCK):
        rows = embeddings[start : start + BLOCK].astype(np.float64)  # (B,D)
        mine, place = own[start : start + BLOCK], np.arange(len(rows))
        others = sizes[mine] - 1  # (B,)
        similar = rows @ sums.T  # (B,C)
        itself = (rows * rows).sum(axis=1)
        within = 1 - (similar[place, mine] - itself) / np.maximum(others, 1)
        distance = 1 - similar / sizes
        distance[place, mine] = np.inf
        nearest = distance.min(axis=1)
        larger = np.maximum(within, nearest)
        # Rounding may leave a distance of exact copies just off zero.
        value = np.where((others > 0) & (larger > 1e-12), (nearest - within) / np.maximum(larger, 1e-12), 0.0)
        total += float(value.sum())
    return total / len(clusters)


def linear_predictability(embeddings: np.ndarray, clusters: np.ndarray) -> float | None:
    """Accuracy with which a linear model tells an image's cluster from its embedding, by 5-fold cross-validation.

    Ridge regression on the clusters' indicators, of strength 1 and with an intercept; the largest wins. In closed form
    from each fold's sums. ``embeddings`` is (N,D), of which the first rows are used. Folds are consecutive,
    for the rows' order says nothing, and not stratified, for a cluster may have a single image. None where there are
    fewer than five images, or fewer than two clusters in use.
    """
    count = max(FIT_ROWS, ROWS_A_CLUSTER * len(np.unique(clusters)))
    used, own = np.unique(clusters[:count], return_inverse=True)  # (C,), (N,) positions in it
    if len(own) < FOLDS or len(used) < 2:
        return None
    folds = np.array_split(np.arange(len(own)), FOLDS)
    sums = [_sums(embeddings[fold].astype(np.float64), own[fold], len(used)) for fold in folds]
    right = 0
    for left_out, fold in enumerate(folds):
        gram, by_cluster, sizes = (  # (D,D), (D,C), (C,) of the other folds
            np.sum([parts[kind] for place, parts in enumerate(sums) if place != left_out], axis=0) for kind in range(3)
        )
        total = sizes.sum()
        mean, share = by_cluster.sum(axis=1) / total, sizes / total
        centred = gram - total * np.outer(mean, mean)
        weights = np.linalg.solve(centred + np.eye(len(gram)), by_cluster - total * np.outer(mean, share))  # (D,C)
        scores = (embeddings[fold] - mean) @ weights + share  # (B,C)
        right += int((scores.argmax(axis=1) == own[fold]).sum())
    return right / len(own)


def _sums(rows: np.ndarray, own: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (B,D) rows in clusters (B,): the products of features (D,D), sums by cluster (D,C), and sizes (C,)."""
    by_cluster = np.zeros((count, rows.shape[1]))
    np.add.at(by_cluster, own, rows)
    return rows.T @ rows, by_cluster.T, np.bincount(own, minlength=count).astype(np.float64)
