"""Spectral clustering of the neighbor graph: against loops, on groups that are plain, and twice."""

import numpy as np

from scan_core.clustering.spectral import shared_neighbors, spectral_clusters


def mined(points, k):
    similarity = points @ points.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def groups(sizes, dimensions=8, spread=0.25, seed=0):
    """Unit rows around one axis per group, and the group of each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = np.eye(dimensions)[labels] + spread * rng.normal(size=(len(labels), dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def one_cluster_per_group(found, labels):
    return len({*zip(labels.tolist(), found.tolist(), strict=True)}) == len(set(labels.tolist()))


def test_an_edge_weighs_as_much_as_the_share_of_common_neighbors():
    neighbors = mined(groups((9, 7))[0], 3)
    weights = shared_neighbors(neighbors).toarray()
    sets = [{row, *neighbors[row].tolist()} for row in range(16)]
    for a in range(16):
        for b in range(16):
            joined = a != b and (b in neighbors[a] or a in neighbors[b])
            wanted = len(sets[a] & sets[b]) / 4 if joined else 0
            assert abs(weights[a, b] - wanted) < 1e-6, (a, b)


def test_groups_of_unequal_sizes_are_found_and_twice_the_same():
    points, labels = groups((40, 12, 25))
    found = spectral_clusters(mined(points, 6), 3, seed=1)
    assert found.dtype == np.int64
    assert one_cluster_per_group(found, labels)
    assert np.array_equal(spectral_clusters(mined(points, 6), 3, seed=1), found)
