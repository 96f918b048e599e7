"""What answers say of images that were not asked about."""

import numpy as np
import pytest

from scan_core.clustering.answers import KIND, OF_EACH, by_kind, learn_answers, smoothed
from scan_core.clustering.neighbors import mine_neighbors
from scan_core.clustering.spectral import GRAPH_NEIGHBORS, shared_neighbors


def kinds(count=240, number=4, noise=0.15, seed=0):
    """Unit vectors (N,16) of ``number`` kinds."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(count) % number)
    points = np.eye(number, 16)[kind] + rng.normal(0, noise, (count, 16))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), kind


GROUP_OF = np.array([1, 1, 2, 3])  # kinds 0 and 1 are in one group


def test_a_kind_follows_the_images_that_were_moved_and_no_other_does():
    points, kind = kinds()
    groups, rows = GROUP_OF[kind], np.flatnonzero(kind == 1)[:20]
    after = learn_answers(points, groups, np.ones(240), rows, np.full(20, 2))
    rest = np.setdiff1d(np.flatnonzero(kind == 1), rows)
    assert (after[rest] == 2).mean() > 0.6 and (after[rows] == 2).all()
    others = kind != 1
    assert (after[others] != groups[others]).mean() <= 0.02


def test_too_few_moves_are_no_kind_and_answers_that_change_nothing_move_nothing():
    points, kind = kinds()
    groups, rows = GROUP_OF[kind], np.flatnonzero(kind == 1)[: KIND - 1]
    after = learn_answers(points, groups, np.ones(240), rows, np.full(KIND - 1, 2))
    assert np.flatnonzero(after != groups).tolist() == rows.tolist()
    confirmed = np.flatnonzero(kind == 0)[:9]
    assert np.array_equal(learn_answers(points, groups, np.ones(240), confirmed, np.ones(9, int)), groups)
    assert np.array_equal(learn_answers(points, groups, np.ones(240), rows[:0], rows[:0]), groups)


def test_an_image_that_is_more_like_one_that_was_left_stays():
    points, kind = kinds(noise=0.35)
    groups, members = GROUP_OF[kind], np.flatnonzero(kind == 1)
    moved = members[:8]
    followed = np.flatnonzero(by_kind(points, groups, moved, np.full(8, 2)) != groups)
    followed = np.setdiff1d(followed, moved)
    left = followed[0]
    rows, answers = np.append(moved, left), np.append(np.full(8, 2), 1)
    after = learn_answers(points, groups, np.ones(240), rows, answers)
    assert after[left] == 1
    points[followed[1]] = points[left]  # its copy
    assert learn_answers(points, groups, np.ones(240), rows, answers)[followed[1]] == 1


def test_answers_of_all_groups_say_what_the_groups_are():
    """The model has mixed them up; three answers of each group and more mend nearly all."""
    points, kind = kinds(noise=0.2)
    groups = np.where(np.random.default_rng(1).random(240) < 0.4, (kind + 1) % 4, kind) + 1
    rows = np.concatenate([np.flatnonzero(kind == each)[:6] for each in range(4)])
    after = learn_answers(points, groups, np.full(240, 0.5), rows, kind[rows] + 1)
    rest = np.setdiff1d(np.arange(240), rows)
    assert (groups[rest] == kind[rest] + 1).mean() < 0.7 and (after[rest] == kind[rest] + 1).mean() > 0.95
    few = rows[: OF_EACH * 4 - 1]
    assert (learn_answers(points, groups, np.full(240, 0.5), few, kind[few] + 1)[rest] == kind[rest] + 1).mean() < 0.8


def test_smoothing_is_the_mean_of_an_image_and_its_neighbors_by_hand():
    points, _ = kinds(count=60)
    near = mine_neighbors(points, GRAPH_NEIGHBORS, 60, 1.0, "cpu").nearest
    graph = shared_neighbors(near).toarray()
    degree = graph.sum(axis=1)
    mixed = points + 2 * (graph / np.sqrt(degree[:, None] * degree[None])) @ points
    np.testing.assert_allclose(smoothed(points), mixed / np.linalg.norm(mixed, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_a_group_of_which_all_images_were_moved_is_left_empty(count):
    points, kind = kinds(count=4 * count)
    groups = kind + 1
    rows = np.flatnonzero(kind == 0)
    after = learn_answers(points, groups, np.ones(len(kind)), np.repeat(rows, 1), np.full(count, 2))
    assert (after[rows] == 2).all() and np.array_equal(np.delete(after, rows), np.delete(groups, rows))
