"""Neighbour mining: exact beside FAISS's own search, scikit-learn and a dense product; approximate beside exact."""

import time

import numpy as np
import torch

from bench.timing import Row, compared, in_turn, peak
from scan_core.clustering.neighbors import mine_neighbors

K = 20
SLICE = 5_000  # queries of scikit-learn's search, and of that from which an exact one of a million is extrapolated


def clustered(count: int, dimensions: int, centres: int = 1000) -> np.ndarray:
    """Unit rows in clusters, as embeddings are: each is one of 1,000 standard normal centres plus a standard normal."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(centres, dimensions)).astype(np.float32)
    rows = np.empty((count, dimensions), np.float32)
    for start in range(0, count, 100_000):
        part = rows[start : start + 100_000]
        part[:] = middle[rng.integers(centres, size=len(part))] + rng.standard_normal(part.shape, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact(count: int = 50_000, dimensions: int = 512, spells: int = 3) -> list[Row]:
    """20 neighbours of 50,000 x 512."""
    import faiss

    rows = clustered(count, dimensions)
    tensor = torch.from_numpy(rows)

    def faiss_alone() -> int:
        faiss.knn(rows, rows, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
        return count

    def dense() -> int:
        for part in tensor.split(4096):
            part @ tensor.T
        return count

    def ours() -> int:
        return len(mine_neighbors(rows, K, count, 1.0).nearest)

    before = peak()
    ours()
    after = peak()  # the others take more
    rates = in_turn({"ours": ours, "FAISS's own search": faiss_alone, "a dense N x N product": dense}, 0.1, spells)
    what = f"exact {K} neighbours of {count:,} x {dimensions}"
    found = [
        compared(what, rates, "ours", "FAISS's own search", bar="≥ 0.91"),
        compared(what, rates, "ours", "a dense N x N product"),
        compared(what, in_turn({"ours": ours, "scikit-learn": lambda: _sklearn(rows)}, 0.1, 1), "ours", "scikit-learn"),
    ]
    found[0].mib, found[0].note = after, f"{before:.0f} MiB before the first search; at most 1,536 in all is the bar"
    found[2].note = f"scikit-learn for {SLICE:,} of them"
    return found


def _sklearn(rows: np.ndarray) -> int:
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="cosine", n_jobs=-1).fit(rows)
    return len(model.kneighbors(rows[:SLICE])[1])


def approximate(count: int = 1_000_000, dimensions: int = 128) -> list[Row]:
    """20 neighbours of a million rows, training and filling included, beside an exact search's extrapolated time."""
    import faiss

    rows = clustered(count, dimensions)
    started = time.perf_counter()
    faiss.knn(rows[:SLICE], rows, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
    exact_seconds = (time.perf_counter() - started) * count / SLICE
    started = time.perf_counter()
    mined = mine_neighbors(rows, K, 0, 0.95)
    seconds = time.perf_counter() - started
    check = np.random.default_rng(1).choice(count, 1000, replace=False)
    _, true = faiss.knn(rows[check], rows, K + 1, metric=faiss.METRIC_INNER_PRODUCT)
    right = np.mean([
        len(np.intersect1d(one[one != row][:K], other)) / K
        for row, one, other in zip(check, true, mined.nearest[check], strict=True)
    ])  # fmt: skip
    what = f"approximate {K} neighbours of {count:,} x {dimensions}"
    found = Row(what, count / seconds, "exact search, extrapolated from a slice", [exact_seconds / seconds], "≥ 10")
    found.note = (
        f"{seconds:.0f} s against {exact_seconds:.0f} s; recall of 1,000 other queries {right:.3f} (bar: ≥ 0.95), "
        f"{mined.recall:.3f} by its own sample; at most 4,096 MiB is the bar"
    )
    return [found]
