"""RotNet: quarter turns and their numbers, its step by hand, accuracy on what it knows by heart."""

import copy

import pytest
import torch
from torch.nn import functional as F

from scan_core.pretext.rotation import rotations
from scan_core.views.random_view import random_view
from tests.tiny import (
    NO_AUGMENTATION,
    SGD,
    TRAIN,
    assert_descended,
    change,
    epochs_of,
    images,
    optimizer,
    run_loop,
    start_loop,
)

ROWS = TRAIN + 16


@pytest.mark.parametrize(("batch", "channels", "side"), [(1, 1, 2), (3, 3, 5), (5, 1, 8)])
def test_each_image_is_turned_by_each_quarter_that_its_number_says(batch, channels, side):
    given = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    turned, turn = rotations(given)
    assert turned.shape == (4 * batch, channels, side, side)
    assert turn.dtype == torch.int64
    for number in range(4 * batch):
        image = given[number % batch]
        assert torch.equal(turned[number], torch.rot90(image, int(turn[number]), dims=(1, 2)))
    assert turn.bincount().tolist() == [batch] * 4


def test_a_quarter_turn_is_counter_clockwise():
    turned, turn = rotations(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert turn.tolist() == [0, 1, 2, 3]
    assert turned.flatten(1).tolist() == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]


def test_a_step_is_cross_entropy_of_the_turns_and_plain_gradient_descent(fp32):
    """Of a linear classifier of four."""
    state, settings = start_loop("rotation", fp32, optimizer=SGD)
    (linear,) = state.module.head.layers
    assert (linear.in_features, linear.out_features) == (16, 4)
    module, generator = copy.deepcopy(state.module).train(), state.generator.clone_state()
    next(run_loop("rotation", state, settings, fp32, ROWS))

    rows = ROWS[torch.randperm(32, generator=generator)][:8]
    view = random_view(images(), rows, settings.augmentation, generator)
    logits = module(torch.cat([torch.rot90(view, turn, (2, 3)) for turn in range(4)]))[1]
    F.cross_entropy(logits, torch.arange(4).repeat_interleave(8)).backward()
    assert_descended(state.module, module)


def test_one_batch_is_learnt_by_heart_and_the_accuracy_says_so(fp32):
    values = {"epochs": 60, "augmentation": NO_AUGMENTATION, "optimizer": optimizer(lr=2e-2)}
    rows = torch.tensor([0, 3, 6, 9, 12, 15, 18, 21])  # one kind of image, of which each turn is another
    found = epochs_of(run_loop("rotation", *start_loop("rotation", fp32, **values), fp32, rows))
    assert found[0]["accuracy"] < 0.5
    assert found[-1]["accuracy"] == 1
    assert found[-1]["loss"] < 0.1 * found[0]["loss"]


def test_the_accuracy_is_the_share_of_turns_told_right(fp32):
    """A classifier that always says one quarter, at a rate of nothing."""
    state, settings = start_loop("rotation", fp32, epochs=1, optimizer=change(SGD, lr=1e-30))
    with torch.no_grad():
        state.module.head.layers[0].weight.zero_()
        state.module.head.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    (values,) = epochs_of(run_loop("rotation", state, settings, fp32, ROWS))
    assert values["accuracy"] == 0.25
