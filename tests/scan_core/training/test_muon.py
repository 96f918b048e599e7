"""Muon against its equations: what an orthogonal matrix is made of, how far steps go; Adam for the rest; its state."""

import pytest
import torch
from torch import nn

from scan_core.compute.device import make_fabric
from scan_core.training.muon import Muon, newton_schulz
from scan_core.training.step import build_optimizer
from tests.tiny import optimizer


def gradients(*shape, steps=4):
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(1))


def parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def run(built, weight, gradients, rates):
    for rate, gradient in zip(rates, gradients, strict=True):
        built.param_groups[0]["lr"] = rate
        weight.grad = gradient.clone()
        built.step()


def muon(*weights, momentum=0.9, decay=0.0):
    return Muon(weights, lr=1.0, momentum=momentum, weight_decay=decay)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (30, 5), (2, 2)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_singular_vectors_stay_and_singular_values_become_about_1(shape, size, bf16):
    u, _, v = torch.linalg.svd(gradients(*shape, steps=1)[0], full_matrices=False)
    values = torch.linspace(0.1, 1, min(shape))
    (found,) = newton_schulz((size * (u * values) @ v)[None], bf16)
    assert found.dtype == torch.float32
    slack = 0.03 if bf16 else 1e-3  # bfloat16 has three digits
    turned = u.T @ found @ v.T
    diagonal = turned.diagonal()
    assert 0.68 - slack < diagonal.min() and diagonal.max() < 1.14 + slack  # what the polynomial leaves
    torch.testing.assert_close(turned, diagonal.diag(), rtol=0, atol=slack)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_matrix_of_zeros_has_no_direction(bf16):
    assert torch.equal(newton_schulz(torch.zeros(1, 3, 4), bf16), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (4, 3, 2, 2)])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.3)])
def test_steps_on_matrices_are_those_of_the_equations(shape, momentum, decay):
    weight, each, rates = parameter(*shape), gradients(*shape), [0.3, 0.2, 0.5, 0.1]
    wanted, average = weight.detach().flatten(1), torch.zeros(shape).flatten(1)
    for rate, gradient in zip(rates, each.flatten(2), strict=True):
        average = momentum * average + (1 - momentum) * gradient
        (direction,) = newton_schulz((momentum * average + (1 - momentum) * gradient)[None], False)
        wanted = wanted - rate * (0.2 * max(wanted.shape) ** 0.5 * direction + decay * wanted)
    run(muon(weight, momentum=momentum, decay=decay), weight, each, rates)
    torch.testing.assert_close(weight.detach().flatten(1), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (16, 256), (16, 16, 3, 3)])
def test_a_step_is_about_as_long_as_adam_s(shape):
    """Its root mean square is about 0.2 rates, however large the gradient is."""
    for size in (1e-4, 1e4):
        weight = parameter(*shape)
        before = weight.detach().clone()
        run(muon(weight), weight, size * gradients(*shape, steps=1), [0.1])
        assert 0.013 < float((weight.detach() - before).square().mean().sqrt()) < 0.024


@pytest.mark.parametrize("shape", [(6,), (1, 5), (5, 1), (1, 1, 4)])
def test_what_is_no_matrix_takes_adam_without_decay(shape):
    mine, adams, each, rates = parameter(*shape), parameter(*shape), gradients(*shape), [0.3, 0.2, 0.5, 0.1]
    run(muon(mine, momentum=0.8, decay=0.7), mine, each, rates)
    run(torch.optim.Adam([adams], betas=(0.8, 0.999)), adams, each, rates)
    torch.testing.assert_close(mine, adams)


def test_weights_together_take_the_steps_that_each_takes_alone():
    """Some of one shape, some of others, of several kinds, each with gradients of its own."""
    shapes = [(4, 6), (4, 3, 2, 1), (6, 4), (4,), (4, 6), (7,)]
    # Of another direction each: a multiple would be turned into the same.
    each = [gradients(*shape, steps=3).roll(number, dims=-1) for number, shape in enumerate(shapes)]
    alone = [parameter(*shape, seed=number) for number, shape in enumerate(shapes)]
    for weight, own in zip(alone, each, strict=True):
        run(muon(weight, decay=0.1), weight, own, [0.3, 0.2, 0.1])
    together = [parameter(*shape, seed=number) for number, shape in enumerate(shapes)]
    optimizer = muon(*together, decay=0.1)
    for step, rate in enumerate([0.3, 0.2, 0.1]):
        optimizer.param_groups[0]["lr"] = rate
        for weight, own in zip(together, each, strict=True):
            weight.grad = own[step].clone()
        optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_filters_in_either_memory_format_take_the_same_step():
    one, other = parameter(4, 3, 2, 2), parameter(4, 3, 2, 2)
    other.data = other.data.to(memory_format=torch.channels_last)
    for weight in (one, other):
        run(muon(weight), weight, gradients(4, 3, 2, 2), [0.1] * 4)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one, other)


def test_a_parameter_without_gradient_is_left_alone_and_the_callers_gradients_as_they_are():
    weight, other = parameter(2, 3), parameter(2, 3)
    before, gradient = other.detach().clone(), gradients(2, 3)[0]
    own = muon(weight, other, decay=0.1)
    weight.grad = gradient.clone()
    own.step()
    assert torch.equal(other, before)
    assert torch.equal(weight.grad, gradient)
    assert list(own.state) == [weight]


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True)])
def test_the_settings_name_builds_it_in_the_precision_of_the_run(precision, bf16):
    settings = optimizer(name="muon", lr=0.2, weight_decay=0.3, momentum=0.8)
    found = build_optimizer(settings, nn.Linear(2, 2), make_fabric(precision, "cpu"))
    assert found.bf16 is bf16
    group = found.param_groups[0]
    assert type(found) is Muon
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.2, 0.3, 0.8)
