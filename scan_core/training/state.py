"""What a training changes, and what a loop reports of it."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.models.networks import Model


@dataclass(frozen=True)
class Step:
    """One training step is done; it has used this many views."""

    images: int


@dataclass(frozen=True)
class Epoch:
    """One epoch is done, counted from 1, with its numbers."""

    number: int
    values: dict[str, float]


Progress = Iterator[Step | Epoch]


@dataclass(kw_only=True)
class TrainingState:
    """Everything a loop changes. If it is saved after any step and restored, training continues bit for bit.

    A loop that changes more derives a class with more fields: modules, tensors, numbers, lists or dicts of them.
    """

    module: Model  # not wrapped, so the saved keys do not depend on the launcher
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    order: Tensor | None = None  # (N,) int64: the permutation of the epoch under way
    sums: dict[str, Tensor] = field(default_factory=dict)  # scalars: sums over the epoch under way
    summed: int = 0  # steps in ``sums``; a step that was skipped is in none
    history: list[dict[str, float]] = field(default_factory=list)

    def end_epoch(self, values: dict[str, float]) -> Epoch:
        """Counts and records the epoch. Raises ``ScanError`` if a value is not finite."""
        self.epoch += 1
        self.step, self.order, self.sums, self.summed = 0, None, {}, 0
        for name, value in values.items():
            if not math.isfinite(value):
                raise ScanError(
                    f"{name} is {value} in epoch {self.epoch}: training has diverged; lower optimizer.lr "
                    "or set precision: fp32"
                )
        self.history.append({"epoch": self.epoch, **values})
        return Epoch(self.epoch, values)

    def _on_cuda(self) -> bool:
        """True if dropout draws from the GPU's generator."""
        return next(self.module.parameters()).is_cuda

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts only, so that loading runs no code."""
        saved: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, nn.Module | torch.optim.Optimizer):
                value = value.state_dict()
            saved[each.name] = value.get_state() if isinstance(value, torch.Generator) else value
        saved["torch_rng"] = torch.get_rng_state()
        saved["cuda_rng"] = torch.cuda.get_rng_state() if self._on_cuda() else None
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; a tensor goes to the device of the one that it replaces."""
        for each in fields(self):
            value, loaded = getattr(self, each.name), saved[each.name]
            if isinstance(value, nn.Module | torch.optim.Optimizer):
                value.load_state_dict(loaded)
            elif isinstance(value, torch.Generator):
                value.set_state(loaded.cpu())
            else:
                setattr(self, each.name, loaded.to(value.device) if isinstance(value, Tensor) else loaded)
        torch.set_rng_state(saved["torch_rng"].cpu())
        if self._on_cuda() and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu())


def momentum_copy(model: Model) -> Model:
    """A copy that no optimizer changes: a momentum encoder, a target or an average, moved by ``ema_update_``."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def ema_update_(ema: nn.Module, module: nn.Module, decay: float, buffers: bool) -> None:
    """ema <- decay * ema + (1 - decay) * module, for parameters and, if ``buffers``, BatchNorm's statistics.

    An average that is only evaluated needs the statistics; one that runs in training mode computes its own.
    """
    pairs: list[tuple[Tensor, Tensor]] = list(zip(ema.parameters(), module.parameters(), strict=True))
    if buffers:
        pairs += zip(ema.buffers(), module.buffers(), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([slow for slow, _ in floats], [fast for _, fast in floats], 1 - decay)
    for slow, fast in pairs:
        if not slow.is_floating_point():
            slow.copy_(fast)
