"""LARS against its equations, step by step; what is left out of it; its state."""

import io
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scan_core.training.lars import TRUST, Lars
from scan_core.training.step import build_optimizer
from tests.tiny import optimizer


def gradients(*shape, steps=4):
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(1))


def parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def norm(values):
    return math.sqrt(sum(x * x for x in values))


def by_hand(weight, gradients, lr, momentum, decay, scaled):
    """The class's equations on a flat list of numbers; ``lr`` is a list, one a step."""
    w, v = weight.flatten().tolist(), [0.0] * weight.numel()
    for rate, gradient in zip(lr, gradients, strict=True):
        g = gradient.flatten().tolist()
        if scaled:
            g = [a + decay * b for a, b in zip(g, w, strict=True)]
            scale = 0.001 * norm(w) / norm(g) if norm(w) > 0 and norm(g) > 0 else 1.0
            g = [scale * a for a in g]
        v = [momentum * a + b for a, b in zip(v, g, strict=True)]
        w = [a - rate * b for a, b in zip(w, v, strict=True)]
    return torch.tensor(w).view_as(weight)


def run(lars, weight, gradients, lr):
    for rate, gradient in zip(lr, gradients, strict=True):
        lars.param_groups[0]["lr"] = rate
        weight.grad = gradient.clone()
        lars.step()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3, 3)])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5)])
def test_steps_on_matrices_are_those_of_the_equations(shape, momentum, decay):
    weight, each, rates = parameter(*shape), gradients(*shape), [30.0, 20.0, 50.0, 10.0]
    wanted = by_hand(weight.detach(), each, rates, momentum, decay, scaled=True)
    run(Lars([weight], lr=1.0, momentum=momentum, weight_decay=decay), weight, each, rates)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_the_trust_ratio_is_the_published_one():
    """The first step is as long as lr * 0.001 * |w|, however large the gradient is."""
    assert TRUST == 0.001
    for size in (1e-3, 1.0, 1e4):
        weight = parameter(5, 5)
        before = weight.detach().clone()
        run(Lars([weight], lr=1.0, momentum=0.9, weight_decay=0.0), weight, size * gradients(5, 5, steps=1), [2.0])
        assert float((weight.detach() - before).norm()) == pytest.approx(2e-3 * float(before.norm()), rel=1e-4)


def test_parameters_of_one_dimension_take_plain_steps_with_momentum():
    weight, each, rates = parameter(6), gradients(6), [0.3, 0.2, 0.5, 0.1]
    wanted = by_hand(weight.detach(), each, rates, 0.9, 0.7, scaled=False)
    run(Lars([weight], lr=1.0, momentum=0.9, weight_decay=0.7), weight, each, rates)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_each_parameter_is_scaled_by_its_own_norms():
    """Together they move as each does alone."""
    shapes = [(3, 4), (4,), (5, 2)]
    together, alone = ([parameter(*shape, seed=seed) for seed, shape in enumerate(shapes)] for _ in range(2))
    lars = Lars(together, lr=1.0, momentum=0.9, weight_decay=0.1)
    for weight, shape in zip(together, shapes, strict=True):
        weight.grad = gradients(*shape)[0]
    lars.step()
    for weight, other, shape in zip(together, alone, shapes, strict=True):
        run(Lars([other], lr=1.0, momentum=0.9, weight_decay=0.1), other, gradients(*shape, steps=4)[:1], [1.0])
        torch.testing.assert_close(weight, other)


def test_weights_of_zero_take_a_plain_step():
    weight, each = nn.Parameter(torch.zeros(2, 3)), gradients(2, 3, steps=1)
    run(Lars([weight], lr=1.0, momentum=0.9, weight_decay=0.1), weight, each, [0.5])
    torch.testing.assert_close(weight.detach(), -0.5 * each[0])


def test_a_gradient_of_zero_leaves_weights_where_they_are():
    weight = parameter(2, 3)
    before = weight.detach().clone()
    run(Lars([weight], lr=1.0, momentum=0.9, weight_decay=0.0), weight, torch.zeros(2, 2, 3), [0.5, 0.5])
    assert torch.equal(weight, before)


def test_a_parameter_without_gradient_is_left_alone_and_the_callers_gradients_as_they_are():
    weight, other = parameter(2, 3), parameter(2, 3)
    before, gradient = other.detach().clone(), gradients(2, 3)[0]
    lars = Lars([weight, other], lr=1.0, momentum=0.9, weight_decay=0.1)
    weight.grad = gradient.clone()
    lars.step()
    assert torch.equal(other, before)
    assert torch.equal(weight.grad, gradient)
    assert list(lars.state) == [weight]


def test_a_resume_continues_to_the_bit():
    each, rates = gradients(3, 4), [3.0, 2.0, 1.0, 4.0]
    whole, half = parameter(3, 4), parameter(3, 4)
    run(Lars([whole], lr=1.0, momentum=0.9, weight_decay=0.1), whole, each, rates)
    lars = Lars([half], lr=1.0, momentum=0.9, weight_decay=0.1)
    run(lars, half, each[:2], rates[:2])
    file = io.BytesIO()
    torch.save(lars.state_dict(), file)
    file.seek(0)

    again = Lars([half], lr=9.0, momentum=0.0, weight_decay=0.0)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(again, half, each[2:], rates[2:])
    assert torch.equal(half, whole)


def test_the_settings_name_builds_it(fp32):
    found = build_optimizer(optimizer(name="lars", lr=0.2, weight_decay=0.3, momentum=0.8), nn.Linear(2, 2), fp32)
    group = found.param_groups[0]
    assert type(found) is Lars
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.2, 0.3, 0.8)


class Reads(TorchDispatchMode):
    """The operations by which a host waits for its device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value_back_from_the_device():
    weight = parameter(3, 4)
    weight.grad = gradients(3, 4)[0]
    with Reads() as reads:
        Lars([weight], lr=1.0, momentum=0.9, weight_decay=0.1).step()
    assert reads.seen == []
    with reads:
        bool(weight.norm() > 0)
    assert reads.seen
