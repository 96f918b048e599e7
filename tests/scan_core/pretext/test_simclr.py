"""SimCLR: its step by hand."""

import copy

import torch

from scan_core.pretext.losses import nt_xent
from scan_core.views.random_view import random_view
from tests.tiny import SGD, TRAIN, assert_descended, images, run_loop, start_loop


def test_a_step_is_the_loss_of_two_views_and_plain_gradient_descent(fp32):
    """The first step, by hand: order, two views of each image in one batch, NT-Xent, and w - lr * gradient."""
    state, settings = start_loop("simclr", fp32, optimizer=SGD, temperature=0.3)
    module, generator = copy.deepcopy(state.module).train(), state.generator.clone_state()
    next(run_loop("simclr", state, settings, fp32, TRAIN + 16))

    rows = (TRAIN + 16)[torch.randperm(32, generator=generator)][:8]
    views = random_view(images(), rows.repeat(2), settings.augmentation, generator)
    assert not any(torch.equal(first, second) for first, second in zip(views[:8], views[8:], strict=True))
    nt_xent(*module(views)[1].chunk(2), 0.3).backward()
    assert_descended(state.module, module)
