"""Spectral clustering of the neighbor graph: against loops, on groups that are plain, and twice."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from scan_core.clustering.spectral import eigenvectors, merged, modularity, shared_neighbors, spectral_clusters


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
    both = spectral_clusters(mined(points, 6), 3, seed=1)
    for found, again in zip(both, spectral_clusters(mined(points, 6), 3, seed=1), strict=True):
        assert found.dtype == np.int64
        assert one_cluster_per_group(found, labels)
        assert np.array_equal(again, found)


def test_eigenvalues_fall_from_one_and_the_vectors_are_those_of_the_whole_matrix():
    neighbors = mined(groups((20, 15))[0], 4)
    values, vectors = eigenvectors(neighbors, 5, seed=0)
    weights = shared_neighbors(neighbors).toarray().astype(float)
    extra = 0.01 * weights.sum(axis=1).mean()
    weights += extra / len(weights)
    root = 1 / np.sqrt(weights.sum(axis=1))
    whole = root[:, None] * weights * root
    np.testing.assert_allclose(values, np.linalg.eigvalsh(whole)[::-1][:5], atol=1e-3)
    assert values[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(whole @ vectors, values * vectors, atol=2e-2)


def edges(count, pairs):
    """A symmetric graph; ``pairs`` are (a, b, weight)."""
    dense = np.zeros((count, count))
    for a, b, weight in pairs:
        dense[a, b] = dense[b, a] = weight
    return csr_array(dense)


def test_clusters_with_the_strongest_links_for_their_size_are_merged_first():
    """Three clusters of two: 0 and 1 have the heavier link, but 1 and 2 have less of their own."""
    graph = edges(6, [(0, 1, 10), (2, 3, 10), (4, 5, 1), (1, 2, 3), (3, 4, 2)])
    given = np.array([5, 5, 7, 7, 9, 9])
    links = {(0, 1): 3 / np.sqrt(23 * 25), (1, 2): 2 / np.sqrt(25 * 4)}
    assert links[1, 2] > links[0, 1]
    assert merged(graph, given, 2).tolist() == [0, 0, 1, 1, 1, 1]
    assert merged(graph, given, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert merged(graph, given, 1).tolist() == [0] * 6


def test_merging_goes_on_with_the_links_of_what_was_merged():
    graph = edges(4, [(0, 1, 5), (0, 2, 3), (1, 2, 3), (2, 3, 4)])
    assert merged(graph, np.arange(4), 2).tolist() == [0, 0, 1, 1]
    assert merged(graph, np.arange(4), 3).tolist() == [0, 1, 2, 2]


def test_modularity_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 3, (12, 12))
    dense = np.triu(dense, 1) + np.triu(dense, 1).T
    clusters, total, degrees = rng.integers(0, 3, 12), dense.sum(), dense.sum(axis=1)
    wanted = sum(
        dense[a, b] / total - degrees[a] * degrees[b] / total**2
        for a in range(12) for b in range(12) if clusters[a] == clusters[b]
    )  # fmt: skip
    assert modularity(csr_array(dense.astype(float)), clusters) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_merging_is_that_of_links_counted_anew_after_each_merge(seed):
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.random((24, 24)), 1)
    dense += dense.T
    labels = np.arange(24) % 9
    found = merged(csr_array(dense), labels, 3)
    while len(names := np.unique(labels)) > 3:
        members = (labels[:, None] == names).astype(float)
        links = members.T @ dense @ members
        root = np.sqrt(links.sum(axis=1))
        strength = links / np.outer(root, root)
        np.fill_diagonal(strength, -1)
        one, other = np.unravel_index(strength.argmax(), strength.shape)
        labels = np.where(labels == names[other], names[one], labels)
    assert len(set(zip(labels.tolist(), found.tolist(), strict=True))) == 3
