"""Spectral clustering of the neighbor graph (Ng, Jordan and Weiss 2001; shared neighbors: Jarvis and Patrick 1973)."""

from typing import Any

import numpy as np

GRAPH_NEIGHBORS = 20  # of each image
REGULARIZATION = 0.01  # edges between all images, together as heavy as this share of an image's own edges
TOLERANCE = 1e-4  # of the eigenvalues: k-means needs no more
STARTS = 20  # of k-means
BLOCK = 8_192  # rows of the graph at a time


def spectral_clusters(neighbors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """(N,) int64 clusters of the graph that joins each image with its nearest ``neighbors`` (N,K), self excluded.

    An edge weighs as much as the share of neighbors that its images have in common. Weak edges between all images
    (Amini et al. 2013, regularized spectral clustering) join what would be apart: a few photos that have only each
    other would be a cluster of their own. The first C eigenvectors of the normalized graph become rows of length 1, and
    k-means divides them. Memory grows as N·K and as N·C.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    count, weights = len(neighbors), shared_neighbors(neighbors[:, :GRAPH_NEIGHBORS]).astype(np.float64)
    degrees = np.asarray(weights.sum(axis=1)).ravel()
    extra = REGULARIZATION * degrees.mean()
    root = 1 / np.sqrt(degrees + extra)

    def normalized(vector: np.ndarray) -> np.ndarray:
        scaled = root * vector.ravel()
        product: np.ndarray = root * (weights @ scaled + extra * scaled.mean())
        return product

    start = np.random.default_rng(seed).standard_normal(count)  # scipy's own start is not seeded
    operator = LinearOperator((count, count), matvec=normalized, dtype=np.float64)
    _, vectors = eigsh(operator, k=num_clusters, which="LA", v0=start, tol=TOLERANCE)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    return kmeans_clusters(rows.astype(np.float32), num_clusters, seed, STARTS)[0]


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
