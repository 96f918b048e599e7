"""Features of a frozen backbone, computed once: the same training as on images, and no pass of the backbone more."""

import copy
import functools

import pytest
import torch

from scan_core.clustering import selflabel
from scan_core.clustering.scan import best_model, start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.models import inference
from scan_core.training.state import Epoch, Step
from tests.tiny import (
    PLAIN,
    SGD,
    TRAIN,
    VAL,
    change,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    selflabel_settings,
    simclr_augmentation,
    spied,
    strong_augmentation,
    through_a_file,
)

ROWS = TRAIN[torch.randperm(32, generator=torch.Generator().manual_seed(1))]  # rows are not positions
MINED, VAL_MINED = neighbors(32, 5), neighbors(16, 4)
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def cluster(**values):
    return cluster_settings(**{"train": "head", "augmentation": PLAIN, "epochs": 3, **values})


def start(settings, fabric, seed=0):
    return start_scan(settings, cluster_model(), seed, fabric)


def train(state, settings, fabric):
    return train_scan(state, images(), ROWS, MINED, VAL, VAL_MINED, settings, fabric)


def labeling(**values):
    return selflabel_settings(**{"train": "head", "threshold": 0.5, "epochs": 3, **values})


@torch.no_grad()
def parting_model():
    """New features of all images are much the same: a head by their differences, which parts them into all clusters."""
    model = cluster_model()
    features = model.backbone.eval()(images().plain_view(TRAIN))
    model.head.linear.weight.mul_(1 / features.std(dim=0).mean())
    model.head.linear.bias.copy_(-model.head.linear.weight @ features.mean(dim=0))
    return model


def start_labeling(settings, fabric):
    return start_selflabel(settings, parting_model(), 0, fabric)


def label(state, settings, fabric):
    return train_selflabel(state, images(), ROWS, VAL, settings, fabric)


def on_images(settings):
    """Settings for a loop whose network is frozen already, but that is not told so: it computes features anew."""
    return change(settings, train="all")


def watch(passes, *networks):
    """Puts into ``passes``, from now on, how many images go through a backbone, and whether it is in train mode."""
    for each in networks:
        each.backbone.register_forward_hook(
            lambda backbone, given, _: passes.append((len(given[0]), backbone.training))
        )
    return passes


# --- Clustering


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": SGD},
        {"neighbors": 0},
        {"prior": (0.6, 0.3, 0.1), "entropy_of": "both"},
        {"optimizer": optimizer(lr=0.1)},
    ],
    ids=["adam", "sgd", "itself", "prior", "fast"],
)
def test_heads_trained_on_features_are_those_trained_on_images(fp32, values):
    """Their weights, all losses, what is kept, assignments, and the random numbers drawn."""
    settings, states = cluster(**values), []
    for each in (settings, on_images(settings)):
        states.append(start(settings, fp32))
        found = epochs_of(train(states[-1], each, fp32))
        assert len(found) == 3
    assert_close(states[0].state_dict(), states[1].state_dict())
    assert_close(best_model(states[0]).state_dict(), best_model(states[1]).state_dict())
    losses = torch.tensor(states[0].head_losses)
    assert float((losses[0] - losses[-1]).abs().min()) > 1e-3  # something was learnt


@pytest.mark.parametrize(("batch", "sizes"), [(512, [32, 16]), (10, [10, 10, 10, 2, 10, 6]), (32, [32, 16])])
def test_clustering_passes_each_image_through_the_backbone_once(monkeypatch, fp32, batch, sizes):
    """In eval mode, before the first step; then never, however many epochs: also those of a resume."""
    monkeypatch.setattr(inference, "BATCH", batch)
    settings = cluster(epochs=4)
    state = start(settings, fp32)
    passes = watch([], state.module)
    progress = train(state, settings, fp32)
    assert isinstance(next(progress), Step)
    assert passes == [(size, False) for size in sizes]
    for done in progress:
        if isinstance(done, Epoch) and done.number == 2:
            break
    resumed = start(settings, fp32, seed=7)
    resumed.load_state_dict(through_a_file(state))
    watch(passes, resumed.module)
    assert len(epochs_of(train(resumed, settings, fp32))) == 2
    assert passes == [(size, False) for size in 2 * sizes]


@pytest.mark.parametrize(
    ("values", "frozen"),
    [
        ({"augmentation": strong_augmentation()}, True),
        ({"augmentation": simclr_augmentation()}, True),
        ({"train": "all"}, False),
        ({"train": "all", "augmentation": strong_augmentation()}, False),
    ],
    ids=["strong", "simclr", "all", "all, strong"],
)
def test_features_that_change_are_not_kept(fp32, values, frozen):
    """Those of augmented images, or of a backbone that trains: each step's views pass it."""
    settings = cluster(epochs=2, **values)
    state = start(settings, fp32)
    passes = watch([], state.module)
    epochs_of(train(state, settings, fp32))
    assert passes == 2 * [*[(16, not frozen)] * 4, (16, False)]


# --- Self-labeling


@pytest.mark.parametrize(
    "values",
    [{}, {"optimizer": SGD}, {"ema": 0.9}, {"threshold": 0.65, "batch_size": 2}, {"class_weights": False}],
    ids=["adam", "sgd", "average", "skipped", "unweighted"],
)
@pytest.mark.slow
def test_self_labeling_on_features_is_that_on_images(monkeypatch, fp32, values):
    """Pseudo-labels of each step, confident shares, assignments, weights, and the random numbers drawn."""
    given, _ = spied(monkeypatch, selflabel, "confident_cross_entropy")
    settings, states = labeling(**values), []
    for each in (settings, on_images(settings)):
        states.append(start_labeling(settings, fp32))
        assert len(epochs_of(label(states[-1], each, fp32))) == 3
    assert_close(states[0].state_dict(), states[1].state_dict())
    assert_close(states[0].judged.state_dict(), states[1].judged.state_dict())
    weak = [each for _, each, *_ in given]
    assert_close(weak[: len(weak) // 2], weak[len(weak) // 2 :])
    assert len(set(states[0].confident)) > 1  # something was learnt
    assert all(len(set(each.tolist())) > 1 for each in states[0].assignments)
    skipped = sum(each["skipped_steps"] for each in states[0].history)
    assert (len(weak) // 2 + skipped, skipped > 0) == (3 * 32 // settings.batch_size, "threshold" in values)


def test_pseudo_labels_of_known_features_are_those_of_plain_views(monkeypatch, fp32):
    """Each of its own image, though the order is another in each epoch, and by the head as it is then."""
    given, _ = spied(monkeypatch, selflabel, "confident_cross_entropy")
    settings, data = labeling(threshold=0.34, epochs=1), images()
    state = start_labeling(settings, fp32)
    order = ROWS[torch.randperm(32, generator=state.generator.clone_state())].view(4, 8)
    heads = [copy.deepcopy(state.module)]
    for _ in label(state, settings, fp32):
        heads.append(copy.deepcopy(state.module))
    assert not torch.equal(heads[0].head.linear.weight, heads[3].head.linear.weight)
    assert len(given) == 4
    for batch, module, (_, weak, *_) in zip(order, heads[:4], given, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(weak, module.eval()(data.plain_view(batch))[1][0].log_softmax(1))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_self_labeling_passes_each_plain_image_through_the_backbone_once(fp32, ema):
    """And, in each step that is done, its strong views. Of the average's backbone, which is the same, nothing."""
    settings = labeling(ema=ema, threshold=0.65, batch_size=2)
    state = start_labeling(settings, fp32)
    passes = watch([], state.module, *([state.ema] if ema else []))
    steps = [done for done in label(state, settings, fp32) if isinstance(done, Step)]
    done = sum(step.images == 4 for step in steps)
    assert 3 < done < len(steps) - 3
    assert passes == [(32, False), (16, False), *[(2, False)] * done]


def test_self_labeling_of_a_backbone_that_trains_keeps_no_features(fp32):
    settings = labeling(train="all", threshold=0.34, epochs=1)
    state = start_labeling(settings, fp32)
    passes = watch([], state.module)
    assert len([done for done in label(state, settings, fp32) if isinstance(done, Step)]) == 4
    assert passes == [(32, False), (16, False), *[(8, True)] * 8, (32, False), (16, False)]


# --- Both


@pytest.mark.parametrize(
    ("make", "begin", "run"),
    [(cluster, start, train), (labeling, start_labeling, label)],
    ids=["cluster", "selflabel"],
)
def test_under_bf16_features_are_kept_in_float32_and_differ_by_its_rounding_alone(fp32, bf16, make, begin, run):
    settings = make(epochs=1, optimizer=change(SGD, lr=1e-3))
    losses = [epochs_of(run(begin(settings, fabric), settings, fabric))[0]["loss"] for fabric in (fp32, bf16)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
