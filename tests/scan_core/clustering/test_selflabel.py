"""Self-labeling: its step by hand, batches without a confident image, the plateau, the guard, a resume to the bit."""

import copy

import pytest
import torch

from scan_core.clustering import selflabel
from scan_core.clustering.losses import confident_cross_entropy
from scan_core.clustering.selflabel import (
    choose_model,
    confident_share,
    has_plateaued,
    start_selflabel,
    train_selflabel,
)
from scan_core.models.inference import log_probabilities
from scan_core.training.state import Epoch
from scan_core.views.random_view import random_view
from tests.tiny import (
    TRAIN,
    VAL,
    assert_same_state,
    change,
    cluster_model,
    epochs_of,
    images,
    optimizer,
    selflabel_settings,
    strong_augmentation,
    through_a_file,
)

SGD = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)


def start(settings, fabric, seed=0):
    return start_selflabel(settings, cluster_model(), seed, fabric)


def train(state, settings, fabric, data=None, rows=TRAIN):
    return train_selflabel(state, data or images(), rows, VAL, settings, fabric)


def assert_same(first, second):
    """Two dicts of tensors and numbers, however deep, or two tensors, are equal to the bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


# --- The step


@pytest.mark.parametrize("class_weights", [False, True])
def test_a_step_is_the_loss_of_strong_views_against_plain_ones_and_plain_gradient_descent(fp32, class_weights):
    """By hand, in train mode: pseudo-labels of the plain views, then the strong views, then w - lr * gradient."""
    data, rows = images(), TRAIN + 8
    state = start(selflabel_settings(optimizer=SGD), fp32)
    module = copy.deepcopy(state.module).train()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    batch = rows[torch.randperm(32, generator=generator)][:8]
    with torch.no_grad():
        weak = module(data.plain_view(batch))[1][0].log_softmax(1)
    highest = weak.exp().amax(1).sort().values
    threshold = float(highest[2:4].mean())  # three are not confident, five are
    settings = selflabel_settings(threshold=threshold, class_weights=class_weights, optimizer=SGD)
    strong = module(random_view(data, batch, settings.augmentation, generator))[1][0]
    confident_cross_entropy(strong, weak, threshold, class_weights).backward()

    next(train(state, settings, fp32, data, rows))
    for (name, found), wanted in zip(state.module.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted - 0.1 * wanted.grad, msg=name)
    for found, wanted in zip(state.module.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_one_batch_is_learnt_by_heart(fp32):
    settings = selflabel_settings(epochs=14, augmentation=strong_augmentation(flip=0.0, operations=0, cutout=0))
    state = start(settings, fp32)
    found = epochs_of(train(state, settings, fp32, rows=TRAIN[:8]))
    assert found[0]["loss"] > 0.5
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["confident"] == 8


def test_the_first_losses_are_the_recorded_ones(fp32):
    """Float32 on the CPU. A change here changes every result: say why, and record anew.

    At this threshold no confidence is so near to it that a last bit could tip a pseudo-label.
    """
    settings = selflabel_settings(epochs=4, batch_size=32, optimizer=optimizer(lr=1e-3), threshold=0.36)
    found = epochs_of(train(start(settings, fp32), settings, fp32))
    assert [values["loss"] for values in found] == pytest.approx(RECORDED, abs=1e-4)


RECORDED = [1.057352, 1.001292, 0.799109, 0.949707]


# --- Batches without a confident image


def test_without_a_confident_image_no_weight_changes_and_the_steps_are_counted(fp32):
    """Not even by weight decay or momentum; and nothing is learnt about the optimizer."""
    settings = selflabel_settings(threshold=0.999, epochs=3, optimizer=optimizer(weight_decay=0.1))
    state = start(settings, fp32)
    before = weights(state.module)
    found = epochs_of(train(state, settings, fp32))
    assert [values["skipped_steps"] for values in found] == [4, 4, 4]
    assert [values["loss"] for values in found] == [0, 0, 0]
    assert all(torch.equal(value, before[name]) for name, value in weights(state.module).items())
    assert not state.optimizer.state


def test_skipped_steps_are_those_of_batches_without_a_confident_image(monkeypatch, fp32):
    """A rate so low that each batch's confidences are known beforehand; half of the batches have none above."""
    settings = selflabel_settings(batch_size=2, epochs=1, optimizer=optimizer(lr=1e-9))
    state, losses, original = start(settings, fp32), [], selflabel.confident_cross_entropy
    module, data = copy.deepcopy(state.module).train(), images()
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())
    with torch.no_grad():
        order = TRAIN[torch.randperm(32, generator=generator)]
        each = torch.stack([module(data.plain_view(batch))[1][0].softmax(1).amax() for batch in order.view(16, 2)])
    settings = change(settings, threshold=float(each.sort().values[7:9].mean()))

    def spy(*given):
        loss = original(*given)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(selflabel, "confident_cross_entropy", spy)
    *steps, epoch = train(state, settings, fp32, data)
    assert epoch.values["skipped_steps"] == 8
    assert [step.images for step in steps] == [4 if there else 2 for there in each > settings.threshold]
    assert len(losses) == 8
    assert epoch.values["loss"] == pytest.approx(sum(losses) / 8)  # of the steps that were done


# --- What an epoch reports


def test_an_epoch_reports_counts_over_all_images_in_eval_mode(fp32):
    settings, data = selflabel_settings(threshold=0.5, epochs=3), images()
    state = start(settings, fp32)
    before = log_probabilities(state.module, data, VAL, fp32)[0].argmax(dim=1)
    first_share, agreements = confident_share(state.module, data, TRAIN, 0.5, fp32), []
    for done in train(state, settings, fp32, data):
        if isinstance(done, Epoch):
            after = log_probabilities(state.module, data, VAL, fp32)[0].argmax(dim=1)
            train_p = log_probabilities(state.module, data, TRAIN, fp32)[0].exp()
            confident = int((train_p.amax(dim=1) > 0.5).sum())
            assert done.values["confident"] == confident
            assert done.values["confident_share"] == pytest.approx(confident / 32)
            assert done.values["clusters_used"] == len(set(after.tolist()))
            assert done.values["agreement"] == pytest.approx(float((after == before).double().mean()))
            agreements.append(done.values["agreement"])
            assert torch.equal(state.assignments[-1].long(), after)
            before = after
    assert any(0 < agreement < 1 for agreement in agreements)
    assert len(state.assignments) == len(state.confident) == 4  # one before the first epoch
    assert state.confident[0] == pytest.approx(first_share)


def test_the_confident_are_strictly_above_the_threshold(fp32):
    model = cluster_model()
    torch.nn.init.zeros_(model.head.linear.weight)
    torch.nn.init.zeros_(model.head.linear.bias)
    model.head.linear.bias.data[0] = 1.0
    highest = log_probabilities(model, images(), TRAIN, fp32)[0, 0].amax().exp()  # of every image
    below = torch.nextafter(highest, torch.tensor(0.0))
    for threshold, share in ((below, 1.0), (highest, 0.0)):
        assert confident_share(model, images(), TRAIN, float(threshold), fp32) == share


# --- The average

EMA = 0.9


def after_each_step(state, settings, fabric, data=None):
    """What each step or epoch yields, with copies of the network and of its average there."""
    for done in train(state, settings, fabric, data):
        average = state.ema and copy.deepcopy(state.ema.state_dict())
        yield done, copy.deepcopy(state.module.state_dict()), average


def test_without_an_average_the_network_itself_is_kept(fp32):
    state = start(selflabel_settings(), fp32)
    assert state.ema is None
    assert state.judged is state.module


def test_the_average_starts_as_a_copy_that_no_optimizer_sees(fp32):
    state = start(selflabel_settings(ema=EMA), fp32)
    assert state.judged is state.ema
    assert_same(state.ema.state_dict(), state.module.state_dict())
    own = {parameter.data_ptr() for parameter in state.ema.parameters()}
    assert not own & {parameter.data_ptr() for parameter in state.module.parameters()}
    trained = {each.data_ptr() for group in state.optimizer.param_groups for each in group["params"]}
    assert trained == {parameter.data_ptr() for parameter in state.module.parameters()}
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    assert all(parameter.requires_grad for parameter in state.module.parameters())


@pytest.mark.parametrize("ema", [0.5, 0.9, 0.999])
def test_the_average_is_the_closed_form_after_each_step(fp32, ema):
    """ema^t of the start and (1 - ema) ema^(t-s) of each step s: of weights and BatchNorm's statistics alike."""
    settings = selflabel_settings(ema=ema, threshold=0.34, epochs=2)
    state = start(settings, fp32)
    networks, count = [copy.deepcopy(state.module.state_dict())], 0
    for done, module, average in after_each_step(state, settings, fp32):
        if isinstance(done, Epoch):
            continue
        assert done.images == 16  # no step is skipped
        networks.append(module)
        t = len(networks) - 1
        for name, value in average.items():
            if not value.is_floating_point():
                assert torch.equal(value, module[name]), name
                continue
            wanted = ema**t * networks[0][name].double()
            for s in range(1, t + 1):
                wanted += (1 - ema) * ema ** (t - s) * networks[s][name].double()
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-7, msg=name)
            count += "running" in name and not torch.equal(value, module[name])
    assert len(networks) == 9
    assert count == 8 * 12  # in each step each of 6 BatchNorms' mean and variance


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_average_never_reaches_the_network_that_learns(fp32, name):
    """To the bit: weights, BatchNorm, optimizer, random numbers, losses; and so its pseudo-labels."""
    states = []
    for ema in (0.0, EMA):
        settings = selflabel_settings(ema=ema, epochs=3, optimizer=optimizer(name=name))
        states.append(start(settings, fp32))
        epochs_of(train(states[-1], settings, fp32))
    without, with_average = (state.state_dict() for state in states)
    for part in ("module", "optimizer", "generator", "torch_rng"):
        assert_same(with_average[part], without[part])
    for key in ("loss", "skipped_steps", "lr"):
        assert [values[key] for values in with_average["history"]] == [values[key] for values in without["history"]]
    assert with_average["history"][0]["loss"] > 0
    moved = states[1].ema.head.linear.weight - states[1].module.head.linear.weight
    assert float(moved.detach().abs().max()) > 1e-3


def test_pseudo_labels_come_from_the_network_as_it_trains(monkeypatch, fp32):
    """Neither from its average nor in eval mode."""
    given, original = [], selflabel.confident_cross_entropy
    settings, data = selflabel_settings(ema=EMA, threshold=0.34, epochs=1), images()
    state = start(settings, fp32)
    generator = torch.Generator()
    generator.set_state(state.generator.get_state())

    def spy(strong, weak, *others):
        given.append(weak)
        return original(strong, weak, *others)

    monkeypatch.setattr(selflabel, "confident_cross_entropy", spy)
    order = TRAIN[torch.randperm(32, generator=generator)].view(4, 8)
    module = copy.deepcopy(state.module).train()
    for batch, (_, network, average) in zip(order, after_each_step(state, settings, fp32, data), strict=False):
        with torch.no_grad():
            weak = module(data.plain_view(batch))[1][0].log_softmax(1)
        torch.testing.assert_close(given[-1], weak)
        module.load_state_dict(network)
        other = copy.deepcopy(module)
        other.load_state_dict(average)
    assert len(given) == 4
    with torch.no_grad():
        assert not torch.allclose(other(data.plain_view(order[3]))[1][0].log_softmax(1), given[3], atol=1e-3)


def test_reports_assignments_and_the_model_kept_are_the_average_s(fp32):
    settings, data = selflabel_settings(ema=0.8, threshold=0.45, epochs=4, optimizer=optimizer(lr=0.03)), images()
    state, differ = start(settings, fp32), []
    before = log_probabilities(state.module, data, VAL, fp32)[0].argmax(dim=1)
    for done in train(state, settings, fp32, data):
        if isinstance(done, Epoch):
            after, of_module = (
                log_probabilities(each, data, VAL, fp32)[0].argmax(dim=1) for each in (state.ema, state.module)
            )
            share = confident_share(state.ema, data, TRAIN, 0.45, fp32)
            assert done.values["confident_share"] == state.confident[-1] == share
            assert done.values["confident"] == pytest.approx(32 * share)
            assert done.values["clusters_used"] == len(set(after.tolist()))
            assert done.values["agreement"] == pytest.approx(float((after == before).double().mean()))
            assert torch.equal(state.assignments[-1].long(), after)
            before = after
            differ.append((
                share != confident_share(state.module, data, TRAIN, 0.45, fp32), not torch.equal(after, of_module),
                len(set(after.tolist())) != len(set(of_module.tolist())),
            ))  # fmt: skip
    assert all(any(each) for each in zip(*differ, strict=True))  # so that the above says something
    assert state.judged is state.ema


def test_the_plateau_is_that_of_the_average(monkeypatch, fp32):
    """One that no weight moves has the same count in each epoch, whatever the network does."""
    monkeypatch.setattr(selflabel, "ema_update_", lambda *given, **named: None)
    settings = selflabel_settings(ema=EMA, threshold=0.36, epochs=30, batch_size=16)
    state = start(settings, fp32)
    first = copy.deepcopy(state.ema.state_dict())
    found = epochs_of(train(state, settings, fp32))
    assert len(found) == 14
    assert len({values["confident"] for values in found}) == 1
    assert found[0]["loss"] > 0
    assert_same(state.ema.state_dict(), first)


def test_a_skipped_step_does_not_move_the_average(fp32):
    """Though the plain views have moved the network's BatchNorm."""
    settings = selflabel_settings(ema=EMA, threshold=0.999, epochs=1)
    state = start(settings, fp32)
    first = copy.deepcopy(state.ema.state_dict())
    for _, module, average in after_each_step(state, settings, fp32):
        assert_same(average, first)
        assert not torch.equal(module["backbone.norms.0.running_mean"], first["backbone.norms.0.running_mean"])


def test_only_steps_that_are_done_move_the_average(fp32):
    """Some batches have a confident image and some have none."""
    settings = selflabel_settings(ema=EMA, threshold=0.45, epochs=2, batch_size=2, optimizer=change(SGD, lr=1e-2))
    state, moved, done_steps = start(settings, fp32), [], []
    last = copy.deepcopy(state.ema.state_dict())
    for done, _, average in after_each_step(state, settings, fp32):
        if not isinstance(done, Epoch):
            moved.append(not torch.equal(average["head.linear.weight"], last["head.linear.weight"]))
            done_steps.append(done.images == 4)
            last = average
    assert moved == done_steps
    assert 3 < sum(moved) < 29


# --- What trains


def test_head_only_training_leaves_the_backbone_and_its_buffers(fp32):
    settings = selflabel_settings(train="head", threshold=0.34, ema=EMA)
    state = start(settings, fp32)
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == 2
    before = copy.deepcopy(state.module.state_dict())
    found = epochs_of(train(state, settings, fp32))
    assert found[0]["loss"] > 0
    for network in (state.module, state.ema):
        after = network.state_dict()
        assert all(torch.equal(value, before[key]) for key, value in after.items() if key.startswith("backbone"))
        assert not any(torch.equal(value, before[key]) for key, value in after.items() if key.startswith("head"))


def test_training_everything_moves_the_backbone_and_its_buffers(fp32):
    settings = selflabel_settings(threshold=0.34, epochs=1)
    state = start(settings, fp32)
    before = copy.deepcopy(state.module.state_dict())
    epochs_of(train(state, settings, fp32))
    assert not any(torch.equal(value, before[key]) for key, value in state.module.state_dict().items())


def test_after_head_only_training_everything_trains_again(fp32):
    """Settings of a stage end with it."""
    settings = selflabel_settings(train="head")
    model = cluster_model()
    start_selflabel(settings, model, 0, fp32)
    state = start_selflabel(selflabel_settings(), model, 0, fp32)
    assert all(parameter.requires_grad for parameter in state.module.parameters())


@pytest.mark.parametrize("ema", [0.0, EMA])
def test_no_epochs_keep_the_model_to_the_byte(fp32, ema):
    settings, data = selflabel_settings(epochs=0, ema=ema), images()
    model = cluster_model()
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    state = start_selflabel(settings, model, 0, fp32)
    assert list(train(state, settings, fp32, data)) == []
    assert {key: value.numpy().tobytes() for key, value in state.judged.state_dict().items()} == before
    assert (state.epoch, state.history) == (0, [])
    assignments = state.assignments
    wanted = log_probabilities(model, data, VAL, fp32)[0].argmax(dim=1)
    assert len(assignments) == 1
    assert torch.equal(assignments[0].long(), wanted)
    kept, why = choose_model(assignments[0], assignments[-1], torch.arange(16).roll(1), True)
    assert kept == "after"
    assert f"{len(set(wanted.tolist()))} clusters in use" in why


# --- The plateau


def test_training_stops_where_the_confident_count_plateaus(fp32):
    """None is ever confident, so that it is a plateau as soon as there are 15 counts: one before and 14 epochs."""
    settings = selflabel_settings(threshold=0.999, epochs=30, batch_size=16)
    state = start(settings, fp32)
    assert len(epochs_of(train(state, settings, fp32))) == 14
    assert list(train(state, settings, fp32)) == []  # and does not start again


@pytest.mark.parametrize(
    ("confident", "plateaued"),
    [
        ([], False),
        ([0.5] * 14, False),  # too few to tell
        ([0.5] * 15, True),
        ([0.1 * number for number in range(10)], False),
        ([0.01 * number for number in range(40)], False),
        ([0.01 * number for number in range(40)] + [0.39] * 13, False),
        ([0.01 * number for number in range(40)] + [0.39] * 14, True),
        ([0.5] * 5 + [0.4] * 5 + [0.5009] * 5, True),  # below 0.1 point in 10 epochs
        ([0.5] * 5 + [0.4] * 5 + [0.5011] * 5, False),
        ([0.5] * 5 + [0.9] * 5 + [0.3] * 5, True),  # falling
        ([0.0] * 5 + [0.5] * 5 + [0.6] * 5 + [0.61] * 5, False),
        ([0.5] * 10 + [0.4, 0.6, 0.5, 0.45, 0.55], True),  # the mean counts, not the last
        ([0.5] * 10 + [0.5] * 4 + [0.6], False),
        ([0.9] + [0.0] * 5 + [0.5] * 10, False),  # what is more than 15 epochs back does not count
    ],
)
def test_a_plateau_is_less_than_a_tenth_of_a_point_in_ten_epochs(confident, plateaued):
    assert has_plateaued(confident) is plateaued


# --- The guard

PAIRS = torch.arange(200).view(100, 2).flip(1).flatten()  # 0-1, 2-3, ...: each other's nearest
TOGETHER = (torch.arange(200) // 2) % 4


def parted(count):
    """All pairs are together but ``count`` of them: each costs one point of the share."""
    assigned = TOGETHER.clone()
    assigned[: 2 * count : 2] = (assigned[: 2 * count : 2] + 1) % 4
    return assigned


def test_the_model_from_before_is_kept_where_clusters_died():
    after = TOGETHER.clone()
    after[after == 3] = 0  # neighbors stay together
    kept, why = choose_model(TOGETHER, after, PAIRS, True)
    assert kept == "before"
    assert "3 of 4 clusters" in why


@pytest.mark.parametrize(("held", "kept"), [(2, "before"), (3, "after")])
def test_a_cluster_with_less_than_a_tenth_of_what_the_smallest_held_has_died(held, kept):
    """Before: 970 images in one cluster and 30 in the other; and every pair of neighbors stays together."""
    before = torch.cat([torch.zeros(970), torch.ones(30)]).long()
    after = torch.cat([torch.ones(held), torch.zeros(1000 - held)]).long()
    found, why = choose_model(before, after, torch.arange(1000), True)
    assert found == kept
    assert ("1 of 2 clusters" in why) is (kept == "before")


def test_the_model_from_before_is_kept_where_neighbors_part():
    kept, why = choose_model(TOGETHER, parted(2), PAIRS, True)
    assert kept == "before"
    assert "from 1.000 to 0.980" in why


@pytest.mark.parametrize("count", [0, 1])
def test_the_model_from_after_is_kept_otherwise(count):
    """Also where the share falls by one point and not more."""
    kept, why = choose_model(TOGETHER, parted(count), PAIRS, True)
    assert kept == "after"
    assert "4 clusters in use" in why


def test_the_model_from_before_is_kept_where_nothing_was_learned():
    kept, why = choose_model(TOGETHER, TOGETHER, PAIRS, False)
    assert (kept, why) == ("before", "no training image was ever above selflabel.threshold")


def test_new_clusters_and_closer_neighbors_are_welcome():
    before = parted(20)
    before[before == 3] = 0
    assert choose_model(before, TOGETHER, PAIRS, True)[0] == "after"


def test_a_cluster_that_others_took_the_place_of_is_no_loss():
    """The guard counts clusters, whatever their numbers."""
    assert choose_model(TOGETHER, TOGETHER + 7, PAIRS, True)[0] == "after"


# --- Resume


def test_a_resume_before_an_epoch_without_a_step_is_to_the_bit(fp32):
    """After epoch 2 the head is emptied in both runs, so that no image is confident and no step is done again."""
    settings, states = selflabel_settings(epochs=4), []
    for resume in (False, True):
        state = start(settings, fp32)
        loop = train(state, settings, fp32)
        for done in loop:
            if isinstance(done, Epoch) and done.number == 2:
                with torch.no_grad():
                    state.module.head.linear.weight.zero_()
                    state.module.head.linear.bias.zero_()
                if resume:
                    break
        if resume:
            saved = through_a_file(state)
            state = start(settings, fp32, seed=7)
            state.load_state_dict(saved)
            epochs_of(train(state, settings, fp32))
        assert [values["skipped_steps"] for values in state.history[2:]] == [4, 4]
        states.append(state)
    assert_same_state(*states)


def test_class_weights_are_the_settings_choice(fp32):
    """Pseudo-labels of one batch are unevenly many: weighting them changes the first loss."""
    first = []
    for weights in (True, False):
        settings = selflabel_settings(epochs=1, batch_size=32, threshold=0.36, class_weights=weights)
        first.append(epochs_of(train(start(settings, fp32), settings, fp32))[0]["loss"])
    assert first[0] != pytest.approx(first[1], abs=1e-6)
