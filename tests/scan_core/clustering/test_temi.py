"""TEMI on stored embeddings: its loss against loops, one step by hand, and groups that are plain."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from scan_core.clustering import temi as module
from scan_core.clustering.temi import log_probabilities, temi_clusters, temi_loss, train_heads
from tests.scan_core.clustering.test_spectral import groups, mined, one_cluster_per_group


def given(sizes=(20, 12, 28), dimensions=8, spread=0.25):
    points, labels = groups(sizes, dimensions, spread)
    return torch.from_numpy(points), torch.from_numpy(mined(points, 4)), labels


def started(heads=2, clusters=3, dimensions=8, seed=0):
    return torch.randn(heads, clusters, dimensions, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_that_of_loops():
    rng = np.random.default_rng(0)
    student, teacher = rng.dirichlet(np.ones(4), (2, 2, 3, 5))  # each (2,H,B,C)
    mean = rng.dirichlet(np.ones(4), 3)
    wanted = np.zeros(3)
    for b in range(5):
        weight = sum(teacher[0, h, b, c] * teacher[1, h, b, c] for h in range(3) for c in range(4)) / 3
        for h in range(3):
            for one, other in ((0, 1), (1, 0)):
                shared = sum((student[one, h, b, c] * teacher[other, h, b, c]) ** 0.6 / mean[h, c] for c in range(4))
                wanted[h] += weight * -math.log(shared) / 2 / 5
    found = temi_loss(torch.from_numpy(student).log(), torch.from_numpy(teacher).log(), torch.from_numpy(mean))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_probabilities_are_of_cosines_whatever_the_length_of_the_weights():
    points, _, _ = given((3, 3))
    weight = started()
    found = log_probabilities(torch.stack([points, points.flip(0)]), weight)
    assert found.shape == (2, 2, 6, 3)
    for head in range(2):
        rows = weight[head].numpy() / np.linalg.norm(weight[head].numpy(), axis=1, keepdims=True)
        logits = np.exp(points.numpy() @ rows.T / 0.1)
        wanted = torch.from_numpy(logits / logits.sum(axis=1, keepdims=True))
        torch.testing.assert_close(found[0, head].exp(), wanted)
        torch.testing.assert_close(found[1, head].exp(), wanted.flip(0))


def test_in_one_step_only_the_student_descends_and_the_teacher_follows_slowly():
    points, near, _ = given()
    start, draws = started(), torch.Generator().manual_seed(5)
    batch = torch.randint(60, (60,), generator=draws)
    partner = near[batch, torch.randint(4, (60,), generator=draws)]
    student = start.clone().requires_grad_()
    log_p = torch.stack([
        F.log_softmax(points[rows] @ F.normalize(student[head], dim=1).T / 0.1, dim=1)
        for rows in (batch, partner) for head in range(2)
    ]).reshape(2, 2, 60, 3)  # fmt: skip
    taught = log_p.detach()  # the teacher begins as the student
    mean = 0.9 / 3 + 0.1 * taught.exp().mean(dim=(0, 2))
    losses = temi_loss(log_p, taught, mean)
    losses.mean().backward()
    slope = student.grad
    moved = start * (1 - 1e-3 * 1e-4) - 1e-3 * slope / (slope.abs() + 1e-8)  # AdamW's first step
    teacher, found = train_heads(points, near, start, torch.Generator().manual_seed(5), steps=1)
    torch.testing.assert_close((teacher - start) / 0.004, moved - start, rtol=0, atol=1e-4)
    torch.testing.assert_close(found, losses.detach())


def test_the_rate_grows_during_the_first_fifth_of_the_steps(monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def stepped(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    points, near, _ = given()
    train_heads(points, near, started(), torch.Generator().manual_seed(0), steps=10)
    np.testing.assert_allclose(rates, [0.5e-3, *[1e-3] * 9])


def test_plain_groups_are_found():
    points, near, labels = given((12,) * 4, 64, 0.05)
    start, found = (temi_clusters(points, near, 4, 8, torch.Generator().manual_seed(0), steps) for steps in (0, 800))
    assert found.dtype == np.int64
    assert one_cluster_per_group(found, labels) and not one_cluster_per_group(start, labels)


def test_the_seed_decides_everything():
    points, near, _ = given()
    one, again, other = (
        train_heads(points, near, started(), torch.Generator().manual_seed(seed), steps=5)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    found = [temi_clusters(points, near, 3, 2, torch.Generator().manual_seed(seed), steps=5) for seed in (0, 0, 1)]
    assert found[0].tobytes() == found[1].tobytes() != found[2].tobytes()


def test_the_head_of_the_lowest_loss_is_taken(monkeypatch):
    points, near, labels = given()
    teacher = torch.stack([torch.eye(8)[[0, 0, 0]], 7 * torch.eye(8)[[2, 0, 1]], torch.eye(8)[[1, 1, 1]]])
    monkeypatch.setattr(module, "train_heads", lambda *_: (teacher, torch.tensor([0.3, -0.2, 0.1])))
    found = temi_clusters(points, near, 3, 3, torch.Generator())
    assert np.array_equal(found, np.array([1, 2, 0])[labels])
