"""MoCo: its step by hand, the queue, the shuffled keys and their BatchNorm, the key encoder."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scan_core.pretext import moco
from scan_core.pretext.losses import info_nce
from scan_core.pretext.methods import start_pretext
from scan_core.pretext.moco import encode_keys, train_moco
from scan_core.views.random_view import random_view
from tests.tiny import BACKBONE, NO_AUGMENTATION, TRAIN, epochs_of, images, optimizer, pretext_settings

ROWS = TRAIN + 16
SGD = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)


def settings(**values):
    return pretext_settings(**{"method": "moco", "epochs": 1, "optimizer": SGD, **values})


def start(settings, fabric, seed=0):
    return start_pretext(settings, BACKBONE, 3, len(ROWS), seed, fabric)


def same_generator(state):
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    return generator


def run(state, settings, fabric, steps):
    """The state after ``steps`` steps."""
    progress = train_moco(state, images(), ROWS, settings, fabric)
    for _ in range(steps):
        next(progress)
    return state


# --- The step


def test_a_new_state_is_a_query_encoder_its_copy_and_a_queue_of_unit_vectors(fp32):
    state = start(settings(projection=5, queue=13, projector_norm=True), fp32)
    assert isinstance(state.module.head.layers[1], nn.BatchNorm1d)
    for (name, slow), fast in zip(state.momentum_encoder.named_parameters(), state.module.parameters(), strict=True):
        assert torch.equal(slow, fast), name
        assert slow is not fast
        assert fast.requires_grad and not slow.requires_grad
    assert state.queue.shape == (13, 5)
    torch.testing.assert_close(state.queue.norm(dim=1), torch.ones(13))
    assert state.oldest == 0


def test_steps_are_those_of_the_papers(fp32):
    """Two steps by hand: the key encoder moves, then encodes the second views; loss; descent; then the queue."""
    chosen = settings(temperature=0.3, encoder_momentum=0.75)
    state, data = start(chosen, fp32), images()
    query, key = copy.deepcopy(state.module).train(), copy.deepcopy(state.momentum_encoder).train()
    queue, generator = state.queue.clone(), same_generator(state)
    run(state, chosen, fp32, 2)

    order = ROWS[torch.randperm(32, generator=generator)]
    for number in range(2):
        rows = order[8 * number : 8 * number + 8]
        views = random_view(data, torch.cat([rows, rows]), chosen.augmentation, generator)
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
    for found, wanted in ((state.module, query), (state.momentum_encoder, key)):
        for (name, one), other in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, msg=name)


def test_the_loss_is_against_the_queue_from_before_the_step(monkeypatch, fp32):
    seen, original = [], moco.info_nce

    def spy(queries, keys, queue, temperature):
        seen.append((queries.detach().clone(), keys.clone(), queue.clone()))
        return original(queries, keys, queue, temperature)

    monkeypatch.setattr(moco, "info_nce", spy)
    state = start(settings(), fp32)
    before = state.queue.clone()
    run(state, settings(), fp32, 2)
    assert torch.equal(seen[0][2], before)
    assert torch.equal(seen[1][2], torch.cat([seen[0][1], before[8:]]))
    for queries, keys, queue in seen:
        for vectors in (queries, keys, queue):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_keys_are_of_unit_length_in_float32_under_bf16(bf16):
    state = run(start(settings(), bf16), settings(), bf16, 4)
    assert state.queue.dtype == torch.float32
    torch.testing.assert_close(state.queue.norm(dim=1), torch.ones(24), rtol=1e-6, atol=1e-6)


# --- The key encoder


def test_the_key_encoder_follows_by_momentum_to_the_closed_form(monkeypatch, fp32):
    """k_t = m k_(t-1) + (1-m) q_(t-1): a sum over the query encoders that were."""
    chosen, queries = settings(encoder_momentum=0.6), []
    state = start(chosen, fp32)
    original = moco.ema_update_

    def spy(average, module, *others, **named):
        queries.append(module.head.layers[0].weight.detach().clone())
        return original(average, module, *others, **named)

    monkeypatch.setattr(moco, "ema_update_", spy)
    first = state.momentum_encoder.head.layers[0].weight.detach().clone()
    run(state, chosen, fp32, 4)
    wanted = 0.6**4 * first + sum(0.4 * 0.6 ** (3 - number) * query for number, query in enumerate(queries))
    torch.testing.assert_close(state.momentum_encoder.head.layers[0].weight, wanted)
    assert not torch.allclose(wanted, queries[-1])


def test_the_key_encoder_gets_no_gradient_and_is_not_optimized(fp32):
    state = run(start(settings(), fp32), settings(), fp32, 3)
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in state.momentum_encoder.parameters()
    )
    optimized = {id(each) for group in state.optimizer.param_groups for each in group["params"]}
    assert optimized == {id(each) for each in state.module.parameters()}


def test_the_key_encoders_statistics_are_those_of_its_own_passes(fp32):
    """Two groups a step, so twice as many batches as the query encoder has seen."""
    state = run(start(settings(key_groups=2), fp32), settings(key_groups=2), fp32, 3)
    slow, fast = state.momentum_encoder.backbone.norms[0], state.module.backbone.norms[0]
    assert (int(slow.num_batches_tracked), int(fast.num_batches_tracked)) == (6, 3)
    assert not torch.allclose(slow.running_mean, fast.running_mean)


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


def test_after_an_epoch_the_queue_holds_the_latest_keys(monkeypatch, fp32):
    keys, original = [], moco.encode_keys
    monkeypatch.setattr(moco, "encode_keys", lambda *given: keys.append(original(*given)) or keys[-1])
    chosen = settings(queue=20)
    state = run(start(chosen, fp32), chosen, fp32, 5)
    oldest = state.oldest
    assert oldest == 32 % 20
    assert torch.equal(state.queue.roll(-oldest, 0), torch.cat(keys)[-20:])


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


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_keys_are_in_the_order_of_the_images(fp32, groups):
    """In eval mode neither the shuffle nor the groups change anything."""
    model = start(settings(), fp32).momentum_encoder.eval()
    views = images().normalize(noise(8, 3, 8, 8))
    found = encode_keys(model, views, groups, seeded())
    torch.testing.assert_close(found, F.normalize(model(views)[1], dim=1))


def test_with_one_group_keys_see_the_statistics_of_the_whole_batch(fp32):
    model, views = start(settings(), fp32).momentum_encoder.train(), noise(8, 3, 8, 8)
    torch.testing.assert_close(encode_keys(model, views, 1, seeded()), F.normalize(model(views)[1], dim=1))


def test_groups_change_the_statistics_that_keys_see(fp32):
    model, views = start(settings(), fp32).momentum_encoder.train(), noise(8, 3, 8, 8)
    keys = [encode_keys(model, views, groups, seeded()) for groups in (1, 2, 4)]
    assert float((keys[0] - keys[1]).abs().max()) > 1e-2
    assert float((keys[1] - keys[2]).abs().max()) > 1e-2


def test_each_group_is_a_part_of_the_shuffled_batch():
    views, shuffle = noise(12, 1, 2, 2), torch.randperm(12, generator=seeded(3))
    found = encode_keys(Batched(), views, 3, seeded(3))
    for part in shuffle.split(4):
        signature = views[part].flatten(1).mean(dim=0).expand(4, 4)
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


def test_a_batchs_mean_does_not_tell_its_keys():
    """The leak of section 3.3: an encoder blind to images, that knows batches alone, finds its keys in one group."""

    class Blind(nn.Module):
        def forward(self, images):
            return None, images.flatten(1).mean(dim=0).expand(len(images), -1)

    similar = {}
    for groups in (1, 16):
        each = []
        for seed in range(20):
            views = noise(64, 1, 4, 4, seed=seed)
            queries = F.normalize(Blind()(views)[1], dim=1)
            each.append((queries * encode_keys(Blind(), views, groups, seeded(seed))).sum(dim=1).mean())
        similar[groups] = float(torch.stack(each).mean())
    assert similar[1] == pytest.approx(1, abs=1e-5)
    assert similar[16] == pytest.approx(16**-0.5, abs=0.08)  # a part's mean has 1/16 of its variance from the batch's


def test_shuffles_come_from_the_generator():
    views = noise(12, 1, 2, 2)
    one, same, other = (encode_keys(Batched(), views, 3, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_one_batch_is_learnt_by_heart(monkeypatch, fp32):
    """Against keys of other images that stand still, for a batch's own earlier keys are no negatives."""
    monkeypatch.setattr(moco, "_enqueue", lambda state, keys: None)
    chosen = settings(epochs=60, augmentation=NO_AUGMENTATION, optimizer=optimizer())
    state, data = start(chosen, fp32), images()
    with torch.no_grad():
        others = random_view(data, TRAIN[8:], NO_AUGMENTATION, torch.Generator())
        state.queue = F.normalize(copy.deepcopy(state.momentum_encoder).train()(others)[1], dim=1)
    losses = [values["loss"] for values in epochs_of(train_moco(state, data, TRAIN[:8], chosen, fp32))]
    assert losses[0] > 2.5
    assert losses[-1] < 0.3 * losses[0]
