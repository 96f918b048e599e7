"""Instance discrimination: its step by hand, the memory bank's rows, the constant Z, the negatives drawn."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from scan_core.pretext import instance_discrimination
from scan_core.pretext.instance_discrimination import train_instance_discrimination
from scan_core.pretext.losses import memory_bank_nce
from scan_core.pretext.methods import start_pretext
from scan_core.views.random_view import random_view
from tests.tiny import BACKBONE, NO_AUGMENTATION, TRAIN, epochs_of, images, optimizer, pretext_settings

ROWS = (TRAIN + 16).flip(0)  # a row of the images is no row of the memory bank
SGD = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)


def settings(**values):
    return pretext_settings(**{"method": "instance_discrimination", "epochs": 1, "optimizer": SGD, **values})


def start(settings, fabric, count=32):
    return start_pretext(settings, BACKBONE, 3, count, 0, fabric)


def run(state, settings, fabric, steps=4):
    progress = train_instance_discrimination(state, images(), ROWS, settings, fabric)
    for _ in range(steps):
        next(progress)
    return state


@pytest.fixture
def losses(monkeypatch):
    """What the loss was called with at each step."""
    seen, original = [], instance_discrimination.memory_bank_nce

    def spy(positive, noise, log_z, count):
        seen.append((positive.detach().clone(), noise.detach().clone(), float(log_z), count))
        return original(positive, noise, log_z, count)

    monkeypatch.setattr(instance_discrimination, "memory_bank_nce", spy)
    return seen


def test_a_new_state_is_one_linear_layer_and_a_bank_of_unit_vectors(fp32):
    state = start(settings(projection=5), fp32)
    assert [type(layer) for layer in state.module.head.layers] == [torch.nn.Linear]
    assert state.memory_bank.shape == (32, 5)
    torch.testing.assert_close(state.memory_bank.norm(dim=1), torch.ones(32))


def test_steps_are_those_of_the_paper(fp32):
    """Two steps by hand: views, draws, NCE with the first batch's Z, descent, the bank's rows."""
    chosen = settings(temperature=0.3, memory_momentum=0.7)
    state, data = start(chosen, fp32), images()
    module, bank = copy.deepcopy(state.module).train(), state.memory_bank.clone()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    run(state, chosen, fp32, 2)

    order, log_z = torch.randperm(32, generator=generator), None
    for number in range(2):
        places = order[8 * number : 8 * number + 8]
        drawn = torch.randint(32, (8, 6), generator=generator)
        embedded = F.normalize(module(random_view(data, ROWS[places], chosen.augmentation, generator))[1], dim=1)
        positive = torch.stack([embedded[b] @ bank[places[b]] for b in range(8)]) / 0.3
        noise = torch.stack([bank[drawn[b]] @ embedded[b] for b in range(8)]) / 0.3
        if log_z is None:
            log_z = (32 * noise.detach().exp().mean()).log()  # eq. 6
        module.zero_grad()
        proximal = sum(30 * (embedded[b] - bank[places[b]]).square().sum() for b in range(8)) / 8  # eq. 8
        (memory_bank_nce(positive, noise, log_z, 32) + proximal).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
            for b, place in enumerate(places):
                new = 0.7 * bank[place] + 0.3 * embedded[b]
                bank[place] = new / new.norm()
    torch.testing.assert_close(state.log_z, log_z)
    torch.testing.assert_close(state.memory_bank, bank)
    for (name, found), wanted in zip(state.module.state_dict().items(), module.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_a_step_moves_the_rows_of_its_batch_and_no_others(fp32, momentum):
    chosen = settings(memory_momentum=momentum)
    state = start(chosen, fp32)
    before = state.memory_bank.clone()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    places = torch.randperm(32, generator=generator)[:8]
    after = run(state, chosen, fp32, 1).memory_bank
    others = torch.ones(32, dtype=torch.bool).index_fill(0, places, False)
    assert torch.equal(after[others], before[others])
    assert (after[places] != before[places]).any(dim=1).all()
    torch.testing.assert_close(after.norm(dim=1), torch.ones(32))
    moved = float((after[places] - before[places]).norm(dim=1).mean())
    assert {0.0: moved > 0.9, 0.25: moved > 0.6, 0.9: moved < 0.25}[momentum]


def test_without_momentum_the_bank_is_the_embeddings_of_the_images_in_their_order(fp32):
    """At a rate of nothing, and without augmentation, rows of the bank are those of ``ROWS``."""
    still = optimizer(name="sgd", lr=1e-30, momentum=0.0, weight_decay=0.0)
    chosen = settings(memory_momentum=0.0, batch_size=32, augmentation=NO_AUGMENTATION, optimizer=still)
    state = start(chosen, fp32)
    module = copy.deepcopy(state.module).train()
    bank = run(state, chosen, fp32, 1).memory_bank
    data = images()
    views = random_view(data, ROWS, NO_AUGMENTATION, torch.Generator())
    torch.testing.assert_close(bank, F.normalize(module(views)[1], dim=1), rtol=1e-4, atol=1e-5)


def test_z_is_estimated_once_from_the_first_batch(losses, fp32):
    """Z = N times the mean over negatives of exp(similarity / T)."""
    state = run(start(settings(), fp32), settings(), fp32)
    first = losses[0][1]
    assert losses[0][2] == pytest.approx(math.log(32 * float(first.exp().mean())), rel=1e-6)
    assert len({each[2] for each in losses}) == 1
    assert float(state.log_z) == losses[0][2]
    assert {each[3] for each in losses} == {32}
    assert not state.log_z.requires_grad


def test_the_loss_sees_the_bank_from_before_the_step(losses, fp32):
    """A bank of one vector makes all similarities of an image equal at the first step; later ones differ."""
    state = start(settings(), fp32)
    state.memory_bank[:] = F.normalize(torch.ones(8), dim=0)
    run(state, settings(), fp32)
    torch.testing.assert_close(losses[0][1], losses[0][0][:, None].expand(8, 6))
    assert float((losses[3][1] - losses[3][0][:, None]).abs().max()) > 1e-2


def test_negatives_are_drawn_uniformly_from_all_images(monkeypatch, fp32):
    drawn, original = [], torch.randint

    def spy(*given, **named):
        drawn.append(original(*given, **named))
        return drawn[-1]

    chosen = settings(negatives=400, epochs=3)
    state = start(chosen, fp32)
    monkeypatch.setattr(instance_discrimination.torch, "randint", spy)
    monkeypatch.setattr(instance_discrimination, "random_view", lambda data, rows, *others: torch.randn(8, 3, 8, 8))
    run(state, chosen, fp32, 4)
    negatives = [each for each in drawn if each.shape == (8, 400)]
    assert len(negatives) == 4
    assert not torch.equal(negatives[0], negatives[1])
    counts = torch.cat(negatives).flatten().bincount(minlength=32)
    assert len(counts) == 32
    assert (counts - 400).abs().max() < 5 * 20  # five standard deviations of 12,800 draws from 32


def test_one_batch_is_learnt_by_heart(fp32):
    """Each image's embedding is nearest to its own row of the bank."""
    chosen = settings(epochs=100, negatives=24, temperature=0.5, augmentation=NO_AUGMENTATION, optimizer=optimizer())
    state, data = start(chosen, fp32, count=8), images()
    found = epochs_of(train_instance_discrimination(state, data, ROWS[:8], chosen, fp32))
    assert found[-1]["loss"] < 0.75 * found[0]["loss"]  # an image is its own negative at one draw in eight
    with torch.no_grad():
        views = random_view(data, ROWS[:8], NO_AUGMENTATION, torch.Generator())
        nearest = (F.normalize(state.module.train()(views)[1], dim=1) @ state.memory_bank.T).argmax(dim=1)
    assert torch.equal(nearest, torch.arange(8))
