"""Spectral clustering of the neighbor graph (Ng, Jordan and Weiss 2001; shared neighbors: Jarvis and Patrick 1973)."""

from typing import Any

import numpy as np

GRAPH_NEIGHBORS = 20  # of each image
REGULARIZATION = 0.01  # edges between all images, together as heavy as this share of an image's own edges
TOLERANCE = 1e-4  # of the eigenvalues: k-means needs no more
STARTS = 20  # of k-means
FINER, FINER_STARTS = 4, 2  # times as many clusters, which are then merged
BLOCK = 8_192  # rows of the graph at a time


def spectral_clusters(neighbors: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two divisions, (N,) int64 each, of the graph that joins each image with its nearest ``neighbors`` (N,K).

    The first C eigenvectors of the normalized graph become rows of length 1, and k-means divides them, into clusters of
    similar size. The second division has no such preference: k-means divides the rows into four times as many, and
    those that the graph joins most are merged. Memory grows as N·K and as N·C.
    """
    rows = unit_rows(eigenvectors(neighbors, num_clusters, seed)[1])
    equal, _ = kmeans_clusters(rows, num_clusters, seed, STARTS)
    fine, _ = kmeans_clusters(rows, min(FINER * num_clusters, len(rows)), seed, FINER_STARTS)
    return equal, merged(shared_neighbors(neighbors[:, :GRAPH_NEIGHBORS]), fine, num_clusters)


def merged(graph: Any, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """(N,) int64: ``clusters`` (N,) merged two by two until ``num_clusters`` are left.

    Merged are those with the most edges of ``graph`` (N,N) between them, compared with the geometric mean of all edges
    that each has. A large cluster that was cut has many edges along the cut, a small one that is apart has few.
    """
    used, index = np.unique(clusters, return_inverse=True)
    links = np.zeros((len(used), len(used)))
    edges = graph.tocoo()
    np.add.at(links, (index[edges.row], index[edges.col]), edges.data)
    name, alive = np.arange(len(used)), np.ones(len(used), dtype=bool)
    for _ in range(len(used) - num_clusters):
        root = np.sqrt(links.sum(axis=1).clip(min=1e-12))
        strength = np.where(alive[:, None] & alive, links / np.outer(root, root), -1)
        np.fill_diagonal(strength, -1)
        one, other = np.unravel_index(strength.argmax(), strength.shape)
        links[one] += links[other]
        links[:, one] += links[:, other]
        links[other] = links[:, other] = 0
        alive[other] = False
        name[name == other] = one
    return np.unique(name[index], return_inverse=True)[1].astype(np.int64)


def modularity(graph: Any, clusters: np.ndarray) -> float:
    """The share of the edges of ``graph`` (N,N) inside ``clusters`` (N,), less the share that chance puts there.

    Newman and Girvan 2004.
    """
    edges, degrees = graph.tocoo(), np.asarray(graph.sum(axis=1)).ravel()
    inside = edges.data[clusters[edges.row] == clusters[edges.col]].sum(dtype=np.float64)
    shares = np.bincount(clusters, degrees) / degrees.sum()
    return float(inside / degrees.sum() - (shares**2).sum())


def eigenvectors(neighbors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest ``count`` eigenvalues (C,) and their vectors (N,C) of the normalized graph of ``neighbors`` (N,K).

    An edge weighs as much as the share of neighbors that its images have in common. Weak edges between all images
    (Amini et al. 2013, regularized spectral clustering) join what would be apart: a few photos that have only each
    other would be a cluster of their own. The largest value comes first; it is 1. ``count`` is less than N.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    images, weights = len(neighbors), shared_neighbors(neighbors[:, :GRAPH_NEIGHBORS]).astype(np.float64)
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    extra = REGULARIZATION * degrees.mean()
    root = 1 / np.sqrt(degrees + extra)

    def normalized(vector: np.ndarray) -> np.ndarray:
        scaled = root * vector.ravel()
        product: np.ndarray = root * (weights @ scaled + extra * scaled.mean())
        return product

    start = np.random.default_rng(seed).standard_normal(images)  # scipy's own start is not seeded
    operator = LinearOperator((images, images), matvec=normalized, dtype=np.float64)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=TOLERANCE)
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (N,C) with rows of length 1, float32."""
    rows: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return rows.astype(np.float32)


def shared_neighbors(neighbors: np.ndarray) -> Any:
    """The symmetric sparse graph (N,N) of ``neighbors`` (N,K): for each edge, the share of neighbors in common.

    An image is its own neighbor, too, so that no edge weighs nothing.
    """
    from scipy.sparse import csr_array, vstack

    count, k = neighbors.shape
    index = np.concatenate([np.arange(count)[:, None], neighbors], axis=1)  # (N,1+K)
    ends = np.arange(0, index.size + 1, k + 1)
    graph = csr_array((np.ones(index.size, np.float32), index.ravel(), ends), shape=(count, count))
    edges, lists = graph.maximum(graph.T), graph.T.tocsr()
    edges.setdiag(0)
    edges.eliminate_zeros()
    # In blocks: most pairs that share a neighbor have no edge.
    blocks = [(graph[row : row + BLOCK] @ lists).multiply(edges[row : row + BLOCK]) for row in range(0, count, BLOCK)]
    return vstack(blocks, format="csr") / (k + 1)


def kmeans_clusters(features: np.ndarray, num_clusters: int, seed: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 clusters and (C,D) float32 centers of ``features`` (N,D) by k-means, the best of ``starts``."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "openmp"):  # its sums depend on the number of threads
        fitted = KMeans(num_clusters, n_init=starts, random_state=seed).fit(features)
    return fitted.labels_.astype(np.int64), fitted.cluster_centers_.astype(np.float32)
