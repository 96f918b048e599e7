"""A map of embeddings in two dimensions: neighbors stay near, others are pushed apart (UMAP, arXiv 1802.03426).

It is for looking: no figure and no choice depends on it.
"""

import numpy as np
import torch
from torch import Tensor

EPOCHS, NEIGHBORS, OTHERS = 200, 10, 5  # passes over all images; whom each is drawn to, and pushed from, in one of them
MANY, EPOCHS_OF_MANY = 20_000, 100
MOST, FEWEST_EPOCHS = (
    60_000,
    10,
)  # of more images the passes become fewer, so that the time stays what it is for so many
RATE = 1.0  # of the first epoch, falling to 0
A, B = 1.577, 0.895  # of the curve 1 / (1 + a d^2b), fitted to a smallest distance of 0.1
STEP = 4.0  # most that an image moves by one other


def layout(embeddings: np.ndarray, nearest: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,2) float32 in [0,1] for ``embeddings`` (N,D) float32, rows of length 1, and their ``nearest`` (N,K), K ≥ 1.

    It begins with the first two principal components. The gradient is that of UMAP's cross-entropy with every neighbor
    weighted alike; each epoch moves all images at once. One thread does it: its steps are too short to be shared, and
    sums would depend on how many threads there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _layout(embeddings, nearest, seed)
    finally:
        torch.set_num_threads(threads)


def joined_neighbors(train: np.ndarray, val: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(N+M,K) positions among the images of train and val together: whom the map draws each to.

    ``train`` (N,K) and ``val`` (M,K) are neighbors within the splits, ``links`` (M,L) those of val in train, which take
    the place of half of val's: without them there would be two maps, one over the other.
    """
    k = min(NEIGHBORS, train.shape[1], val.shape[1])
    linked = min(-(-k // 2), links.shape[1])
    of_val = np.concatenate([links[:, :linked], val[:, : k - linked] + len(train)], axis=1)
    return np.concatenate([train[:, :k], of_val])


def _layout(embeddings: np.ndarray, nearest: np.ndarray, seed: int) -> np.ndarray:
    points, count = torch.from_numpy(embeddings), len(embeddings)
    generator = torch.Generator().manual_seed(seed)
    centered = points - points.mean(dim=0)
    basis = torch.linalg.eigh(centered.T @ centered)[1][:, -2:]  # (D,2)
    place = centered @ basis
    place = 10 * place / place.abs().max().clamp(min=1e-6)
    place += 1e-3 * torch.randn(place.shape, generator=generator)  # images that are equal part
    near = torch.from_numpy(np.ascontiguousarray(nearest[:, :NEIGHBORS]))
    one = torch.arange(count).repeat_interleave(near.shape[1])
    other = near.flatten()
    epochs = EPOCHS if count <= MANY else max(FEWEST_EPOCHS, EPOCHS_OF_MANY * MOST // max(count, MOST))
    for epoch in range(epochs):
        moved = torch.zeros_like(place)
        pull = _pull(place[one] - place[other]).clamp_(-STEP, STEP)
        moved.index_add_(0, one, pull)
        moved.index_add_(0, other, -pull)
        for _ in range(OTHERS):
            away = place - place[torch.randint(count, (count,), generator=generator)]
            moved += near.shape[1] * _push(away).clamp_(-STEP, STEP) / OTHERS
        place += RATE * (1 - epoch / epochs) * moved / near.shape[1]
    low, high = place.amin(dim=0), place.amax(dim=0)
    found: np.ndarray = ((place - low) / (high - low).clamp(min=1e-6)).numpy()
    return found


def _pull(apart: Tensor) -> Tensor:
    """(E,2) differences to the step toward the neighbor."""
    squared = apart.square().sum(dim=1, keepdim=True)
    strength = 2 * A * B * squared.clamp(min=1e-12).pow(B - 1) / (1 + A * squared.pow(B))
    return -strength * apart


def _push(apart: Tensor) -> Tensor:
    """(E,2) differences to the step away from an image that is no neighbor."""
    squared = apart.square().sum(dim=1, keepdim=True)
    return 2 * B / ((0.001 + squared) * (1 + A * squared.pow(B))) * apart
