"""What the loops share: batches, the state of a resume, the optimiser step; and what all of them must keep to."""

import ast
import inspect

import pytest
import torch
from torch import nn

from scan_core.clustering import scan, selflabel
from scan_core.compute.device import make_fabric
from scan_core.errors import ScanError
from scan_core.models.networks import Model
from scan_core.pretext.methods import (
    METHODS,
    byol,
    instance_discrimination,
    moco,
    rotation,
    simclr,
    start_pretext,
    train_pretext,
)
from scan_core.training.schedule import learning_rate
from scan_core.training.step import Epoch, Step, Stepper, TrainingState, batches, build_optimizer, check_batch
from tests.tiny import (
    BACKBONE,
    TRAIN,
    VAL,
    assert_same_state,
    cluster_model,
    cluster_settings,
    epochs_of,
    images,
    neighbors,
    optimizer,
    pretext_settings,
    selflabel_settings,
    through_a_file,
)


def new_state(seed=0, **values):
    model = cluster_model(seed=seed)
    built = build_optimizer(optimizer(**values), model, make_fabric("fp32", "cpu"))
    return TrainingState(model, built, torch.Generator().manual_seed(seed))


# --- Batches


@pytest.mark.parametrize(("count", "size", "whole"), [(10, 3, 3), (9, 3, 3), (3, 3, 1), (2, 3, 0), (0, 3, 0)])
def test_batches_are_whole_and_in_order(count, size, whole):
    rows = torch.arange(100, 100 + count)
    found = list(batches(rows, size))
    assert len(found) == whole
    assert all(len(batch) == size for batch in found)
    assert torch.equal(torch.cat([*found, rows[:0]]), rows[: whole * size])


@pytest.mark.parametrize(("count", "size"), [(10, 3), (9, 3), (3, 3)])
def test_the_batches_announced_are_those_that_come(count, size):
    assert check_batch("pretext", size, count) == len(list(batches(torch.arange(count), size)))


def test_a_batch_larger_than_the_data_is_an_error_that_names_the_setting():
    with pytest.raises(ScanError, match=r"pretext\.batch_size is 4, but there are 3 images .* at most 3 is allowed"):
        check_batch("pretext", 4, 3)


# --- TrainingState


def test_an_epoch_is_counted_and_recorded():
    state = new_state()
    assert state.end_epoch({"loss": 2.0}) == Epoch(1, {"loss": 2.0})
    assert state.end_epoch({"loss": 1.0}) == Epoch(2, {"loss": 1.0})
    assert state.epoch == 2
    assert state.history == [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_an_error_that_names_it_and_the_epoch(value):
    state = new_state()
    state.end_epoch({"loss": 1.0, "lr": 0.1})
    with pytest.raises(ScanError, match=rf"entropy is {value} in epoch 2: training has diverged"):
        state.end_epoch({"loss": 1.0, "entropy": value})
    assert len(state.history) == 1


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_state_comes_back_from_a_file_as_it_was(name):
    state = new_state(name=name)
    state.module(torch.randn(4, 3, 8, 8))[1].sum().backward()
    state.optimizer.step()
    state.extra.update(best={"loss": 0.5, "weights": {"a": torch.ones(2)}}, losses=[[1.0, 2.0]], count=3)
    state.end_epoch({"loss": 1.5})
    torch.rand(3, generator=state.generator)
    saved = through_a_file(state)
    drawn = torch.rand(3), torch.rand(3, generator=state.generator)

    other = new_state(seed=1, name=name)
    other.load_state_dict(saved)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, generator=other.generator), drawn[1])
    assert_same_state(other, state)


def test_on_a_gpu_its_own_generator_comes_back_too(monkeypatch):
    """Dropout draws from it there. Without a GPU here, one that is made up."""
    drawn = [torch.tensor([7], dtype=torch.uint8)]
    monkeypatch.setattr(TrainingState, "_on_cuda", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: drawn[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", drawn.append)
    saved = through_a_file(new_state())
    drawn.append(torch.tensor([9], dtype=torch.uint8))
    new_state().load_state_dict(saved)
    assert drawn[-1].tolist() == [7]


# --- The optimiser and its step


def test_adam_decays_by_l2_with_momentum_as_first_beta(fp32):
    found = build_optimizer(optimizer(name="adam", lr=0.1, weight_decay=0.2, momentum=0.8), nn.Linear(2, 2), fp32)
    assert type(found) is torch.optim.Adam
    group = found.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.8, 0.999))
    assert not group["decoupled_weight_decay"]


def test_sgd_has_plain_momentum(fp32):
    found = build_optimizer(optimizer(name="sgd", lr=0.1, weight_decay=0.2, momentum=0.8), nn.Linear(2, 2), fp32)
    group = found.param_groups[0]
    assert type(found) is torch.optim.SGD
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 0.2, 0.8)
    assert (group["nesterov"], group["dampening"]) == (False, 0)


def test_what_is_frozen_is_not_optimised(fp32):
    model = cluster_model()
    model = Model(model.backbone, model.head, frozen=True)
    groups = build_optimizer(optimizer(), model, fp32).param_groups
    assert {id(each) for group in groups for each in group["params"]} == {id(each) for each in model.head.parameters()}


def test_a_step_is_plain_gradient_descent_at_the_rate_of_the_schedule(fp32):
    settings = optimizer(name="sgd", lr=0.5, weight_decay=0.0, momentum=0.0, schedule="cosine", warmup_epochs=1)
    linear = nn.Linear(3, 1, bias=False)
    model, sgd = fp32.setup(linear, build_optimizer(settings, linear, fp32))
    inputs = torch.tensor([[1.0, 2.0, 3.0]])

    def objective(seen):
        loss = model(seen).sum()
        return loss, {"loss": loss}, 2 * seen

    step = Stepper(fp32, sgd, settings, 2, 4, objective)
    wanted, rates = linear.weight.detach().clone(), []
    for epoch in range(4):
        for number in range(2):
            rate = learning_rate(settings, 2 * epoch + number, 2, 4)
            wanted = wanted - rate * inputs
            (doubled,) = step(epoch, inputs)
            assert torch.equal(doubled, 2 * inputs)
            rates.append(rate)
            torch.testing.assert_close(linear.weight.detach(), wanted)
        assert step.means(epoch)["lr"] == pytest.approx(rates[-1])
    assert len(set(rates)) == 6  # warm-up and cosine: 0.25 and 0.5 come twice


def test_means_are_those_of_the_epoch_and_start_anew(fp32):
    linear = nn.Linear(1, 1)
    model, sgd = fp32.setup(linear, build_optimizer(optimizer(lr=1e-3), linear, fp32))

    def objective(value):
        return model(torch.ones(1, 1)).sum(), {"loss": value, "other": -value}

    step = Stepper(fp32, sgd, optimizer(lr=1e-3), 3, 2, objective)
    for values in ([1.0, 2.0, 6.0], [5.0]):
        for value in values:
            assert step(0, torch.tensor(value)) == []
        mean = sum(values) / len(values)
        assert step.means(0) == pytest.approx({"loss": mean, "other": -mean, "lr": 1e-3})


# --- What all loops keep to


def loop(method, fabric, **values):
    """A loop of one epoch over the tiny images, ready to run."""
    data = images()
    if method in METHODS:
        settings = pretext_settings(method=method, epochs=1, **values)
        state = start_pretext(settings, BACKBONE, 3, len(TRAIN), 0, fabric)
        return train_pretext(state, data, TRAIN, settings, fabric)
    if method == "scan":
        settings = cluster_settings(epochs=1, **values)
        state = scan.start_scan(settings, cluster_model(), 0, fabric)
        mined = neighbors(len(TRAIN), 3), VAL, neighbors(len(VAL), 2)
        return scan.train_scan(state, data, TRAIN, *mined, settings, fabric)
    settings = selflabel_settings(epochs=1, **values)
    state = selflabel.start_selflabel(settings, cluster_model(), 0, fabric)
    return selflabel.train_selflabel(state, data, TRAIN, VAL, settings, fabric)


LOSSES = {
    "simclr": (simclr, "nt_xent"),
    "moco": (moco, "info_nce"),
    "instance_discrimination": (instance_discrimination, "memory_bank_nce"),
    "rotation": (rotation.F, "cross_entropy"),
    "byol": (byol, "byol_loss"),
    "scan": (scan, "scan_loss"),
    "selflabel": (selflabel, "confident_cross_entropy"),
}


@pytest.mark.parametrize("method", LOSSES)
def test_losses_are_computed_in_float32_outside_autocast_under_bf16(monkeypatch, bf16, method):
    module, name = LOSSES[method]
    original, seen = getattr(module, name), []

    def spy(first, second, *others):
        result = original(first, second, *others)
        total = result[0] if isinstance(result, tuple) else result
        seen.append((first.dtype, second.dtype, total.dtype, torch.is_autocast_enabled("cpu")))
        return result

    monkeypatch.setattr(module, name, spy)
    (values,) = epochs_of(loop(method, bf16))
    assert len(seen) == (8 if method == "byol" else 4)
    assert {each[2:] for each in seen} == {(torch.float32, False)}
    assert all(dtype in (torch.float32, torch.int64) for each in seen for dtype in each[:2])
    assert all(isinstance(value, (int, float)) for value in values.values())


@pytest.mark.parametrize("method", LOSSES)
def test_a_loop_yields_its_steps_and_then_the_epoch(fp32, method):
    done = list(loop(method, fp32))
    assert [type(each) for each in done] == [Step] * 4 + [Epoch]
    views = {"instance_discrimination": 1, "rotation": 4}.get(method, 2)
    assert [each.images for each in done[:4]] == [8 * views] * 4
    assert done[4].number == 1
    assert done[4].values["lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize("method", LOSSES)
def test_a_batch_larger_than_the_data_is_an_error(fp32, method):
    stage = "pretext" if method in METHODS else {"scan": "cluster"}.get(method, method)
    with pytest.raises(ScanError, match=rf"{stage}\.batch_size is 33, but there are 32 images"):
        next(loop(method, fp32, batch_size=33, **({"key_groups": 1} if method == "moco" else {})))


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("method", LOSSES)
def test_a_diverging_run_is_an_error_that_names_the_epoch(fp32, method, name):
    """Weights beyond float32 after the first step; the epoch's mean loss is not finite."""
    with pytest.raises(ScanError, match="in epoch 1: training has diverged"):
        epochs_of(loop(method, fp32, optimizer=optimizer(name=name, lr=1e36)))


@pytest.mark.parametrize("method", LOSSES)
def test_training_is_the_seeds_whatever_was_drawn_before(fp32, method):
    first = epochs_of(loop(method, fp32))
    torch.rand(100)
    assert epochs_of(loop(method, fp32)) == first


@pytest.mark.parametrize(
    "module",
    [
        "augment",
        "byol",
        "collapse",
        "images",
        "inference",
        "instance_discrimination",
        "losses",
        "moco",
        "neighbors",
        "networks",
        "pretext",
        "rotation",
        "scan",
        "selflabel",
        "simclr",
        "training",
    ],
)
def test_labels_reach_no_module_that_trains_or_mines(module):
    """They come with sources, and are used in metrics and evaluation: none of these may be imported there."""
    source = inspect.getsource(__import__(f"scan_core.{module}", fromlist=["_"]))
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert not imported & {f"scan_core.{name}" for name in ("sources", "labels", "metrics", "evaluation")}
    arguments = {node.arg for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    assert not arguments & {"labels", "targets", "classes"}
