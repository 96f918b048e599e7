"""Mining the nearest neighbours of every embedding (paper, section 2.1), exactly, with FAISS."""

import numpy as np

from scan_core.errors import ScanError


def mine_neighbors(embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's ``k`` most similar other rows: (N,k) int64, nearest first, and their cosines (N,k) float32.

    ``embeddings`` is (N,D) float32 of unit rows. A row is never its own neighbour, also where others equal it.
    Raises ``ScanError`` if ``k`` others do not exist or the rows are not finite and of unit length.
    """
    import faiss

    count = len(embeddings)
    if k >= count:
        raise ScanError(f"neighbors.k is {k}, but there are {count} images; at most {count - 1} is allowed")
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):
        raise ScanError("the embeddings are not all finite and of unit length; run embed again")
    if faiss.get_num_gpus():
        similarity, found = faiss.knn_gpu(
            faiss.StandardGpuResources(), embeddings, embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT
        )
    else:
        similarity, found = faiss.knn(embeddings, embeddings, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    other = found != np.arange(count)[:, None]  # (N,k+1)
    # With more than k exact copies a row may be missing from its own list: then its last entry goes instead.
    other[other.all(axis=1), -1] = False
    return found[other].reshape(count, k).astype(np.int64), similarity[other].reshape(count, k)
