"""The pretext loop: its step by hand, recorded losses, one batch learnt by heart, a resume to the bit."""

import copy

import torch

from scan_core.pretext.losses import nt_xent
from scan_core.pretext.methods import start_pretext
from scan_core.pretext.simclr import train_simclr
from scan_core.views.random_view import random_view
from tests.tiny import (
    BACKBONE,
    NO_AUGMENTATION,
    TRAIN,
    epochs_of,
    images,
    optimizer,
    pretext_settings,
)


def start(settings, fabric, seed=0):
    return start_pretext(settings, BACKBONE, 3, len(TRAIN), seed, fabric)


def test_a_step_is_the_loss_of_two_views_and_plain_gradient_descent(fp32):
    """The first step, by hand: order, two views of each image in one batch, NT-Xent, and w - lr * gradient."""
    sgd = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    settings, data = pretext_settings(epochs=1, optimizer=sgd, temperature=0.3), images()
    state = start(settings, fp32)
    module = copy.deepcopy(state.module).train()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    next(train_simclr(state, data, TRAIN + 16, settings, fp32))

    rows = (TRAIN + 16)[torch.randperm(32, generator=generator)][:8]
    views = random_view(data, torch.cat([rows, rows]), settings.augmentation, generator)
    assert not any(torch.equal(first, second) for first, second in zip(views[:8], views[8:], strict=True))
    _, projected = module(views)
    nt_xent(projected[:8], projected[8:], 0.3).backward()
    for (name, found), wanted in zip(state.module.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted - 0.1 * wanted.grad, msg=name)
    for found, wanted in zip(state.module.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_one_batch_is_learnt_by_heart(fp32):
    settings = pretext_settings(epochs=40, augmentation=NO_AUGMENTATION)
    losses = [values["loss"] for values in epochs_of(
        train_simclr(start(settings, fp32), images(), TRAIN[:8], settings, fp32)
    )]  # fmt: skip
    assert losses[0] > 1.5
    assert losses[-1] < 0.5 * losses[0]
