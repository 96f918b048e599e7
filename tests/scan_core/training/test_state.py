"""The state of a training: what an epoch records, and what comes back from a file; averages of networks."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from scan_core.errors import ScanError
from scan_core.training.state import Epoch, TrainingState, ema_update_, momentum_copy
from scan_core.training.step import build_optimizer
from tests.tiny import assert_same_state, cluster_model, optimizer, through_a_file


@dataclass(kw_only=True)
class Longer(TrainingState):
    """A state with a field of each kind that loops add."""

    table: Tensor
    losses: list[list[float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    missing: Tensor | None = None


def new_state(fabric, seed=0, **values):
    model = cluster_model(seed=seed)
    built = build_optimizer(optimizer(**values), model, fabric)
    generator = torch.Generator().manual_seed(seed)
    return Longer(module=model, optimizer=built, generator=generator, table=torch.full((3,), float(seed)))


def test_an_epoch_is_counted_and_recorded_and_its_own_numbers_start_anew(fp32):
    state = new_state(fp32)
    state.step, state.order, state.sums, state.summed = 3, torch.arange(4), {"loss": torch.tensor(2.0)}, 3
    assert state.end_epoch({"loss": 2.0}) == Epoch(1, {"loss": 2.0})
    assert (state.step, state.order, state.sums, state.summed) == (0, None, {}, 0)
    assert state.end_epoch({"loss": 1.0}) == Epoch(2, {"loss": 1.0})
    assert state.epoch == 2
    assert state.history == [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_an_error_that_names_it_and_the_epoch(fp32, value):
    state = new_state(fp32)
    state.end_epoch({"loss": 1.0, "lr": 0.1})
    with pytest.raises(ScanError, match=rf"entropy is {value} in epoch 2: training has diverged"):
        state.end_epoch({"loss": 1.0, "entropy": value})
    assert len(state.history) == 1


@pytest.mark.parametrize("name", ["adam", "sgd", "lars", "muon"])
def test_a_state_comes_back_from_a_file_as_it_was(fp32, name):
    state = new_state(fp32, name=name)
    state.module(torch.randn(4, 3, 8, 8))[1].sum().backward()
    state.optimizer.step()
    state.end_epoch({"loss": 1.5})
    state.step, state.order, state.sums, state.summed = 2, torch.tensor([2, 0, 1]), {"loss": torch.tensor(2.5)}, 2
    state.losses, state.best, state.missing = [[1.0, 2.0]], {"a": torch.ones(2)}, torch.tensor(3.0)
    torch.rand(3, generator=state.generator)
    saved = through_a_file(state)
    drawn = torch.rand(3), torch.rand(3, generator=state.generator)

    other = new_state(fp32, seed=1, name=name)
    other.load_state_dict(saved)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.rand(3, generator=other.generator), drawn[1])
    assert_same_state(other, state)


def test_on_a_gpu_its_own_generator_comes_back_too(fp32, monkeypatch):
    """Dropout draws from it there. Without a GPU here, one that is made up."""
    drawn = [torch.tensor([7], dtype=torch.uint8)]
    monkeypatch.setattr(TrainingState, "_on_cuda", lambda _: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: drawn[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", drawn.append)
    saved = through_a_file(new_state(fp32))
    drawn.append(torch.tensor([9], dtype=torch.uint8))
    new_state(fp32).load_state_dict(saved)
    assert drawn[-1].tolist() == [7]


@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_moves_towards_the_network_and_never_trains(buffers):
    module = cluster_model(seed=1)
    average = momentum_copy(cluster_model(seed=0))
    assert not any(each.requires_grad for each in average.parameters())
    with torch.no_grad():
        for buffer in module.buffers():
            buffer.add_(2)
    before = copy.deepcopy(average)
    ema_update_(average, module, 0.75, buffers)
    for slow, old, new in zip(average.parameters(), before.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * new)
    for slow, old, new in zip(average.buffers(), before.buffers(), module.buffers(), strict=True):
        mixed = 0.75 * old + 0.25 * new if old.is_floating_point() else new  # a count is copied
        torch.testing.assert_close(slow, mixed if buffers else old)
