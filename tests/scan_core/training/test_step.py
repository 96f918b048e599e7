"""What stands around a loop's loss: batches, optimizers against their equations, the rate, the epoch's means."""

import pytest
import torch
from torch import nn

from scan_core.compute.distributed import world_size
from scan_core.errors import ScanError
from scan_core.models.networks import Model
from scan_core.training.schedule import learning_rate
from scan_core.training.state import TrainingState
from scan_core.training.step import LARS_TRUST, MIN_STEPS_TO_COMPILE, TrainStep, build_optimizer, check_batch
from scan_core.training.step import pays_to_compile as pays
from tests.tiny import as_on_a_gpu, cluster_model, cluster_settings, optimizer


def train_step(fabric, module, count=32, **values):
    settings = cluster_settings(**values)
    built = build_optimizer(settings.optimizer, module, fabric)
    state = TrainingState(module=module, optimizer=built, generator=torch.Generator().manual_seed(0))
    return TrainStep("cluster", state, settings, fabric, count)


# --- Batches


@pytest.mark.parametrize(("count", "size", "whole"), [(10, 3, 3), (9, 3, 3), (3, 3, 1)])
def test_an_epoch_has_whole_batches_of_a_new_permutation(fp32, count, size, whole):
    assert check_batch("cluster", size, count) == whole
    train, seen = train_step(fp32, cluster_model(), count, batch_size=size, epochs=2), []
    for _ in train.epochs():
        drawn = []
        for batch in train.batches():
            drawn.append(batch)
            assert train.end_step(size).images == size
        assert [len(batch) for batch in drawn] == [size] * whole
        assert len(torch.cat(drawn).unique()) == whole * size
        seen.append(torch.cat(drawn))
        train.end_epoch()
    assert len(seen) == 2 and (count == 3 or not torch.equal(*seen))


def test_batches_go_on_where_the_epoch_was_left(fp32):
    one, other = (train_step(fp32, cluster_model()) for _ in range(2))
    whole = []
    for batch in one.batches():
        whole.append(batch)
        one.end_step(8)
    next(iter(other.batches()))
    other.end_step(8)
    assert torch.equal(torch.cat([other.state.order[:8], next(iter(other.batches()))]), torch.cat(whole[:2]))


def test_a_batch_larger_than_the_data_is_an_error_that_names_the_setting():
    with pytest.raises(ScanError, match=r"pretext\.batch_size is 4, but there are 3 images .* at most 3 is allowed"):
        check_batch("pretext", 4, 3)


@pytest.mark.parametrize("size", [2, 5])
def test_a_batch_that_the_processes_cannot_share_is_an_error(monkeypatch, size):
    assert world_size() == 1
    monkeypatch.setattr("scan_core.training.step.world_size", lambda: 2)
    with pytest.raises(ScanError, match=rf"batch_size is {size}, but 2 processes share a batch; a multiple of 2 is"):
        check_batch("pretext", size, 100)


# --- Optimizers


def by_hand(name, weights, gradients, lr, momentum, decay):
    """The equations in float64, on one parameter; ``gradients`` are those of the steps, ``lr`` their rates."""
    w, m = weights.detach().double(), torch.zeros_like(weights, dtype=torch.float64)
    squares = torch.zeros_like(m)
    for number, (g, rate) in enumerate(zip(gradients, lr, strict=True), 1):
        g, scale = g.double(), 1.0
        if name == "lars" and w.dim() > 1:
            scale = LARS_TRUST * w.norm() / (g.norm() + decay * w.norm())
        g = scale * (g + (0.0 if name == "lars" and w.dim() == 1 else decay) * w)
        if name == "adam":
            m, squares = momentum * m + (1 - momentum) * g, 0.999 * squares + 0.001 * g**2
            corrected = m / (1 - momentum**number), squares / (1 - 0.999**number)
            w = w - rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
        else:
            m = momentum * m + g
            w = w - rate * m
    return w.float()


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5)])
@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_steps_are_those_of_the_equations(fp32, name, momentum, decay):
    """LARS neither scales nor decays a vector (biases, BatchNorm), and scales all else by its own norms."""
    shapes, rates, draw = [(6,), (3, 4), (2, 3, 3, 3)], [0.3, 0.2, 0.5, 0.1], torch.Generator().manual_seed(1)
    weights = nn.ParameterList(nn.Parameter(torch.randn(*shape, generator=draw)) for shape in shapes)
    gradients = [torch.randn(4, *shape, generator=draw) for shape in shapes]
    wanted = [by_hand(name, *each, rates, momentum, decay) for each in zip(weights, gradients, strict=True)]
    built = build_optimizer(optimizer(name=name, lr=1.0, momentum=momentum, weight_decay=decay), weights, fp32)
    for step, rate in enumerate(rates):
        for group in built.param_groups:
            group["lr"] = rate
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient[step].clone()
        built.step()
    torch.testing.assert_close([each.detach() for each in weights], wanted, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_is_not_optimized(fp32):
    model = cluster_model()
    model = Model(model.backbone, model.head, frozen=True)
    groups = build_optimizer(optimizer(), model, fp32).param_groups
    assert {id(each) for group in groups for each in group["params"]} == {id(each) for each in model.head.parameters()}


# --- The step


def test_a_step_is_plain_gradient_descent_at_the_rate_of_the_schedule(fp32):
    settings = optimizer(name="sgd", lr=0.5, weight_decay=0.0, momentum=0.0, schedule="cosine", warmup_epochs=1)
    linear = nn.Linear(3, 1, bias=False)
    train = train_step(fp32, linear, count=16, batch_size=8, epochs=4, optimizer=settings)
    inputs = torch.tensor([[1.0, 2.0, 3.0]])

    @train.graphed
    def step(seen):
        loss = train.model(seen).sum()
        train.backward_and_update(loss)
        return {"loss": loss, "doubled": 2 * seen}

    wanted, rates = linear.weight.detach().clone(), []
    for epoch in train.epochs():
        for _ in train.batches():
            rates.append(learning_rate(settings, len(rates), 2, 4))
            wanted = wanted - rates[-1] * inputs
            outputs = step(inputs)
            assert torch.equal(outputs["doubled"], 2 * inputs) and not outputs["loss"].requires_grad
            torch.testing.assert_close(linear.weight.detach(), wanted)
            train.end_step(8)
        assert train.end_epoch(other=epoch).values == {
            "loss": pytest.approx(train.state.history[-1]["loss"]), "lr": pytest.approx(rates[-1]), "other": epoch,
        }  # fmt: skip
    assert len(set(rates)) == 6  # warm-up and cosine: 0.25 and 0.5 come twice


def test_means_are_those_of_the_epoch_and_a_skipped_step_is_in_none(fp32):
    linear = nn.Linear(1, 1)
    train = train_step(fp32, linear, optimizer=optimizer(lr=1e-3), epochs=3)
    step = train.graphed(lambda value: {"loss": value, "other": -value, "rows": value.expand(2)})
    for values in ([1.0, 2.0, 6.0], [5.0], []):
        for value in values:
            step(torch.tensor(value))
            train.end_step(8)
        train.end_step(8)
        mean = sum(values) / len(values) if values else 0.0
        wanted = {"loss": mean, "other": -mean, "lr": 1e-3} if values else {"loss": 0.0, "lr": 1e-3}
        assert train.end_epoch().values == pytest.approx(wanted)


def test_a_network_is_compiled_for_as_many_steps_as_that_pays_for(monkeypatch, fp32):
    assert not pays(fp32, MIN_STEPS_TO_COMPILE)  # on a CPU
    made = as_on_a_gpu(monkeypatch, pays=8)
    model = cluster_model()
    short = train_step(fp32, model, epochs=1)  # of four steps
    assert short.compiled(model) is model and made == []
    twin = train_step(fp32, model, epochs=2).compiled(model)
    assert made[-1] is model.backbone and twin.head is model.head
    assert [id(each) for each in twin.parameters()] == [id(each) for each in model.parameters()]
