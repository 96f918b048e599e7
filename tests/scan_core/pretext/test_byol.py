"""BYOL: its networks, its step by hand, and how the target follows."""

import copy
import math

import pytest
import torch
from torch import nn

from scan_core.pretext import byol
from scan_core.pretext.byol import target_decay
from scan_core.pretext.losses import byol_loss
from scan_core.views.random_view import random_view
from tests.tiny import SGD, TRAIN, epochs_of, images, run_loop, spied, start_loop

ROWS = TRAIN + 16


def start(fabric, **values):
    return start_loop("byol", fabric, **{"epochs": 1, "optimizer": SGD, **values})


# --- The networks


@pytest.mark.parametrize(("hidden", "width"), [(None, 16), (5, 5)])
def test_projector_and_predictor_have_one_hidden_layer_with_batchnorm_each(fp32, hidden, width):
    projector, predictor = start(fp32, hidden=hidden, projection=6)[0].module.head
    for head, inputs in ((projector, 16), (predictor, 6)):
        first, norm, relu, last = head.layers
        assert (first.in_features, first.out_features) == (inputs, width)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(relu, nn.ReLU)
        assert (last.in_features, last.out_features) == (width, 6)


# --- The step


def test_steps_are_those_of_the_paper(fp32):
    """Two of four steps by hand: each view by itself, a symmetric loss, descent, and then the target follows."""
    state, settings = start(fp32, encoder_momentum=0.8)
    online, target = copy.deepcopy(state.module).train(), copy.deepcopy(state.target).train()
    generator, loop = state.generator.clone_state(), run_loop("byol", state, settings, fp32, ROWS)
    next(loop)
    next(loop)

    order = ROWS[torch.randperm(32, generator=generator)]
    for number in range(2):
        rows = order[8 * number : 8 * number + 8]
        views = random_view(images(), rows.repeat(2), settings.augmentation, generator)
        first, second = views[:8], views[8:]
        assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        first_q, second_q = online(first)[1], online(second)[1]
        first_z, second_z = target(first)[1], target(second)[1]
        online.zero_grad()
        (byol_loss(first_q, second_z) + byol_loss(second_q, first_z)).backward()
        decay = 1 - 0.2 * (math.cos(math.pi * number / 4) + 1) / 2
        with torch.no_grad():
            for parameter in online.parameters():
                parameter -= 0.1 * parameter.grad
            fast = [*online.backbone.parameters(), *online.head[0].parameters()]
            for slow, new in zip(target.parameters(), fast, strict=True):
                slow.copy_(decay * slow + (1 - decay) * new)
    torch.testing.assert_close(state.module.state_dict(), online.state_dict())
    torch.testing.assert_close(state.target.state_dict(), target.state_dict())


# --- The target's momentum


@pytest.mark.parametrize("base", [0.0, 0.9, 0.996])
def test_the_targets_momentum_goes_from_its_base_to_1_by_a_half_cosine(base):
    assert target_decay(base, 0, 100) == pytest.approx(base)
    assert target_decay(base, 50, 100) == pytest.approx((1 + base) / 2)
    assert target_decay(base, 100, 100) == pytest.approx(1)
    rising = [target_decay(base, step, 100) for step in range(101)]
    assert rising == sorted(rising)


def test_the_momentum_counts_steps_over_all_epochs_also_after_a_resume(monkeypatch, fp32):
    given, _ = spied(monkeypatch, byol, "target_decay")
    state, settings = start(fp32, epochs=3)
    loop = run_loop("byol", state, settings, fp32)
    for _ in range(5):  # four steps and their epoch
        next(loop)
    epochs_of(run_loop("byol", state, settings, fp32))
    assert given == [[0.9, step, 12] for step in range(12)]
