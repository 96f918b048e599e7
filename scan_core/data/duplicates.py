"""Exact and near duplicates: equal bytes, or equal in all that a small thumbnail shows.

Near means that the perceptual hashes differ in at most 5 of 63 bits, that the thumbnails, each less its mean, differ by
at most 4 of 255 levels on average, and those means by at most 24: the same picture saved again, resized, or a little
brighter.
"""

import math
from collections.abc import Callable

import numpy as np

THUMB = 16  # pixels a side of a thumbnail
NEAR_BITS = 5
NEAR_LEVELS, NEAR_MEAN = 4, 24
BLOCKS, BLOCK_BITS = 6, 10  # hashes that differ in at most 5 bits agree in one of 6 blocks
WINDOW = 256  # where more hashes than this agree in a block, each is compared with as many that follow it
AT_A_TIME = 512  # pairs whose thumbnails are compared: what fits into a core's cache

_SCALE = 1024  # the transform in whole numbers: every machine finds the same hash
_COSINES = np.array(
    [[round(_SCALE * math.cos(math.pi * k * (2 * x + 1) / (2 * THUMB))) for x in range(THUMB)] for k in range(8)],
    dtype=np.int64,
)  # (8,16)


def gray_of(thumbs: np.ndarray) -> np.ndarray:
    """(n,16,16,3) uint8 to (n,16,16) uint8: luma, in whole numbers."""
    weighted = thumbs.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    gray: np.ndarray = ((weighted + 500) // 1000).astype(np.uint8)
    return gray


def perceptual_hash(thumbs: np.ndarray) -> np.ndarray:
    """(n,16,16) uint8 grey to (n,) uint64: which of the 63 lowest cosine coefficients are above their median."""
    lowest = _COSINES @ thumbs.astype(np.int64) @ _COSINES.T  # (n,8,8)
    coefficients = lowest.reshape(len(thumbs), 64)[:, 1:]  # (n,63): the mean brightness tells nothing
    median = np.partition(coefficients, 31, axis=1)[:, 31:32] if len(thumbs) else coefficients[:, :1]
    bits = np.concatenate([np.zeros((len(thumbs), 1), bool), coefficients > median], axis=1)  # (n,64)
    packed: np.ndarray = np.packbits(bits, axis=1).view(">u8").reshape(-1)
    return packed.astype(np.uint64)


def exact_groups(digests: np.ndarray) -> np.ndarray:
    """``digests`` (N,32), sorted, to (N,) int64: the first row with the same digest."""
    changes = np.r_[True, (digests[1:] != digests[:-1]).any(axis=1)] if len(digests) else np.zeros(0, bool)
    first: np.ndarray = np.flatnonzero(changes)[np.cumsum(changes) - 1]
    return first


def near_pairs(hashes: np.ndarray, thumbs: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Pairs of near duplicates, (P,2) int64 positions in ``hashes`` (N,), the smaller first, sorted.

    ``thumbs`` gives the thumbnails (n,16,16,3) of (n,) positions. Time and memory grow with N: of more than ``WINDOW``
    hashes that agree in a block not all pairs are compared, but of equal hashes the first with each.
    """
    count = np.int64(len(hashes))
    _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.flatnonzero(first[same] != np.arange(count))
    found = first[same[equal]] * count + equal  # pairs as one number each
    for block in range(BLOCKS):
        shift = np.uint64(block * BLOCK_BITS)
        turned = (hashes << shift) | (hashes >> (np.uint64(64) - shift)) if block else hashes
        order = np.argsort(turned, kind="stable")
        key = turned[order] >> np.uint64(64 - BLOCK_BITS)
        start, parts = np.arange(len(order)), [found]
        for step in range(1, WINDOW + 1):
            start = start[start + step < len(order)]
            start = start[key[start] == key[start + step]]
            if not len(start):
                break
            first, second = order[start], order[start + step]
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= NEAR_BITS
            parts.append(np.minimum(first, second)[near] * count + np.maximum(first, second)[near])
        found = np.unique(np.concatenate(parts))
    pairs: np.ndarray = np.stack(np.divmod(found, max(count, np.int64(1))), axis=1)
    close: list[np.ndarray] = [
        _alike(thumbs(part[:, 0]), thumbs(part[:, 1])) for part in np.array_split(pairs, len(pairs) // AT_A_TIME + 1)
    ]
    pairs = pairs[np.concatenate(close)]
    return pairs


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) bool: whether thumbnails (n,16,16,3) differ by little. In whole numbers, as the hash is."""
    values = math.prod(first.shape[1:])
    flat = [each.reshape(len(each), values).astype(np.int32) for each in (first, second)]  # (n,768)
    total = [each.sum(axis=1, keepdims=True, dtype=np.int32) for each in flat]
    differ = np.abs((flat[0] - flat[1]) * values - (total[0] - total[1])).sum(axis=1, dtype=np.int32)  # < 2**29
    alike: np.ndarray = differ <= NEAR_LEVELS * values**2
    alike &= np.abs(total[0] - total[1])[:, 0] <= NEAR_MEAN * values
    return alike


def joining(count: int, pairs: np.ndarray) -> np.ndarray:
    """Those of ``pairs`` (P,2) that link what the ones before them do not: fewer than rows, and the same groups.

    Kruskal's: the spanning forest in which an earlier pair weighs less.
    """
    if not len(pairs):
        return pairs
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    first, second = pairs.min(axis=1), pairs.max(axis=1)
    _, earliest = np.unique(first * np.int64(count) + second, return_index=True)  # equal entries would be added up
    weights = (earliest + 1).astype(np.float64)
    forest = minimum_spanning_tree(coo_array((weights, (first[earliest], second[earliest])), (count, count)).tocsr())
    kept: np.ndarray = pairs[np.sort(forest.data).astype(np.int64) - 1]
    return kept


def rows_to_keep(count: int, pairs: np.ndarray) -> np.ndarray:
    """(count,) bool: no two of ``pairs`` (P,2; the smaller first) kept, decided from the first row on."""
    keep = np.ones(count, dtype=bool)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    first, start = np.unique(pairs[:, 0], return_index=True)
    for row, others in zip(first.tolist(), np.split(pairs[:, 1], start[1:]), strict=True) if len(pairs) else ():
        if keep[row]:
            keep[others] = False
    return keep
