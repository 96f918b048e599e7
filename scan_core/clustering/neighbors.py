"""Mines the nearest neighbors of every embedding (paper, section 2.1) with FAISS: exactly, or by an inverted file.

An exact search takes N² products. For more than ``exact_rows`` rows, an inverted file (IVF, Jégou et al. 2011) takes
its place: k-means sorts the rows into cells, and a search visits the ``nprobe`` cells nearest to the query. ``nprobe``
grows until the recall on a sample, measured against exact neighbors, is reached.

Embeddings may be smoothed first: each is averaged with its nearest ones. The paper does not do that; its effect is
measured by ``python -m experiments smoothing`` (docs/ledger.md).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scan_core.clustering.settings import check_neighbors
from scan_core.errors import ScanError

SAMPLE = 1_000  # queries on which the recall is measured
CELLS = 4  # number of cells, in units of √N; each then holds about √N / 4 rows
ROWS_A_CELL, ITERATIONS = 64, 8  # of the k-means; the cells need not be good, only many
GPU_BYTES = 4 * 2**30  # of rows that an exact search holds on a GPU at a time
GPU_PROBES = 2048  # cells that FAISS visits on a GPU at most
ALPHA = 3  # power of a cosine that is a weight
BLOCK = 65_536  # queries at a time: memory grows as N


@dataclass(frozen=True)
class Mined:
    """Each row's nearest other rows, and the expected share of true ones among them."""

    nearest: np.ndarray  # (N,k) int64, nearest first
    similarity: np.ndarray  # (N,k) float32, cosines
    recall: float  # 1.0 for an exact search, otherwise as measured


def mine_neighbors(
    embeddings: np.ndarray, k: int, exact_rows: int, recall: float, device: str = "auto", smoothing: int = 0
) -> Mined:
    """Each row's ``k`` most similar other rows: exactly for up to ``exact_rows`` rows, otherwise with that ``recall``.

    ``embeddings`` is (N,D) float32 of unit rows. A row is never its own neighbor, even if others equal it.
    With ``device`` cpu no GPU is used. On a GPU the recall may be lower, because FAISS visits at most 2,048 cells:
    ``Mined`` says what it is. With ``smoothing``, at most ``k``, ``smooth`` first averages each row with that many
    nearest ones. Raises ``ScanError`` if there are not ``k`` other rows, or if rows are not finite and of unit length.
    """
    check_neighbors(k, len(embeddings))
    squared = np.einsum("nd,nd->n", embeddings, embeddings)
    wrong = np.flatnonzero(~np.isclose(squared, 1, atol=2e-3))
    if wrong.size:
        raise ScanError(
            f"{wrong.size:,} of {len(embeddings):,} embeddings do not have length 1, first row {wrong[0]} with "
            f"{squared[wrong[0]] ** 0.5:.4g}: the network has died or diverged; train pretext again with "
            "a lower pretext.optimizer.lr, or change embed.features (backbone or projector)"
        )
    gpu = _gpu(device)
    if smoothing:
        embeddings = smooth(embeddings, _mine(embeddings, smoothing, exact_rows, recall, gpu))
    return _mine(embeddings, k, exact_rows, recall, gpu)


def mine_distinct(
    embeddings: np.ndarray,
    first: np.ndarray,
    k: int,
    exact_rows: int,
    recall: float,
    device: str = "auto",
    smoothing: int = 0,
) -> Mined:
    """``mine_neighbors``, with all copies of an image as one.

    ``first`` (N,) are the positions of the images that rows are copies of, mostly their own. Only those are neighbors,
    and a copy has the neighbors of its first: ten frames of one moment are not each other's ten neighbors.
    """
    distinct, inverse = np.unique(first, return_inverse=True)
    if len(distinct) == len(first):
        return mine_neighbors(embeddings, k, exact_rows, recall, device, smoothing)
    if len(distinct) == 1:
        raise ScanError(f"all {len(first)} images are copies of one; add others, or set data.duplicates to keep")
    mined = mine_neighbors(embeddings[distinct], k, exact_rows, recall, device, smoothing)
    return Mined(distinct[mined.nearest][inverse], mined.similarity[inverse], mined.recall)


def smooth(embeddings: np.ndarray, mined: Mined) -> np.ndarray:
    """The weighted mean of each row and its ``mined`` nearest ones, of unit length: (N,D) float32.

    One step of mean shift. The weights are the positive cosines to the power of 3: alpha query expansion
    (Radenović et al., arXiv 1711.02512), applied to the rows of a database as Arandjelović and Zisserman (2012) do.
    """
    smoothed = np.empty_like(embeddings)
    weights = mined.similarity.clip(min=0) ** ALPHA  # (N,K)
    for start in range(0, len(embeddings), BLOCK):
        rows = slice(start, start + BLOCK)
        total = np.array(embeddings[rows])  # each row's own weight is 1, so no sum is 0
        for nearest, weight in zip(mined.nearest[rows].T, weights[rows].T, strict=True):
            total += weight[:, None] * embeddings[nearest]
        smoothed[rows] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return smoothed


def _mine(embeddings: np.ndarray, k: int, exact_rows: int, recall: float, gpu: Any) -> Mined:
    """``mine_neighbors`` without smoothing."""
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
    """FAISS's memory on a GPU, or None if no GPU is to be used."""
    import faiss

    return faiss.StandardGpuResources() if device != "cpu" and faiss.get_num_gpus() else None


def _others(
    embeddings: np.ndarray, rows: np.ndarray, k: int, index: Any = None, gpu: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and positions (B,k) of the rows of ``embeddings`` nearest to each of ``rows`` (B,), itself excluded."""
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
        few = (found[1] < 0).any(axis=1)  # the visited cells hold fewer rows than are wanted
        if few.any():
            found[0][few], found[1][few] = faiss.knn(queries[few], embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    similarity, nearest = found
    other = nearest != rows[:, None]  # (B,k+1)
    # If a row has more than k exact copies, it may be missing from its own list: then the last entry goes instead.
    other[other.all(axis=1), -1] = False
    return similarity[other].reshape(-1, k), nearest[other].reshape(-1, k)


def _inverted_file(embeddings: np.ndarray, gpu: Any = None) -> Any:
    """An index of all rows whose cells are trained on a sample of them."""
    import faiss

    count, dimensions = embeddings.shape
    cells = 2 ** round(np.log2(min(CELLS * count**0.5, count / 2)))  # at most as many as rows
    quantizer = faiss.IndexFlatIP(dimensions)
    index: Any = faiss.IndexIVFFlat(quantizer, dimensions, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ITERATIONS, ROWS_A_CELL, 1
    index.cp.spherical = True
    # Rows are ordered by their content hash, so every n-th row is a random sample.
    index.train(np.ascontiguousarray(embeddings[:: max(1, count // (cells * ROWS_A_CELL))]))
    if gpu is not None:
        index = faiss.index_cpu_to_gpu(gpu, 0, index)
    for start in range(0, count, BLOCK):
        index.add(embeddings[start : start + BLOCK])
    return index


def _probe(index: Any, embeddings: np.ndarray, k: int, recall: float, gpu: Any = None) -> float:
    """Doubles the number of visited cells until the sample's recall is at least ``recall``. Returns that recall.

    It is lower if the ``GPU_PROBES`` cells of a GPU do not suffice.
    """
    rows = np.arange(0, len(embeddings), max(1, len(embeddings) // SAMPLE))
    least = _others(embeddings, rows, k, gpu=gpu)[0][:, -1:] - 1e-6  # of equal neighbors, either counts as true
    most = index.nlist if gpu is None else min(index.nlist, GPU_PROBES)
    index.nprobe = 1
    while True:
        reached = float((_others(embeddings, rows, k, index)[0] >= least).mean())
        if reached >= recall or index.nprobe >= most:
            return reached
        index.nprobe *= 2
