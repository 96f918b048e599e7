"""Neighbor mining: exact against FAISS's own search, scikit-learn and a dense product; approximate against exact."""

import time

import numpy as np
import torch

from bench.timing import Row, alternate, compare, peak_mib
from scan_core.clustering.neighbors import mine_neighbors

K = 20
SLICE = 5_000  # queries of the two searches that are too slow for all: scikit-learn's, and an exact one of a million


def synthetic_embeddings(count: int, dimensions: int, centers: int = 1000) -> np.ndarray:
    """(count,dimensions) unit rows in clusters: each is one of the standard normal centers plus a standard normal."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(centers, dimensions)).astype(np.float32)
    rows = np.empty((count, dimensions), np.float32)
    for start in range(0, count, 100_000):
        part = rows[start : start + 100_000]
        part[:] = middle[rng.integers(centers, size=len(part))] + rng.standard_normal(part.shape, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure_exact(count: int = 50_000, dimensions: int = 512, rounds: int = 3) -> list[Row]:
    """20 neighbors of 50,000 x 512."""
    import faiss

    vectors = synthetic_embeddings(count, dimensions)
    tensor = torch.from_numpy(vectors)

    def faiss_search() -> int:
        faiss.knn(vectors, vectors, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
        return count

    def dense() -> int:
        for part in tensor.split(4096):
            part @ tensor.T
        return count

    def ours() -> int:
        return len(mine_neighbors(vectors, K, count, 1.0).nearest)

    before = peak_mib()
    ours()
    after = peak_mib()  # measured now because the other candidates take more
    works = {"ours": ours, "FAISS's own search": faiss_search, "a dense N x N product": dense}
    rates = alternate(works, 0.1, rounds)
    slow_rates = alternate({"ours": ours, "scikit-learn": lambda: _sklearn(vectors)}, 0.1, 1)
    what = f"exact {K} neighbors of {count:,} x {dimensions}"
    rows = [
        compare(what, rates, "ours", "FAISS's own search", target="≥ 0.91"),
        compare(what, rates, "ours", "a dense N x N product"),
        compare(what, slow_rates, "ours", "scikit-learn", note=f"scikit-learn for {SLICE:,} of them"),
    ]
    rows[0].mib, rows[0].note = after, f"{before:.0f} MiB before the first search; target: at most 1,536 in all"
    return rows


def _sklearn(vectors: np.ndarray) -> int:
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="cosine", n_jobs=-1).fit(vectors)
    return len(model.kneighbors(vectors[:SLICE])[1])


def measure_approximate(count: int = 1_000_000, dimensions: int = 128) -> list[Row]:
    """20 neighbors of a million rows, including training and filling the index, against an exact search.

    The exact search's time is extrapolated from a slice of the queries.
    """
    import faiss

    vectors = synthetic_embeddings(count, dimensions)
    started = time.perf_counter()
    faiss.knn(vectors[:SLICE], vectors, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
    exact_seconds = (time.perf_counter() - started) * count / SLICE
    started = time.perf_counter()
    mined = mine_neighbors(vectors, K, 0, 0.95)
    seconds = time.perf_counter() - started
    queries = np.random.default_rng(1).choice(count, 1000, replace=False)
    _, true = faiss.knn(vectors[queries], vectors, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
    recall = np.mean([
        len(np.intersect1d(exact[exact != query][:K], nearest)) / K
        for query, exact, nearest in zip(queries, true, mined.nearest[queries], strict=True)
    ])  # fmt: skip
    what = f"approximate {K} neighbors of {count:,} x {dimensions}"
    row = Row(what, count / seconds, "exact search, extrapolated from a slice", [exact_seconds / seconds], "≥ 10")
    row.note = (
        f"{seconds:.0f} s against {exact_seconds:.0f} s; recall of 1,000 other queries {recall:.3f} (target: ≥ 0.95), "
        f"{mined.recall:.3f} by its own sample; target: at most 4,096 MiB"
    )
    return [row]
