"""Instance discrimination: its step by hand, with the memory bank's rows, the constant Z and the negatives drawn."""

import copy

import torch
from torch.nn import functional as F

from scan_core.pretext.losses import memory_bank_nce
from scan_core.views.random_view import random_view
from tests.tiny import NO_AUGMENTATION, SGD, TRAIN, epochs_of, images, optimizer, run_loop, start_loop

LOOP = "instance_discrimination"
ROWS = (TRAIN + 16).flip(0)  # a row of the images is no row of the memory bank


def test_a_new_state_is_one_linear_layer_and_a_bank_of_unit_vectors(fp32):
    state, _ = start_loop(LOOP, fp32, projection=5)
    assert [type(layer) for layer in state.module.head.layers] == [torch.nn.Linear]
    assert state.memory_bank.shape == (32, 5)
    torch.testing.assert_close(state.memory_bank.norm(dim=1), torch.ones(32))


def test_steps_are_those_of_the_paper(fp32):
    """Two steps by hand: views, draws, NCE with the first batch's Z, descent, the bank's rows, and no others."""
    state, settings = start_loop(LOOP, fp32, temperature=0.3, memory_momentum=0.7, optimizer=SGD)
    module, bank = copy.deepcopy(state.module).train(), state.memory_bank.clone()
    generator, loop = state.generator.clone_state(), run_loop(LOOP, state, settings, fp32, ROWS)
    next(loop)
    next(loop)

    order, log_z = torch.randperm(32, generator=generator), None
    for number in range(2):
        places = order[8 * number : 8 * number + 8]
        drawn = torch.randint(32, (8, 6), generator=generator)
        embedded = F.normalize(module(random_view(images(), ROWS[places], settings.augmentation, generator))[1], dim=1)
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
    torch.testing.assert_close(state.module.state_dict(), module.state_dict())
    assert torch.equal(state.generator.get_state(), generator.get_state())


def test_one_batch_is_learnt_by_heart(fp32):
    """Each image's embedding is nearest to its own row of the bank."""
    values = {"epochs": 100, "negatives": 24, "temperature": 0.5, "augmentation": NO_AUGMENTATION}
    state, settings = start_loop(LOOP, fp32, optimizer=optimizer(), **values)
    state.memory_bank = state.memory_bank[:8]
    found = epochs_of(run_loop(LOOP, state, settings, fp32, ROWS[:8]))
    assert found[-1]["loss"] < 0.75 * found[0]["loss"]  # an image is its own negative at one draw in eight
    with torch.no_grad():
        embedded = F.normalize(state.module.train()(images().plain_view(ROWS[:8]))[1], dim=1)
    assert torch.equal((embedded @ state.memory_bank.T).argmax(dim=1), torch.arange(8))
