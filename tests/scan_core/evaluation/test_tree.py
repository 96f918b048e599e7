"""The tree of groups against scipy's average linkage over all pairs of images."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from scan_core.evaluation.tree import merge_tree


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_single_images_merge_as_scipy_merges_them():
    rows = unit(np.random.default_rng(0).normal(size=(12, 5)))
    merges = merge_tree(rows, np.arange(12), 12)
    wanted = linkage(pdist(rows.astype(np.float64), "cosine"), "average")
    assert [sorted((each.first, each.second)) for each in merges] == [sorted(row) for row in wanted[:, :2].tolist()]
    np.testing.assert_allclose([1 - each.similarity for each in merges], wanted[:, 2], atol=1e-6)
    assert [each.images for each in merges] == wanted[:, 3].tolist()


def test_a_merge_is_as_similar_as_the_mean_of_all_pairs():
    rng = np.random.default_rng(1)
    rows, clusters = unit(rng.normal(size=(60, 4))), rng.integers(0, 3, 60)
    first, second = merge_tree(rows, clusters, 3)
    pairs = rows.astype(np.float64) @ rows.astype(np.float64).T
    of = {node: clusters == node for node in range(3)}
    assert first.similarity == pytest.approx(pairs[of[first.first]][:, of[first.second]].mean(), abs=1e-6)
    of[3] = of[first.first] | of[first.second]
    assert {second.first, second.second} == {3, *range(3)} - {first.first, first.second}
    assert second.similarity == pytest.approx(pairs[of[second.first]][:, of[second.second]].mean(), abs=1e-6)
    assert second.images == 60


def test_empty_groups_are_in_no_merge_and_one_group_has_none():
    rows = unit(np.random.default_rng(2).normal(size=(9, 4)))
    merges = merge_tree(rows, np.array([0, 0, 0, 4, 4, 4, 6, 6, 6]), 8)
    assert {node for each in merges for node in (each.first, each.second)} == {0, 4, 6, 8}
    assert merge_tree(rows, np.full(9, 3), 8) == []
