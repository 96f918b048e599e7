"""How good clusters are without labels, from arrays that every run has. No label enters this module.

No score here says that a cluster is what a person would call a class. The scores say whether the clusters are stable,
follow the mined neighbors, and follow the frozen embeddings.
"""

import itertools

import numpy as np

# The linear model is fitted on the first rows only: at least FIT_ROWS, and ROWS_PER_CLUSTER for each cluster. They are
# a sample, because rows are ordered by content hash.
FIT_ROWS, ROWS_PER_CLUSTER = 20_000, 20
FOLDS = 5
BLOCK = 8_192  # rows at a time, so that memory grows linearly with N


def quality_scores(
    clusters: np.ndarray, embeddings: np.ndarray, neighbors: np.ndarray, heads: np.ndarray | None = None
) -> dict[str, float]:
    """All scores of one split by name, without those that the data does not allow.

    ``clusters`` (N,) int, ``embeddings`` (N,D) of length 1, ``neighbors`` (N,K) positions in N, ``heads`` (H,N) the
    cluster of each image under each head, if known.
    """
    scores = {
        "heads_ari": None if heads is None else heads_ari(heads),
        "neighbor_agreement": neighbor_agreement(clusters, neighbors),
        "silhouette": silhouette(embeddings, clusters),
        "linear_predictability": linear_predictability(embeddings, clusters),
    }
    return {name: value for name, value in scores.items() if value is not None}


def heads_ari(heads: np.ndarray) -> float | None:
    """Mean adjusted Rand index (Hubert and Arabie 1985) over all pairs of the (H,N) rows; None for a single head.

    1: all heads found the same clusters; 0: they agree as much as chance.
    """
    from sklearn.metrics import adjusted_rand_score

    pairs = [adjusted_rand_score(one, other) for one, other in itertools.combinations(heads, 2)]
    return float(np.mean(pairs)) if pairs else None


def neighbor_agreement(clusters: np.ndarray, neighbors: np.ndarray) -> float | None:
    """The share of pairs of an image and one of its (N,K) neighbors that are in one cluster; None without pairs."""
    if not neighbors.size:
        return None
    return float((clusters[neighbors] == clusters[:, None]).mean())


def silhouette(embeddings: np.ndarray, clusters: np.ndarray) -> float | None:
    """The mean of ``silhouettes``; None if fewer than two clusters are used."""
    values = silhouettes(embeddings, clusters)
    return None if values is None else float(values.mean())


def silhouettes(embeddings: np.ndarray, clusters: np.ndarray) -> np.ndarray | None:
    """(N,) float64, equal to ``sklearn.metrics.silhouette_samples`` with ``metric="cosine"`` (Rousseeuw 1987).

    ``embeddings`` is (N,D) of length 1; None if fewer than two clusters are used. The mean cosine distance to a set of
    unit rows is one minus the product with the mean of the set. Time and memory therefore grow as N·C, not as N·N, and
    no image is left out.
    """
    used, index = np.unique(clusters, return_inverse=True)  # (C,), (N,) in [0, C)
    if len(used) < 2:
        return None
    sizes = np.bincount(index).astype(np.float64)  # (C,)
    sums = np.zeros((len(used), embeddings.shape[1]))  # (C,D)
    np.add.at(sums, index, embeddings)
    found = np.empty(len(clusters))
    for start in range(0, len(clusters), BLOCK):
        rows = embeddings[start : start + BLOCK].astype(np.float64)  # (B,D)
        cluster = index[start : start + BLOCK]  # (B,)
        own = np.arange(len(rows)), cluster  # the place in (B,C) of each image's own cluster
        others = sizes[cluster] - 1  # (B,) other images in it
        similarity = rows @ sums.T  # (B,C)
        within = 1 - (similarity[own] - (rows * rows).sum(axis=1)) / np.maximum(others, 1)
        distances = 1 - similarity / sizes  # (B,C)
        distances[own] = np.inf
        nearest = distances.min(axis=1)
        larger = np.maximum(within, nearest)
        # Rounding may leave the distance between exact copies just off zero.
        values = np.where((others > 0) & (larger > 1e-12), (nearest - within) / np.maximum(larger, 1e-12), 0.0)
        found[start : start + BLOCK] = values
    return found


def linear_predictability(embeddings: np.ndarray, clusters: np.ndarray) -> float | None:
    """The share of images whose cluster a linear model, fitted on other images, predicts from the embedding.

    Equals the accuracy of ``cross_val_predict(RidgeClassifier(alpha=1), embeddings, clusters, cv=KFold(5))``, several
    times faster, because each fold's sums are computed once. ``embeddings`` is (N,D), of which the first rows are used.
    None if there are fewer than five images or fewer than two clusters are used.
    """
    count = max(FIT_ROWS, ROWS_PER_CLUSTER * len(np.unique(clusters)))
    used, index = np.unique(clusters[:count], return_inverse=True)  # (C,), (N,) in [0, C)
    if len(index) < FOLDS or len(used) < 2:
        return None
    folds = np.array_split(np.arange(len(index)), FOLDS)
    sums = [_sums(embeddings[fold].astype(np.float64), index[fold], len(used)) for fold in folds]
    correct = 0
    for held_out, fold in enumerate(folds):
        fitted = [sums[number] for number in range(FOLDS) if number != held_out]
        gram, by_cluster, sizes = (np.sum(parts, axis=0) for parts in zip(*fitted, strict=True))  # (D,D), (D,C), (C,)
        total = sizes.sum()
        mean, share = by_cluster.sum(axis=1) / total, sizes / total
        centered = gram - total * np.outer(mean, mean)
        weights = np.linalg.solve(centered + np.eye(len(gram)), by_cluster - total * np.outer(mean, share))  # (D,C)
        scores = (embeddings[fold] - mean) @ weights + share  # (B,C)
        correct += int((scores.argmax(axis=1) == index[fold]).sum())
    return correct / len(index)


def _sums(rows: np.ndarray, index: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X'X (D,D), X'Y (D,C) and cluster sizes (C,) of ``rows`` (B,D), with Y the indicators of ``index`` (B,)."""
    by_cluster = np.zeros((clusters, rows.shape[1]))
    np.add.at(by_cluster, index, rows)
    return rows.T @ rows, by_cluster.T, np.bincount(index, minlength=clusters).astype(np.float64)
