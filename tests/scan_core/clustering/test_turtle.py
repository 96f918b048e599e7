"""TURTLE on stored embeddings: its loss against loops, its steps against autograd, and groups that are plain."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scan_core.clustering.turtle import classified, label, new_linear, train_labeling, turtle_clusters, turtle_loss
from tests.scan_core.clustering.test_spectral import groups, one_cluster_per_group


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(sizes=(20, 12, 28), dimensions=8, spread=0.25, seed=0):
    points, labels = groups(sizes, dimensions, spread, seed)
    return torch.from_numpy(points), labels


def started(spaces, clusters=3):
    """A labeling whose weights have other lengths than their directions."""
    generator = seeded(1)
    maps = [new_linear(clusters, space.shape[1], generator) for space in spaces]
    return [(weight, 1 + torch.rand(clusters, generator=generator), bias + 0.1) for weight, bias in maps]


def test_the_loss_is_that_of_loops():
    given, learned = np.random.default_rng(0).dirichlet(np.ones(4), (2, 2, 5))  # each (K,B,C)
    cross_entropy = entropy = 0.0
    for k in range(2):
        for c in range(4):
            for b in range(5):
                cross_entropy -= (given[0, b, c] + given[1, b, c]) / 2 * math.log(learned[k, b, c]) / 5
            share = sum(given[k, b, c] for b in range(5)) / 5
            entropy -= share * math.log(share)
    found = turtle_loss(torch.from_numpy(given).log(), torch.from_numpy(learned).log())
    assert float(found) == pytest.approx(cross_entropy - 10 * entropy, rel=1e-10)


def test_labels_are_probabilities_under_weights_of_the_given_length():
    spaces = [features((3, 3))[0], features((3, 3), dimensions=5)[0]]
    labeling = started(spaces)
    for space, (direction, length, bias), found in zip(spaces, labeling, label(spaces, labeling), strict=True):
        rows = direction.numpy() / np.linalg.norm(direction.numpy(), axis=1, keepdims=True)
        logits = np.exp(space.numpy() @ (length.numpy()[:, None] * rows).T + bias.numpy())
        np.testing.assert_allclose(found.exp().numpy(), logits / logits.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_classifier_takes_ten_steps_of_adam_that_nothing_remembers():
    points, _ = features()
    logits = torch.randn(60, 3, generator=seeded(2)).requires_grad_()
    weight, bias = (each.requires_grad_() for each in new_linear(3, 8, seeded(3)))
    optimizer = torch.optim.Adam([weight, bias], lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(points, weight, bias), logits.detach().softmax(dim=1)).backward()
        optimizer.step()
    found = classified(points, logits.detach().softmax(dim=1), seeded(3))
    assert not found.requires_grad
    wanted = F.linear(points, weight, bias).log_softmax(dim=1).detach()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_first_step_of_the_labeling_is_adams_with_classifiers_held_fixed():
    spaces = [features()[0], features(dimensions=5)[0]]
    start, draws = started(spaces), seeded(4)
    batch = torch.randperm(60, generator=draws)[:16]
    points = [space[batch] for space in spaces]
    labeling = [tuple(part.clone().requires_grad_() for part in each) for each in start]
    given = label(points, labeling)
    targets = given.detach().exp().mean(dim=0)
    turtle_loss(given, torch.stack([classified(each, targets, draws) for each in points])).backward()
    found = train_labeling(spaces, start, seeded(4), steps=1, rows=16)
    for parts, before, after in zip(labeling, start, found, strict=True):
        for part, old, new in zip(parts, before, after, strict=True):
            moved = -part.grad / (part.grad.abs() + 1e-8)
            torch.testing.assert_close((new - old) / 1e-3, moved, rtol=0, atol=1e-3)


@pytest.mark.parametrize("spaces", [1, 2])
def test_plain_groups_are_found_in_one_space_and_in_two(spaces):
    given = [features((12,) * 4, 256, spread=0.02, seed=seed) for seed in range(spaces)]
    points, labels = [each for each, _ in given], given[0][1]
    start, found = (turtle_clusters(points, 4, seeded(), steps=steps) for steps in (0, 300))
    assert found.dtype == np.int64
    assert one_cluster_per_group(found, labels) and not one_cluster_per_group(start, labels)


def test_the_seed_decides_everything():
    spaces = [features()[0]]
    one, again, other = (train_labeling(spaces, started(spaces), seeded(seed), 5, 16)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)) and not torch.equal(one[0], other[0])
    found = [turtle_clusters(spaces, 3, seeded(seed), steps=5) for seed in (0, 0, 1)]
    assert found[0].tobytes() == found[1].tobytes() != found[2].tobytes()


def test_the_scale_of_a_space_decides_nothing():
    points, _ = features((30, 30, 30))
    small, large = (turtle_clusters([scale * points], 5, seeded(), steps=20) for scale in (1, 64))
    assert np.array_equal(small, large)
