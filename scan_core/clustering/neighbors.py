"""Mining the nearest neighbours of every embedding (paper, section 2.1) with FAISS: exact, or by an inverted file.

An exact search takes N² products. Beyond ``exact_rows`` an inverted file (IVF, Jégou et al. 2011) takes its place: the
rows are sorted into cells by k-means, and a search visits the ``nprobe`` cells nearest to the query. How many that are
is found by measuring the recall on a sample against the exact neighbours.

Embeddings may be smoothed first, each averaged with its nearest ones, which the paper does not do; what that changes is
measured by ``python -m experiments smoothing`` (docs/ledger.md).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scan_core.clustering.settings import check_neighbors
from scan_core.errors import ScanError

SAMPLE = 1_000  # queries on which the recall is measured
CELLS = 4  # times √N: cells, and then about √N / 4 rows in each
ROWS_A_CELL, ITERATIONS = 64, 8  # of the k-means that makes them: enough where only its cells' number matters
GPU_BYTES = 4 * 2**30  # of rows that an exact search holds there at a time
GPU_PROBES = 2048  # cells that FAISS visits there at most; it refuses more
ALPHA = 3  # power of a cosine that is a weight
BLOCK = 65_536  # queries at a time: memory grows as N


@dataclass(frozen=True)
class Mined:
    """Each row's nearest others, and what share of the true ones is expected to be there."""

    nearest: np.ndarray  # (N,k) int64, nearest first
    similarity: np.ndarray  # (N,k) float32, cosines
    recall: float  # 1.0 of an exact search, else as measured


def mine_neighbors(
    embeddings: np.ndarray, k: int, exact_rows: int, recall: float, device: str = "auto", smoothing: int = 0
) -> Mined:
    """Each row's ``k`` most similar other rows: exactly for at most ``exact_rows`` rows, else with that ``recall``.

    ``embeddings`` is (N,D) float32 of unit rows. A row is never its own neighbour, also where others equal it.
    ``device`` cpu leaves a GPU that is there alone; on one the recall may be less, for FAISS visits at most 2,048 cells
    there, and ``Mined`` has what it is. With ``smoothing``, at most ``k``, the rows are those of
    ``smooth`` with so many nearest ones, and cosines and recall are of these. Raises ``ScanError`` if ``k`` others do
    not exist or the rows are not finite and of unit length.
    """
    check_neighbors(k, len(embeddings))
    squared = np.einsum("nd,nd->n", embeddings, embeddings)
    wrong = np.flatnonzero(~np.isclose(squared, 1, atol=2e-3))
    if wrong.size:
        raise ScanError(
            f"{wrong.size:,} of {len(embeddings):,} embeddings do not have length 1, first row {wrong[0]} with "
            f"{squared[wrong[0]] ** 0.5:.4g}: the network gives no features for it, for it has died or diverged; train "
            "pretext again with a lower pretext.optimizer.lr, or change embed.features (backbone or projector)"
        )
    gpu = _gpu(device)
    if smoothing:
        embeddings = smooth(embeddings, _mine(embeddings, smoothing, exact_rows, recall, gpu))
    return _mine(embeddings, k, exact_rows, recall, gpu)


def smooth(embeddings: np.ndarray, mined: Mined) -> np.ndarray:
    """Each row's mean with its ``mined`` nearest ones, of unit length: (N,D) float32.

    One step of mean shift. Weights are the cosine to the power of 3, none where it is negative: alpha query expansion
    (Radenović et al., arXiv 1711.02512), done for the rows of a database as Arandjelović and Zisserman (2012) do.
    """
    smoothed = np.empty_like(embeddings)
    weights = mined.similarity.clip(min=0) ** ALPHA  # (N,K)
    for start in range(0, len(embeddings), BLOCK):
        rows = slice(start, start + BLOCK)
        total = np.array(embeddings[rows])  # each row's own weight is 1, so that no sum is 0
        for nearest, weight in zip(mined.nearest[rows].T, weights[rows].T, strict=True):
            total += weight[:, None] * embeddings[nearest]
        smoothed[rows] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return smoothed


def _mine(embeddings: np.ndarray, k: int, exact_rows: int, recall: float, gpu: Any) -> Mined:
    """``mine_neighbors`` of rows as they are."""
    count, index, reached = len(embeddings), None, 1.0
    if count > exact_rows:
        index = _inverted_file(embeddings, gpu)
        reached = _probe(index, embeddings, k, recall, gpu)
    nearest, similarity = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        similarity[rows], nearest[rows] = _others(embeddings, np.arange(count)[rows], k, index, gpu)
    return Mined(nearest, similarity, reached)


def _gpu(device: str) -> Any:
    """FAISS's memory on a GPU, or None where there is none to be used."""
    import faiss

    return faiss.StandardGpuResources() if device != "cpu" and faiss.get_num_gpus() else None


def _others(
    embeddings: np.ndarray, rows: np.ndarray, k: int, index: Any = None, gpu: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and positions (B,k) of the nearest rows of ``embeddings`` other than each of ``rows`` (B,) itself."""
    import faiss

    queries = embeddings[rows]
    if index is None and gpu is not None:
        found = faiss.knn_gpu(
            gpu, queries, embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT, vectorsMemoryLimit=GPU_BYTES
        )
    elif index is None:
        found = faiss.knn(queries, embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        found = index.search(queries, k + 1)
        few = (found[1] < 0).any(axis=1)  # the cells that were visited hold fewer rows than are wanted
        if few.any():
            found[0][few], found[1][few] = faiss.knn(queries[few], embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    similarity, nearest = found
    other = nearest != rows[:, None]  # (B,k+1)
    # With more than k exact copies a row may be missing from its own list: then its last entry goes instead.
    other[other.all(axis=1), -1] = False
    return similarity[other].reshape(-1, k), nearest[other].reshape(-1, k)


def _inverted_file(embeddings: np.ndarray, gpu: Any = None) -> Any:
    """An index of all rows, its cells trained on a sample of them."""
    import faiss

    count, dimensions = embeddings.shape
    cells = 2 ** round(np.log2(min(CELLS * count**0.5, count / 2)))  # no more than rows, however few
    quantizer = faiss.IndexFlatIP(dimensions)
    index: Any = faiss.IndexIVFFlat(quantizer, dimensions, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ITERATIONS, ROWS_A_CELL, 1
    index.cp.spherical = True
    # Rows are in the order of their content: every n-th is a sample.
    index.train(np.ascontiguousarray(embeddings[:: max(1, count // (cells * ROWS_A_CELL))]))
    if gpu is not None:
        index = faiss.index_cpu_to_gpu(gpu, 0, index)
    for start in range(0, count, BLOCK):
        index.add(embeddings[start : start + BLOCK])
    return index


def _probe(index: Any, embeddings: np.ndarray, k: int, recall: float, gpu: Any = None) -> float:
    """Doubles the number of cells a search visits until the sample's recall is ``recall``; the recall then.

    It is less where a GPU's ``GPU_PROBES`` cells do not suffice.
    """
    rows = np.arange(0, len(embeddings), max(1, len(embeddings) // SAMPLE))
    least = _others(embeddings, rows, k, gpu=gpu)[0][:, -1:] - 1e-6  # of equal ones either is true
    most = index.nlist if gpu is None else min(index.nlist, GPU_PROBES)
    index.nprobe = 1
    while True:
        reached = float((_others(embeddings, rows, k, index)[0] >= least).mean())
        if reached >= recall or index.nprobe >= most:
            return reached
        index.nprobe *= 2
