"""Exact duplicates have equal bytes, near duplicates have nearly equal thumbnails.

Nearly equal means four things: the perceptual hashes differ in at most 5 of 63 bits; the means of the thumbnails differ
by at most 24 of 255 levels; what else differs is at most 4 levels on average, and at most 10 in each part of 3 x 3 of
the 32 x 32 pixels. Such an image is the same picture saved again, resized, or a little brighter. A frame of a fixed
camera with a small animal is another picture than the frame without it.
"""

import math
from collections.abc import Callable

import numpy as np

THUMB = 32  # pixels per side of a thumbnail; of a smaller image nobody can tell what is nearly equal
HASHED = 16  # pixels per side of what is hashed
NEAR_BITS = 5
NEAR_LEVELS, NEAR_MEAN = 4, 24
NEAR_PART = 10  # levels, in each part of PART x PART pixels
PART = 3
BLOCKS, BLOCK_BITS = 6, 10  # hashes that differ in at most 5 bits agree in at least one of 6 blocks
WINDOW = 256  # of the hashes that agree in a block, each is compared with at most this many that follow it
PAIRS_AT_A_TIME = 128  # whose thumbnails are compared: they fit into a core's cache

_SCALE = 1024  # the transform is in integers, so that every machine finds the same hash
_COSINES = np.array(
    [[round(_SCALE * math.cos(math.pi * k * (2 * x + 1) / (2 * HASHED))) for x in range(HASHED)] for k in range(8)],
    dtype=np.int64,
)  # (8,16)


def gray_of(thumbs: np.ndarray) -> np.ndarray:
    """Luma, in integer arithmetic: (N,32,32,3) uint8 to (N,32,32) uint8."""
    weighted = thumbs.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    gray: np.ndarray = ((weighted + 500) // 1000).astype(np.uint8)
    return gray


def perceptual_hash(thumbs: np.ndarray) -> np.ndarray:
    """Which of the 63 lowest cosine coefficients are above their median: (N,32,32) uint8 gray to (N,) uint64."""
    fold = THUMB // HASHED
    hashed = thumbs.reshape(-1, HASHED, fold, HASHED, fold).sum(axis=(2, 4), dtype=np.int64)  # (N,16,16)
    lowest = _COSINES @ hashed @ _COSINES.T  # (N,8,8)
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

    ``thumbs`` returns the thumbnails (P,32,32,3) of P positions. Time and memory are linear in N: if more than
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
    """Whether thumbnails (P,32,32,3) are nearly equal, (P,) bool. In integers, as the hash is."""
    values = math.prod(first.shape[1:])
    difference = first.astype(np.int16) - second  # (P,32,32,3)
    total = difference.sum(axis=(1, 2, 3), dtype=np.int32)
    mean = np.round(total / values).astype(np.int16)
    difference -= mean[:, None, None, None]
    alike: np.ndarray = np.abs(total) <= NEAR_MEAN * values
    alike &= np.abs(difference).sum(axis=(1, 2, 3), dtype=np.int32) <= NEAR_LEVELS * values
    rows = difference[:, :-2] + difference[:, 1:-1] + difference[:, 2:]
    parts = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]  # (P,30,30,3): they overlap
    alike &= np.abs(parts).max(axis=(1, 2, 3)) <= NEAR_PART * PART**2
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


def first_of_copies(count: int, equal: np.ndarray, near: np.ndarray) -> np.ndarray:
    """For each of ``count`` rows the row that it is a copy of, or itself, (count,) int64.

    ``equal`` and ``near`` (P,2) are pairs, the smaller row first; near ones are of rows that equal no earlier row.
    Rows are decided in order: a row that is no copy takes all its partners that are none yet. So each copy is alike
    its first: a chain of pictures that change little by little is not one set.
    """
    first_of = np.arange(count)
    near = near[np.argsort(near[:, 0], kind="stable")]
    rows, start = np.unique(near[:, 0], return_index=True)
    for row, others in zip(rows.tolist(), np.split(near[:, 1], start[1:]), strict=True) if len(near) else ():
        if first_of[row] == row:
            free = others[first_of[others] == others]
            first_of[free] = row
    first_of[equal[:, 1]] = first_of[equal[:, 0]]
    return first_of
