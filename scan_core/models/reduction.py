"""One matrix from the features of one or several spaces: standardized, side by side, reduced by PCA, of unit length."""

from dataclasses import dataclass

import numpy as np

BLOCK = 8_192  # rows at a time: memory grows as N only by the result
ROWS = 64  # of each matrix product


def padded(rows: np.ndarray) -> np.ndarray:
    """Up to ``ROWS`` rows (n,D), and zeros below them: (ROWS,D).

    A product of matrices adds in an order that depends on their shapes. In products of one shape, an image's numbers
    are the same to the bit whatever other images are looked at with it.
    """
    return rows if len(rows) == ROWS else np.pad(rows, ((0, ROWS - len(rows)), (0, 0)))


@dataclass(frozen=True)
class Reduction:
    """An affine map from features (N,D) to (N,d), whose rows are then brought to unit length."""

    mean: np.ndarray  # (D,) float32
    scale: np.ndarray  # (D,) float32: the standard deviations
    basis: np.ndarray  # (D,d) float32: the first principal components

    def __call__(self, features: list[np.ndarray]) -> np.ndarray:
        """Features (N,D_k) of each space to (N,d) float32 rows of length 1."""
        reduced = np.empty((len(features[0]), self.basis.shape[1]), np.float32)
        for start in range(0, len(reduced), ROWS):
            rows = slice(start, start + ROWS)
            joined = np.concatenate([space[rows] for space in features], axis=1)
            block = (padded((joined - self.mean) / self.scale) @ self.basis)[: len(joined)]
            reduced[rows] = block / np.linalg.norm(block, axis=1, keepdims=True).clip(min=1e-12)
        return reduced


def fit_reduction(features: list[np.ndarray], dimensions: int) -> Reduction:
    """The reduction to at most ``dimensions``, fitted on the features (N,D_k) of each space.

    A dimension that is constant stays 0. The sign of a component is that of its largest entry, so that every machine
    finds the same.
    """
    count, size = len(features[0]), sum(space.shape[1] for space in features)
    sums, gram = np.zeros(size), np.zeros((size, size))
    center = np.concatenate([space[:BLOCK].mean(axis=0, dtype=np.float64) for space in features])  # near the mean
    for start in range(0, count, BLOCK):
        block = np.concatenate([space[start : start + BLOCK] for space in features], axis=1) - center
        sums += block.sum(axis=0)
        gram += block.T @ block
    offset = sums / count
    covariance = gram / count - np.outer(offset, offset)
    deviation = np.sqrt(covariance.diagonal().clip(min=0))
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    correlation = covariance / np.outer(scale, scale)
    basis = np.linalg.eigh(correlation)[1][:, ::-1][:, : min(dimensions, size)]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    return Reduction((center + offset).astype(np.float32), scale.astype(np.float32), basis.astype(np.float32))
