"""Mined neighbours: brute force, and a row that is never its own neighbour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.errors import ScanError
from scan_core.neighbors import mine_neighbors


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(count, dimensions=6, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, dimensions)))


def by_brute_force(embeddings, k):
    """For each row the cosine with every other, sorted."""
    found = []
    for row, embedding in enumerate(embeddings):
        others = [(float(embedding @ embeddings[i]), i) for i in range(len(embeddings)) if i != row]
        found.append(sorted(others, reverse=True)[:k])
    return found


@pytest.mark.parametrize(("count", "k"), [(30, 5), (12, 11), (2, 1), (200, 20)])
def test_neighbors_are_those_of_brute_force(count, k):
    embeddings = random_rows(count)
    found, similarity = mine_neighbors(embeddings, k)
    wanted = by_brute_force(embeddings, k)
    assert found.dtype == np.int64
    assert similarity.dtype == np.float32
    assert found.shape == similarity.shape == (count, k)
    assert found.tolist() == [[index for _, index in row] for row in wanted]
    np.testing.assert_allclose(similarity, [[cosine for cosine, _ in row] for row in wanted], atol=1e-5)


def test_neighbors_come_nearest_first():
    _, similarity = mine_neighbors(random_rows(50), 10)
    assert (np.diff(similarity, axis=1) <= 0).all()


def assert_valid(embeddings, k):
    """No row is its own neighbour or has one twice; each has the k highest cosines, whichever of equals they are."""
    found, similarity = mine_neighbors(embeddings, k)
    assert found.shape == (len(embeddings), k)
    wanted = by_brute_force(embeddings, k)
    for row in range(len(embeddings)):
        assert row not in found[row]
        assert len(set(found[row].tolist())) == k
        assert ((found[row] >= 0) & (found[row] < len(embeddings))).all()
        np.testing.assert_allclose(similarity[row], [cosine for cosine, _ in wanted[row]], atol=1e-5)
        np.testing.assert_allclose(embeddings[found[row]] @ embeddings[row], similarity[row], atol=1e-5)


@pytest.mark.parametrize("copies", [2, 5, 6, 7, 20])
def test_a_row_is_not_its_own_neighbor_where_others_equal_it(copies):
    """Fewer, as many and more copies than the 5 neighbours: then a row may be missing from its own list."""
    embeddings = np.concatenate([np.repeat(random_rows(3), copies, axis=0), random_rows(10, seed=1)])
    assert_valid(embeddings[np.random.default_rng(0).permutation(len(embeddings))], 5)


def test_rows_that_are_all_equal_have_other_rows_as_neighbors():
    assert_valid(np.repeat(random_rows(1), 12, axis=0), 4)


def test_with_all_others_as_neighbors_each_is_there_once():
    embeddings = np.repeat(random_rows(3), 4, axis=0)
    found, _ = mine_neighbors(embeddings, 11)
    for row in range(12):
        assert sorted(found[row].tolist()) == [other for other in range(12) if other != row]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=4, max_size=25), st.integers(1, 3))
def test_self_is_excluded_whatever_the_copies(pattern, k):
    assert_valid(random_rows(5)[pattern], k)


@pytest.mark.parametrize("k", [5, 6, 50])
def test_too_many_neighbors_are_an_error_that_names_the_setting(k):
    with pytest.raises(ScanError, match=rf"neighbors\.k is {k}, but there are 5 images; at most 4 is allowed"):
        mine_neighbors(random_rows(5), k)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_rows_that_are_not_finite_or_not_of_unit_length_are_an_error(value):
    embeddings = random_rows(5)
    embeddings[3] = value
    with pytest.raises(ScanError, match="embeddings are not all finite and of unit length"):
        mine_neighbors(embeddings, 2)
