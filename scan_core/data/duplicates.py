"""Exact duplicates have equal bytes, near duplicates have nearly equal thumbnails.

Nearly equal means three things: the perceptual hashes differ in at most 5 of 63 bits; the thumbnails, each minus its
mean, differ by at most 4 of 255 levels on average; the means differ by at most 24. Such an image is the same picture
saved again, resized, or a little brighter.
"""

import math
from collections.abc import Callable

import numpy as np

THUMB = 16  # pixels per side of a thumbnail
NEAR_BITS = 5
NEAR_LEVELS, NEAR_MEAN = 4, 24
BLOCKS, BLOCK_BITS = 6, 10  # hashes that differ in at most 5 bits agree in at least one of 6 blocks
WINDOW = 256  # of the hashes that agree in a block, each is compared with at most this many that follow it
PAIRS_AT_A_TIME = 512  # whose thumbnails are compared: they fit into a core's cache

_SCALE = 1024  # the transform is in integers, so that every machine finds the same hash
_COSINES = np.array(
    [[round(_SCALE * math.cos(math.pi * k * (2 * x + 1) / (2 * THUMB))) for x in range(THUMB)] for k in range(8)],
    dtype=np.int64,
)  # (8,16)


def gray_of(thumbs: np.ndarray) -> np.ndarray:
    """Luma, in integer arithmetic: (N,16,16,3) uint8 to (N,16,16) uint8."""
    weighted = thumbs.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    gray: np.ndarray = ((weighted + 500) // 1000).astype(np.uint8)
    return gray


def perceptual_hash(thumbs: np.ndarray) -> np.ndarray:
    """Which of the 63 lowest cosine coefficients are above their median: (N,16,16) uint8 gray to (N,) uint64."""
    lowest = _COSINES @ thumbs.astype(np.int64) @ _COSINES.T  # (N,8,8)
    coefficients = lowest.reshape(len(thumbs), 64)[:, 1:]  # (N,63), without the mean brightness
    median = np.partition(coefficients, 31, axis=1)[:, 31:32] if len(thumbs) else coefficients[:, :1]
    bits = np.concatenate([np.zeros((len(thumbs), 1), bool), coefficients > median], axis=1)  # (N,64)
    packed: np.ndarray = np.packbits(bits, axis=1).view(">u8").reshape(-1)
    return packed.astype(np.uint64)


def exact_groups(digests: np.ndarray) -> np.ndarray:
    """For each row the first row with the same digest, (N,) int64. ``digests`` (N,32) are sorted."""
    changes = np.r_[True, (digests[1:] != digests[:-1]).any(axis=1)] if len(digests) else np.zeros(0, bool)
    first: np.ndarray = np.flatnonzero(changes)[np.cumsum(changes) - 1]
    return first


def near_pairs(hashes: np.ndarray, thumbs: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Pairs of near duplicates, (P,2) int64 positions in ``hashes`` (N,), the smaller first, sorted.

    ``thumbs`` returns the thumbnails (P,16,16,3) of P positions. Time and memory are linear in N: if more than
    ``WINDOW`` hashes agree in a block, not all their pairs are compared. But the first of equal hashes is compared with
    each of them.
    """
    count = np.int64(len(hashes))
    _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.flatnonzero(first[same] != np.arange(count))
    found = first[same[equal]] * count + equal  # each pair is one number
    for block in range(BLOCKS):
        shift = np.uint64(block * BLOCK_BITS)
        rotated = (hashes << shift) | (hashes >> (np.uint64(64) - shift)) if block else hashes
        order = np.argsort(rotated, kind="stable")
        key = rotated[order] >> np.uint64(64 - BLOCK_BITS)
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
    batches = np.array_split(pairs, len(pairs) // PAIRS_AT_A_TIME + 1)
    close: np.ndarray = pairs[np.concatenate([_alike(thumbs(batch[:, 0]), thumbs(batch[:, 1])) for batch in batches])]
    return close


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails (P,16,16,3) are nearly equal, (P,) bool. In integers, as the hash is."""
    values = math.prod(first.shape[1:])
    flat = [each.reshape(len(each), values).astype(np.int32) for each in (first, second)]  # (P,768)
    total = [each.sum(axis=1, keepdims=True, dtype=np.int32) for each in flat]
    difference = np.abs((flat[0] - flat[1]) * values - (total[0] - total[1])).sum(axis=1, dtype=np.int32)  # < 2**29
    alike: np.ndarray = difference <= NEAR_LEVELS * values**2
    alike &= np.abs(total[0] - total[1])[:, 0] <= NEAR_MEAN * values
    return alike


def joining(count: int, pairs: np.ndarray) -> np.ndarray:
    """A spanning forest of ``pairs`` (P,2): they make the same groups of the ``count`` rows, in fewer pairs than rows.

    It is Kruskal's, with an earlier pair weighing less: a pair stays if the pairs before it do not connect its rows.
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
    """Which rows to keep, (count,) bool, so that no pair of ``pairs`` (P,2) is kept whole.

    Rows are decided in order: a kept row removes all its partners. Each pair has its smaller row first.
    """
    keep = np.ones(count, dtype=bool)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    first, start = np.unique(pairs[:, 0], return_index=True)
    for row, others in zip(first.tolist(), np.split(pairs[:, 1], start[1:]), strict=True) if len(pairs) else ():
        if keep[row]:
            keep[others] = False
    return keep
