"""BYOL: its step by hand, the target and how it follows, what is kept of it."""

import copy
import math

import pytest
import torch
from torch import nn

from scan_core.models.files import load_model, save_model
from scan_core.models.networks import Projector
from scan_core.pretext import byol
from scan_core.pretext.byol import online_projector, target_decay, train_byol
from scan_core.pretext.losses import byol_loss
from scan_core.pretext.methods import start_pretext, trained_model
from scan_core.views.random_view import random_view
from tests.tiny import BACKBONE, NO_AUGMENTATION, TRAIN, epochs_of, images, optimizer, pretext_settings

ROWS = TRAIN + 16
SGD = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)


def settings(**values):
    return pretext_settings(**{"method": "byol", "epochs": 1, "optimizer": SGD, **values})


def start(settings, fabric):
    return start_pretext(settings, BACKBONE, 3, len(ROWS), 0, fabric)


def run(state, settings, fabric, steps):
    progress = train_byol(state, images(), ROWS, settings, fabric)
    for _ in range(steps):
        next(progress)
    return state


# --- The networks


@pytest.mark.parametrize(("hidden", "width"), [(None, 16), (5, 5)])
def test_projector_and_predictor_have_one_hidden_layer_with_batchnorm_each(fp32, hidden, width):
    projector, predictor = start(settings(hidden=hidden, projection=6), fp32).module.head
    for head, inputs in ((projector, 16), (predictor, 6)):
        first, norm, relu, last = head.layers
        assert (first.in_features, first.out_features) == (inputs, width)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(relu, nn.ReLU)
        assert (last.in_features, last.out_features) == (width, 6)


def test_the_target_is_a_copy_of_backbone_and_projector_without_predictor(fp32):
    state = start(settings(), fp32)
    assert isinstance(state.target.head, Projector)
    online = [*state.module.backbone.parameters(), *state.module.head[0].parameters()]
    for slow, fast in zip(state.target.parameters(), online, strict=True):
        assert torch.equal(slow, fast)
        assert slow is not fast
        assert fast.requires_grad and not slow.requires_grad
    assert all(parameter.requires_grad for parameter in state.module.head[1].parameters())
    optimized = {id(each) for group in state.optimizer.param_groups for each in group["params"]}
    assert optimized == {id(each) for each in state.module.parameters()}


# --- The step


def test_steps_are_those_of_the_paper(fp32):
    """Two of four steps by hand: each view by itself, a symmetric loss, descent, and then the target follows."""
    chosen = settings(encoder_momentum=0.8)
    state, data = start(chosen, fp32), images()
    online, target = copy.deepcopy(state.module).train(), copy.deepcopy(state.target).train()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    run(state, chosen, fp32, 2)

    order = ROWS[torch.randperm(32, generator=generator)]
    for number in range(2):
        rows = order[8 * number : 8 * number + 8]
        views = random_view(data, torch.cat([rows, rows]), chosen.augmentation, generator)
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
    for found, wanted in ((state.module, online), (state.target, target)):
        for (name, one), other in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, msg=name)


def test_the_loss_is_symmetric_and_of_one_view_with_the_other(monkeypatch, fp32):
    """Each view is once predicted and once predicted from: a prediction of a view never meets its own projection."""
    pairs, original = [], byol.byol_loss

    def spy(predictions, slow):
        pairs.append((predictions, slow))
        return original(predictions, slow)

    monkeypatch.setattr(byol, "byol_loss", spy)
    chosen = settings()
    state = start(chosen, fp32)
    online, target = copy.deepcopy(state.module).train(), copy.deepcopy(state.target).train()
    seen, draw = [], byol.random_view
    monkeypatch.setattr(byol, "random_view", lambda *given: seen.append(draw(*given)) or seen[-1])
    run(state, chosen, fp32, 1)
    assert [len(views) for views in seen] == [16]
    assert len(pairs) == 2
    views = [seen[0][:8], seen[0][8:]]
    for (predictions, slow), view, other in zip(pairs, views, views[::-1], strict=True):
        torch.testing.assert_close(predictions, online(view)[1])
        torch.testing.assert_close(slow, target(other)[1])
        assert predictions.requires_grad and not slow.requires_grad


def test_the_target_gets_no_gradient_and_keeps_statistics_of_its_own(fp32):
    state = run(start(settings(), fp32), settings(), fp32, 3)
    assert all(parameter.grad is None for parameter in state.target.parameters())
    slow, fast = state.target.backbone.norms[-1], state.module.backbone.norms[-1]
    assert (int(slow.num_batches_tracked), int(fast.num_batches_tracked)) == (6, 6)
    assert not torch.equal(slow.running_mean, fast.running_mean)


# --- The target's momentum


@pytest.mark.parametrize("base", [0.0, 0.9, 0.996])
def test_the_targets_momentum_goes_from_its_base_to_1_by_a_half_cosine(base):
    assert target_decay(base, 0, 100) == pytest.approx(base)
    assert target_decay(base, 50, 100) == pytest.approx((1 + base) / 2)
    assert target_decay(base, 100, 100) == pytest.approx(1)
    rising = [target_decay(base, step, 100) for step in range(101)]
    assert rising == sorted(rising)


def test_the_momentum_counts_steps_over_all_epochs_also_after_a_resume(monkeypatch, fp32):
    seen, original = [], byol.target_decay
    monkeypatch.setattr(byol, "target_decay", lambda *given: seen.append(given) or original(*given))
    chosen = settings(epochs=3)
    state = start(chosen, fp32)
    progress = train_byol(state, images(), ROWS, chosen, fp32)
    for _ in range(5):  # four steps and their epoch
        next(progress)
    epochs_of(train_byol(state, images(), ROWS, chosen, fp32))
    assert seen == [(0.9, step, 12) for step in range(12)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_target_follows_after_the_optimizers_step(fp32, momentum):
    """It moves towards the online network as that is after the step: with a momentum of 0, onto it."""
    chosen = settings(encoder_momentum=momentum)
    state = start(chosen, fp32)
    before = [parameter.clone() for parameter in state.target.parameters()]
    run(state, chosen, fp32, 1)
    online = [*state.module.backbone.parameters(), *online_projector(state.module).parameters()]
    for old, slow, fast in zip(before, state.target.parameters(), online, strict=True):
        torch.testing.assert_close(slow, momentum * old + (1 - momentum) * fast)
        assert not torch.equal(old, fast)


# --- Results


def test_one_batch_is_learnt_by_heart(fp32):
    chosen = settings(epochs=60, augmentation=NO_AUGMENTATION, optimizer=optimizer())
    losses = [values["loss"] for values in epochs_of(train_byol(start(chosen, fp32), images(), ROWS[:8], chosen, fp32))]
    assert losses[0] > 2
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("hidden", [None, 5])
def test_the_projector_is_kept_and_the_predictor_is_not(tmp_path, fp32, hidden):
    """What is written and read again embeds as backbone and projector did."""
    chosen = settings(hidden=hidden)
    state = run(start(chosen, fp32), chosen, fp32, 3)
    kept = trained_model(state)
    assert kept.head is state.module.head[0]
    stats = {"channels": 3, "view": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
    save_model(tmp_path / "pretext.safetensors", kept, BACKBONE, stats)
    model, description = load_model(tmp_path / "pretext.safetensors")
    width = 16 if hidden is None else hidden
    assert description["head"] == {"kind": "projector", "projection": 8, "hidden": width, "norm": True}
    views = torch.randn(4, 3, 8, 8)
    features, projected = model.eval()(views)
    state.module.eval()
    wanted = state.module.backbone(views)
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(projected, state.module.head[0](wanted))
