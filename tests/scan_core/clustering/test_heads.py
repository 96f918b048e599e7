"""Linear heads on stored embeddings: their first step by hand, and what a classifier learns."""

import numpy as np
import torch

from scan_core.clustering.heads import assign, classify, log_probabilities, new_heads, scan_heads
from scan_core.clustering.losses import scan_loss
from tests.scan_core.clustering.test_spectral import groups, mined
from tests.tiny import frozen_settings


def test_the_first_step_of_the_heads_descends_the_scan_loss_by_hand():
    points, _ = groups((8, 8))
    near, given = torch.from_numpy(mined(points, 4)), torch.from_numpy(points)
    generator = torch.Generator().manual_seed(0)
    heads = new_heads(2, 2, 8, generator)
    weight, bias = (each.clone().requires_grad_() for each in heads)
    settings = frozen_settings(batch_size=99, lr=0.01)  # half of the images at most, the first of a permutation
    draws = torch.Generator().manual_seed(5)
    order = torch.randperm(16, generator=draws)[:8]
    partners = near[order, torch.randint(4, (8,), generator=draws)]
    log_p = [log_probabilities(given[rows], (weight, bias)) for rows in (order, partners)]
    scan_loss(*log_p, 2.0)[0].sum().backward()
    after = scan_heads(given, near, heads, 2.0, 1, settings.batch_size, settings.lr, torch.Generator().manual_seed(5))
    for before, now, slope in ((heads[0], after[0], weight.grad), (heads[1], after[1], bias.grad)):
        torch.testing.assert_close(now, before - 0.01 * slope / (slope.abs() + 1e-8), rtol=0, atol=1e-5)  # Adam's first


def test_a_classifier_learns_labels_of_unseen_images_too():
    points, labels = groups((40, 40, 40))
    heads = classify(torch.from_numpy(points[::2]), torch.from_numpy(labels[::2]), 3, torch.Generator().manual_seed(0))
    assert np.array_equal(assign(torch.from_numpy(points[1::2]), heads)[0].numpy(), labels[1::2])
