"""The map: neighbors are near, groups apart, and it is the same each time."""

import numpy as np
import pytest
import torch

from scan_core.clustering.neighbors import mine_neighbors
from scan_core.evaluation.layout import A, B, _pull, _push, joined_neighbors, layout


def groups(count=90, number=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % number
    points = np.eye(number, 16)[labels] + rng.normal(0, 0.15, (count, 16))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def test_groups_are_apart_and_the_map_fills_the_unit_square():
    points, labels = groups()
    near = mine_neighbors(points, 5, len(points), 1.0, "cpu").nearest
    places = layout(points, near)
    assert places.dtype == np.float32 and places.min() == 0 and places.max() == 1
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    same = labels[:, None] == labels[None]
    assert distance[same].mean() < 0.5 * distance[~same].mean()
    assert np.array_equal(places, layout(points, near)) and not np.array_equal(places, layout(points, near, seed=1))


def test_images_that_are_equal_are_placed_all_the_same():
    points = np.tile(np.eye(1, 4, dtype=np.float32), (6, 1))
    places = layout(points, (np.arange(6)[:, None] + [1, 2]) % 6)
    assert np.isfinite(places).all() and places.shape == (6, 2)


def test_steps_are_the_gradient_of_the_cross_entropy():
    apart = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    chance = 1 / (1 + A * apart.square().sum(1).pow(B))
    (pulled,) = torch.autograd.grad(-chance.log().sum(), apart, retain_graph=True)
    torch.testing.assert_close(_pull(apart), -pulled)
    (pushed,) = torch.autograd.grad(-(1 - chance).log().sum(), apart)
    torch.testing.assert_close(_push(apart), -pushed, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("count", [3, 4])
def test_a_few_images_are_enough(count):
    points, _ = groups(count)
    assert np.isfinite(layout(points, (np.arange(count)[:, None] + [1]) % count)).all()


def test_two_splits_whose_neighbors_are_their_own_make_one_map():
    points, labels = groups(120)
    train, val = np.arange(80), np.arange(80, 120)
    near = [mine_neighbors(points[rows], 6, 120, 1.0, "cpu").nearest for rows in (train, val)]
    links = np.argsort(-(points[val] @ points[train].T), axis=1)[:, :4]
    joined = joined_neighbors(*near, links)
    assert joined.shape == (120, 6) and joined[:80].max() < 80
    assert (joined[80:, :3] == links[:, :3]).all() and (joined[80:, 3:] == near[1][:, :3] + 80).all()
    places = layout(points, joined)
    middles = [[places[rows][labels[rows] == label].mean(axis=0) for label in range(3)] for rows in (train, val)]
    distance = np.linalg.norm(np.array(middles[0])[:, None] - np.array(middles[1])[None], axis=2)
    assert (distance.argmin(axis=1) == np.arange(3)).all()


def test_the_number_of_threads_stays_and_does_not_count():
    points, _ = groups()
    near, before = mine_neighbors(points, 5, len(points), 1.0, "cpu").nearest, torch.get_num_threads()
    first = layout(points, near)
    torch.set_num_threads(1 if before > 1 else 2)
    again = layout(points, near)
    torch.set_num_threads(before)
    assert np.array_equal(first, again)
