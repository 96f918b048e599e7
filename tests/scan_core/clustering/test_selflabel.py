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
from scan_core.training.state import Epoch, Step
from scan_core.views.random_view import random_view
from tests.tiny import (
    SGD,
    TRAIN,
    VAL,
    assert_descended,
    assert_equal,
    assert_same_state,
    change,
    cluster_model,
    epochs_of,
    images,
    optimizer,
    selflabel_settings,
    spied,
    strong_augmentation,
    through_a_file,
)

EMA = 0.9


def start(settings, fabric, seed=0):
    return start_selflabel(settings, cluster_model(), seed, fabric)


def train(state, settings, fabric, rows=TRAIN):
    return train_selflabel(state, images(), rows, VAL, settings, fabric)


def clusters_of(module, fabric):
    return log_probabilities(module, images(), VAL, fabric)[0].argmax(dim=1)


# --- The step


@pytest.mark.parametrize("class_weights", [False, True])
def test_a_step_is_the_loss_of_strong_views_against_plain_ones_and_plain_gradient_descent(fp32, class_weights):
    """By hand, in train mode: pseudo-labels of the plain views, then the strong views, then w - lr * gradient."""
    data, rows = images(), TRAIN + 8
    state = start(selflabel_settings(optimizer=SGD), fp32)
    module, generator = copy.deepcopy(state.module).train(), state.generator.clone_state()
    batch = rows[torch.randperm(32, generator=generator)][:8]
    with torch.no_grad():
        weak = module(data.plain_view(batch))[1][0].log_softmax(1)
    threshold = float(weak.exp().amax(1).sort().values[2:4].mean())  # three are not confident, five are
    settings = selflabel_settings(threshold=threshold, class_weights=class_weights, optimizer=SGD)
    strong = module(random_view(data, batch, settings.augmentation, generator))[1][0]
    confident_cross_entropy(strong, weak, threshold, class_weights).backward()

    next(train(state, settings, fp32, rows))
    assert_descended(state.module, module)


def test_one_batch_is_learnt_by_heart(fp32):
    settings = selflabel_settings(epochs=14, augmentation=strong_augmentation(flip=0.0, operations=0, cutout=0))
    state = start(settings, fp32)
    found = epochs_of(train(state, settings, fp32, TRAIN[:8]))
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
    before = copy.deepcopy(dict(state.module.named_parameters()))
    found = epochs_of(train(state, settings, fp32))
    assert [(values["skipped_steps"], values["loss"]) for values in found] == [(4, 0)] * 3
    assert_equal(dict(state.module.named_parameters()), before)
    assert not state.optimizer.state


def test_skipped_steps_are_those_of_batches_without_a_confident_image(monkeypatch, fp32):
    """A rate so low that each batch's confidences are known beforehand; half of the batches have none above."""
    settings = selflabel_settings(batch_size=2, epochs=1, optimizer=optimizer(lr=1e-9))
    state = start(settings, fp32)
    module, generator = copy.deepcopy(state.module).train(), state.generator.clone_state()
    with torch.no_grad():
        order = TRAIN[torch.randperm(32, generator=generator)]
        each = torch.stack([module(images().plain_view(batch))[1][0].softmax(1).amax() for batch in order.view(16, 2)])
    settings = change(settings, threshold=float(each.sort().values[7:9].mean()))
    _, losses = spied(monkeypatch, selflabel, "confident_cross_entropy")
    *steps, epoch = train(state, settings, fp32)
    assert epoch.values["skipped_steps"] == len(losses) == 8
    assert [step.images for step in steps] == [4 if there else 2 for there in each > settings.threshold]
    assert epoch.values["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 8)  # of the steps that were done


# --- What an epoch reports


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_an_epoch_reports_counts_over_all_images_in_eval_mode_by_the_average_if_there_is_one(fp32, ema):
    settings = selflabel_settings(ema=ema, threshold=0.45, epochs=4, optimizer=optimizer(lr=0.03))
    state, seen = start(settings, fp32), []
    assert state.judged is (state.ema if ema else state.module)
    before, shares = clusters_of(state.module, fp32), [confident_share(state.module, images(), TRAIN, 0.45, fp32)]
    for done in train(state, settings, fp32):
        if isinstance(done, Epoch):
            after, of_module = clusters_of(state.judged, fp32), clusters_of(state.module, fp32)
            share = confident_share(state.judged, images(), TRAIN, 0.45, fp32)
            highest = log_probabilities(state.judged, images(), TRAIN, fp32)[0].exp().amax(dim=1)
            wanted = {
                "confident": int((highest > 0.45).sum()),
                "confident_share": share,
                "clusters_used": len(set(after.tolist())),
                "agreement": float((after == before).double().mean()),
            }
            assert {name: done.values[name] for name in wanted} == pytest.approx(wanted)
            assert share == pytest.approx(wanted["confident"] / 32)
            assert torch.equal(state.assignments[-1].long(), after)
            shares.append(share)
            seen.append((
                share != confident_share(state.module, images(), TRAIN, 0.45, fp32), not torch.equal(after, of_module),
                wanted["clusters_used"] != len(set(of_module.tolist())), 0 < wanted["agreement"] < 1,
            ))  # fmt: skip
            before = after
    assert state.confident == pytest.approx(shares) and len(state.assignments) == 5  # one before the first epoch
    differ = [any(each) for each in zip(*seen, strict=True)]
    assert all(differ[:3]) if ema else differ[3]  # so that the above says something


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


def after_each_step(state, settings, fabric):
    """What each step or epoch yields, with copies of the network and of its average there."""
    for done in train(state, settings, fabric):
        yield done, copy.deepcopy(state.module.state_dict()), copy.deepcopy(state.ema.state_dict())


def test_the_average_starts_as_a_copy_that_no_optimizer_sees(fp32):
    state = start(selflabel_settings(ema=EMA), fp32)
    assert_equal(state.ema.state_dict(), state.module.state_dict())
    places = {each.data_ptr() for each in state.module.parameters()}
    assert not places & {each.data_ptr() for each in state.ema.parameters()}
    assert places == {each.data_ptr() for group in state.optimizer.param_groups for each in group["params"]}
    assert not any(each.requires_grad for each in state.ema.parameters())
    assert all(each.requires_grad for each in state.module.parameters())


@pytest.mark.parametrize("ema", [0.5, 0.9, 0.999])
def test_a_step_that_is_done_moves_the_average_by_its_equation_and_a_skipped_one_does_not(fp32, ema):
    """Of weights and BatchNorm's statistics alike; the plain views of a skipped step do move the network's."""
    settings = selflabel_settings(ema=ema, threshold=0.45, epochs=2, batch_size=2, optimizer=change(SGD, lr=1e-2))
    state = start(settings, fp32)
    last, done, statistics = copy.deepcopy(state.ema.state_dict()), [], "backbone.norms.5.running_mean"
    for progress, module, average in after_each_step(state, settings, fp32):
        if isinstance(progress, Step):
            done.append(progress.images == 4)
            moved = {
                name: ema * last[name] + (1 - ema) * value if value.is_floating_point() else value
                for name, value in module.items()
            }
            torch.testing.assert_close(average, moved if done[-1] else last, rtol=1e-5 * done[-1], atol=1e-7 * done[-1])
            assert not torch.equal(average[statistics], module[statistics])
            last = average
    assert len(done) == 32 and 3 < sum(done) < 29


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_the_average_never_reaches_the_network_that_learns(fp32, name):
    """To the bit: weights, BatchNorm, optimizer, random numbers, losses; and so its pseudo-labels."""
    states = []
    for ema in (0.0, EMA):
        settings = selflabel_settings(ema=ema, epochs=3, optimizer=optimizer(name=name))
        states.append(start(settings, fp32))
        epochs_of(train(states[-1], settings, fp32))
    without, with_average = (
        [
            *(state.state_dict()[part] for part in ("module", "optimizer", "generator", "torch_rng")),
            [{key: values[key] for key in ("loss", "skipped_steps", "lr")} for values in state.history],
        ]
        for state in states
    )
    assert_equal(with_average, without)
    assert states[1].history[0]["loss"] > 0
    moved = states[1].ema.head.linear.weight - states[1].module.head.linear.weight
    assert float(moved.detach().abs().max()) > 1e-3


def test_pseudo_labels_come_from_the_network_as_it_trains(monkeypatch, fp32):
    """Neither from its average nor in eval mode."""
    given, _ = spied(monkeypatch, selflabel, "confident_cross_entropy")
    settings, data = selflabel_settings(ema=EMA, threshold=0.34, epochs=1), images()
    state = start(settings, fp32)
    order = TRAIN[torch.randperm(32, generator=state.generator.clone_state())].view(4, 8)
    module = copy.deepcopy(state.module).train()
    for batch, (_, network, average) in zip(order, after_each_step(state, settings, fp32), strict=False):
        with torch.no_grad():
            weak = module(data.plain_view(batch))[1][0].log_softmax(1)
        torch.testing.assert_close(given[-1][1], weak)
        module.load_state_dict(network)
        other = copy.deepcopy(module)
        other.load_state_dict(average)
    assert len(given) == 4
    with torch.no_grad():
        assert not torch.allclose(other(data.plain_view(order[3]))[1][0].log_softmax(1), weak, atol=1e-3)


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
    assert_equal(state.ema.state_dict(), first)


# --- What trains


def test_after_head_only_training_everything_trains_again(fp32):
    """Settings of a stage end with it."""
    settings = selflabel_settings(train="head")
    model = cluster_model()
    start_selflabel(settings, model, 0, fp32)
    state = start_selflabel(selflabel_settings(), model, 0, fp32)
    assert all(parameter.requires_grad for parameter in state.module.parameters())


@pytest.mark.parametrize("ema", [0.0, EMA])
def test_no_epochs_keep_the_model_to_the_byte(fp32, ema):
    settings, model = selflabel_settings(epochs=0, ema=ema), cluster_model()
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    state = start_selflabel(settings, model, 0, fp32)
    assert list(train(state, settings, fp32)) == []
    assert {key: value.numpy().tobytes() for key, value in state.judged.state_dict().items()} == before
    assert (state.epoch, state.history) == (0, [])
    (assigned,) = state.assignments
    assert torch.equal(assigned.long(), clusters_of(model, fp32))


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


def with_cluster_3(assigned, cluster):
    return torch.where(assigned == 3, cluster, assigned)


@pytest.mark.parametrize(
    ("before", "after", "kept", "said"),
    [
        (TOGETHER, with_cluster_3(TOGETHER, 0), "before", "3 of 4 clusters"),  # neighbors stay together
        (with_cluster_3(parted(20), 0), TOGETHER, "after", "4 clusters in use"),
        (TOGETHER, TOGETHER + 7, "after", "4 clusters in use"),  # it counts clusters, whatever their numbers
        (TOGETHER, parted(2), "before", "from 1.000 to 0.980"),
        (TOGETHER, parted(1), "after", "4 clusters in use, neighbor agreement 0.990"),  # by one point and not more
        (TOGETHER, TOGETHER, "after", "4 clusters in use, neighbor agreement 1.000"),
    ],
    ids=["a cluster dies", "a cluster comes", "others", "neighbors part", "neighbors part a little", "the same"],
)
def test_the_model_from_before_is_kept_where_clusters_died_or_neighbors_part(before, after, kept, said):
    found, why = choose_model(before, after, PAIRS, True)
    assert found == kept and said in why


@pytest.mark.parametrize(("held", "kept"), [(2, "before"), (3, "after")])
def test_a_cluster_with_less_than_a_tenth_of_what_the_smallest_held_has_died(held, kept):
    """Before: 970 images in one cluster and 30 in the other; and every pair of neighbors stays together."""
    before, after = ((torch.arange(1000) < count).long() for count in (30, held))
    found, why = choose_model(before, after, torch.arange(1000), True)
    assert found == kept
    assert ("1 of 2 clusters" in why) is (kept == "before")


def test_the_model_from_before_is_kept_where_nothing_was_learned():
    kept, why = choose_model(TOGETHER, TOGETHER, PAIRS, False)
    assert (kept, why) == ("before", "no training image was ever above selflabel.threshold")


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
