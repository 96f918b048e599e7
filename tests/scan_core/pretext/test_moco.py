"""MoCo: its step by hand, the queue, the shuffled keys and their BatchNorm."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scan_core.pretext import moco
from scan_core.pretext.losses import info_nce
from scan_core.pretext.moco import encode_keys
from scan_core.views.random_view import random_view
from tests.tiny import NO_AUGMENTATION, SGD, TRAIN, epochs_of, images, optimizer, run_loop, start_loop

ROWS = TRAIN + 16


def start(fabric, **values):
    return start_loop("moco", fabric, **{"epochs": 1, "optimizer": SGD, **values})


# --- The step


def test_a_new_state_has_a_queue_of_unit_vectors(fp32):
    state, _ = start(fp32, projection=5, queue=13, projector_norm=True)
    assert isinstance(state.module.head.layers[1], nn.BatchNorm1d)
    assert (state.queue.shape, state.oldest) == ((13, 5), 0)
    torch.testing.assert_close(state.queue.norm(dim=1), torch.ones(13))


def test_steps_are_those_of_the_papers(fp32):
    """Two steps by hand: the key encoder moves, then encodes the second views; loss; descent; then the queue."""
    state, settings = start(fp32, temperature=0.3, encoder_momentum=0.75)
    query, key = copy.deepcopy(state.module).train(), copy.deepcopy(state.momentum_encoder).train()
    queue, generator = state.queue.clone(), state.generator.clone_state()
    loop = run_loop("moco", state, settings, fp32, ROWS)
    next(loop)
    next(loop)

    order = ROWS[torch.randperm(32, generator=generator)]
    for number in range(2):
        rows = order[8 * number : 8 * number + 8]
        views = random_view(images(), rows.repeat(2), settings.augmentation, generator)
        first, second = views[:8], views[8:]
        assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
            slow.copy_(0.75 * slow + 0.25 * fast.detach())
        shuffle, keys = torch.randperm(8, generator=generator), torch.empty(8, 8)
        with torch.no_grad():
            for part in shuffle.split(4):
                keys[part] = F.normalize(key(second[part])[1], dim=1)
        query.zero_grad()
        info_nce(F.normalize(query(first)[1], dim=1), keys, queue, 0.3).backward()
        with torch.no_grad():
            for parameter in query.parameters():
                parameter -= 0.1 * parameter.grad
        queue[8 * number : 8 * number + 8] = keys
    assert torch.equal(state.generator.get_state(), generator.get_state())
    torch.testing.assert_close(state.queue, queue)
    assert state.oldest == 16
    torch.testing.assert_close(state.module.state_dict(), query.state_dict())
    torch.testing.assert_close(state.momentum_encoder.state_dict(), key.state_dict())


def test_keys_are_of_unit_length_in_float32_under_bf16(bf16):
    state, settings = start(bf16)
    epochs_of(run_loop("moco", state, settings, bf16))
    assert state.queue.dtype == torch.float32
    torch.testing.assert_close(state.queue.norm(dim=1), torch.ones(24), rtol=1e-6, atol=1e-6)


# --- The queue


@pytest.mark.parametrize(("queue", "batch"), [(12, 4), (10, 4), (7, 4), (4, 4), (3, 4), (5, 16), (1, 4)])
def test_the_queue_is_first_in_first_out(queue, batch):
    """Against a list, also where batches do not divide it, and where they exceed it."""
    rows = -torch.arange(1.0, queue + 1)[:, None]
    state = moco.MocoState(module=None, optimizer=None, generator=None, momentum_encoder=None, queue=rows)
    wanted = [-float(each) for each in range(1, queue + 1)]
    for number in range(9):
        keys = torch.arange(1.0, batch + 1) + batch * number
        moco._enqueue(state, keys[:, None])
        wanted = (wanted + keys.tolist())[-queue:]
        found, oldest = state.queue.flatten().tolist(), state.oldest
        assert found[oldest:] + found[:oldest] == wanted


# --- Shuffled keys


class Batched(nn.Module):
    """Features of an image, and what tells its batch: the batch's mean."""

    def forward(self, images):
        features = images.flatten(1)
        return features, torch.cat([features, features.mean(dim=0).expand_as(features)], dim=1)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_each_group_is_a_part_of_the_batch_as_the_generator_shuffles_it(groups):
    """Keys are in the order of the images, and with one group they see the statistics of the whole batch."""
    views, shuffle = noise(12, 1, 2, 2), torch.randperm(12, generator=seeded(3))
    found = encode_keys(Batched(), views, groups, seeded(3))
    for part in shuffle.chunk(groups):
        signature = views[part].flatten(1).mean(dim=0).expand(len(part), 4)
        wanted = F.normalize(torch.cat([views[part].flatten(1), signature], dim=1), dim=1)
        torch.testing.assert_close(found[part], wanted)
    assert not torch.equal(shuffle, torch.arange(12))


@pytest.mark.parametrize(
    ("count", "groups", "sizes"), [(12, 3, [4, 4, 4]), (10, 3, [4, 3, 3]), (10, 4, [3, 3, 2, 2]), (9, 4, [3, 2, 2, 2])]
)
def test_there_are_as_many_groups_as_are_wanted_and_they_differ_by_one_at_most(count, groups, sizes):
    """A process's part of a batch need not be a multiple of its groups."""
    seen = []

    class Sized(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return None, images.flatten(1)

    encode_keys(Sized(), noise(count, 1, 2, 2), groups, seeded())
    assert seen == sizes


def test_one_batch_is_learnt_by_heart(monkeypatch, fp32):
    """Against keys of other images that stand still, for a batch's own earlier keys are no negatives."""
    monkeypatch.setattr(moco, "_enqueue", lambda state, keys: None)
    state, settings = start(fp32, epochs=60, augmentation=NO_AUGMENTATION, optimizer=optimizer())
    with torch.no_grad():
        others = copy.deepcopy(state.momentum_encoder).train()(images().plain_view(TRAIN[8:]))[1]
        state.queue = F.normalize(others, dim=1)
    losses = [values["loss"] for values in epochs_of(run_loop("moco", state, settings, fp32, TRAIN[:8]))]
    assert losses[0] > 2.5
    assert losses[-1] < 0.3 * losses[0]
