"""What several clusterings of the same images have in common: their consensus, and how much each agrees with others."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from scan_core.clustering.spectral import kmeans_clusters

STARTS = 5  # of k-means


def consensus(proposals: np.ndarray, votes: list[float], clusters: int, seed: int) -> np.ndarray:
    """(N,) int64 clusters on which ``proposals`` (H,N) agree, each of which has as many of ``votes`` (H,).

    K-means on the first C principal components of all memberships: images that many proposals put together have similar
    rows, whatever they call their clusters.
    """
    from scipy.sparse import csr_array

    heads, count = proposals.shape
    columns = (proposals + clusters * np.arange(heads)[:, None]).T.ravel()
    starts = np.arange(0, columns.size + 1, heads)
    weights = np.tile(np.sqrt(np.array(votes, np.float32)), count)
    joined = csr_array((weights, columns, starts), shape=(count, heads * clusters))
    mean = joined.mean(axis=0)
    covariance = (joined.T @ joined).toarray() / count - np.outer(mean, mean)
    basis = np.linalg.eigh(covariance.astype(np.float64))[1][:, ::-1][:, :clusters].astype(np.float32)
    rows = joined @ basis - (mean @ basis).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    return kmeans_clusters(rows, clusters, seed, STARTS)[0]


def agreement(assigned: np.ndarray, names: list[str], clusters: int, voiceless: str = "") -> list[float]:
    """For each row of (H,N) clusters, the share of images on which it agrees with the others: a mean over methods.

    ``names`` (H,) are the methods: each has one vote, the mean over its rows, however many it has. Clusters are matched
    one to one by the Hungarian method. A single row agrees with itself. The method ``voiceless`` has no vote.
    """
    count = len(assigned)
    shares = np.ones((count, count))
    for one in range(count):
        for other in range(one):
            pairs = assigned[one] * clusters + assigned[other]
            counts = np.bincount(pairs, minlength=clusters**2).reshape(clusters, clusters)
            matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
            shares[one, other] = shares[other, one] = matched / assigned.shape[1]
    np.fill_diagonal(shares, np.nan)
    methods = [np.array(names) == name for name in dict.fromkeys(names) if name != voiceless]
    votes = [
        [float(np.nanmean(row[method])) for method in methods if not np.isnan(row[method]).all()] for row in shares
    ]
    return [float(np.mean(each)) if each else 1.0 for each in votes]


def image_votes(assigned: np.ndarray, names: list[str], kept: int, clusters: int, voiceless: str = "") -> np.ndarray:
    """For each image the share (N,) of methods that agree with row ``kept`` of (H,N) clusters: a mean over methods.

    Methods vote and clusters are matched as in ``agreement``. Without another method it is 1 for all.
    """
    of_methods = dict[str, list[np.ndarray]]()
    for head, name in enumerate(names):
        if head != kept and name != voiceless:
            pairs = assigned[head] * clusters + assigned[kept]
            counts = np.bincount(pairs, minlength=clusters**2).reshape(clusters, clusters)
            _, matched = linear_sum_assignment(counts, maximize=True)
            of_methods.setdefault(name, []).append(matched[assigned[head]] == assigned[kept])
    votes = [np.mean(each, axis=0) for each in of_methods.values()]
    return np.mean(votes, axis=0) if votes else np.ones(assigned.shape[1])
