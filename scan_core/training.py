"""What the training loops share: the state that a resume needs, one optimiser step, and what loops yield."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.lars import Lars
from scan_core.muon import Muon
from scan_core.networks import Model
from scan_core.processes import mean_of_all, processes
from scan_core.schedule import learning_rate
from scan_core.settings import Optimizer


@dataclass(frozen=True)
class Step:
    """One optimiser step is done; it has used this many views."""

    images: int


@dataclass(frozen=True)
class Epoch:
    """One epoch is done, counted from 1; its numbers."""

    number: int
    values: dict[str, float]


Progress = Iterator[Step | Epoch]


def batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Whole batches of ``rows`` in their order; a last one that is not whole is left out."""
    for start in range(0, len(rows) - batch_size + 1, batch_size):
        yield rows[start : start + batch_size]


@dataclass
class TrainingState:
    """Everything a loop changes. Saved at an epoch's end and restored, it continues to the bit."""

    module: Model  # unwrapped: what is saved has the same keys on every launcher
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    average: Model | None = None  # a copy of the network that follows it slowly: momentum encoder, target, EMA
    epoch: int = 0  # epochs done
    history: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # tensors, numbers and lists that one loop adds

    def end_epoch(self, values: dict[str, float]) -> Epoch:
        """Counts and records the epoch. Raises ``ScanError`` where a value is not finite."""
        self.epoch += 1
        for name, value in values.items():
            if not math.isfinite(value):
                raise ScanError(
                    f"{name} is {value} in epoch {self.epoch}: training has diverged; lower optimizer.lr "
                    "or set precision: fp32"
                )
        self.history.append({"epoch": self.epoch, **values})
        return Epoch(self.epoch, values)

    def _on_cuda(self) -> bool:
        """Whether dropout and the like draw from the GPU's generator."""
        return next(self.module.parameters()).is_cuda

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts only: loads without unpickling code."""
        return {
            "module": self.module.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self._on_cuda() else None,
            "epoch": self.epoch,
            "history": self.history,
            "extra": self.extra,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.module.load_state_dict(saved["module"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"].cpu())
        torch.set_rng_state(saved["torch_rng"].cpu())
        if self._on_cuda() and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu())
        self.epoch, self.history, self.extra = saved["epoch"], saved["history"], saved["extra"]


def build_optimizer(settings: Optimizer, module: nn.Module, fabric: Fabric) -> torch.optim.Optimizer:
    """SGD with momentum and Adam with L2 decay, as the paper's, in one kernel; LARS; Muon; over what trains.

    Muon's products are in the precision of ``fabric``.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name == "adam":
        return torch.optim.Adam(parameters, betas=(settings.momentum, 0.999), fused=True, **common)
    if settings.name == "lars":
        return Lars(parameters, momentum=settings.momentum, **common)
    if settings.name == "muon":
        bf16 = fabric.strategy.precision.precision == "bf16-mixed"
        return Muon(parameters, momentum=settings.momentum, bf16=bf16, **common)
    return torch.optim.SGD(parameters, momentum=settings.momentum, fused=True, **common)


def compiled(module: Model, fabric: Fabric) -> nn.Module:
    """``module``, compiled where that pays, on a GPU; for each shape, of which a loop has one or two."""
    return cast(nn.Module, torch.compile(module, dynamic=False)) if fabric.device.type == "cuda" else module


def slow_copy(model: Model) -> Model:
    """A copy that no optimiser changes, to be moved by ``follow``."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float, buffers: bool) -> None:
    """average <- decay * average + (1 - decay) * module, for parameters and, if ``buffers``, BatchNorm's statistics.

    An average that is only evaluated needs the statistics; one that is trained with keeps its own.
    """
    pairs: list[tuple[Tensor, Tensor]] = list(zip(average.parameters(), module.parameters(), strict=True))
    if buffers:
        pairs += zip(average.buffers(), module.buffers(), strict=True)
    for slow, fast in pairs:
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


class Stepper:
    """Backward, optimiser step and learning rate of one step, and the epoch's mean of what is measured.

    Sums stay on the device until the epoch ends: no synchronisation inside it.
    """

    def __init__(self, fabric: Fabric, optimizer: Any, settings: Optimizer, steps_per_epoch: int, epochs: int) -> None:
        self.fabric, self.optimizer, self.settings = fabric, optimizer, settings
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def __call__(self, epoch: int, loss: Tensor, measured: dict[str, Tensor]) -> None:
        """One step of epoch ``epoch`` (from 0) down ``loss``; ``measured`` are scalars to be averaged."""
        step = epoch * self.steps_per_epoch + self.steps
        lr = learning_rate(self.settings, step, self.steps_per_epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        for name, value in measured.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self, epoch: int) -> dict[str, float]:
        """Means since the last call, over all processes, and the rate at the end of epoch ``epoch`` (from 0)."""
        values = {name: float(mean_of_all(total)) / max(self.steps, 1) for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        last = (epoch + 1) * self.steps_per_epoch - 1
        return {**values, "lr": learning_rate(self.settings, last, self.steps_per_epoch, self.epochs)}


def check_batch(stage: str, batch_size: int, count: int) -> int:
    """Whole batches in ``count`` images. Raises ``ScanError`` if there is none, or the processes cannot share one."""
    if batch_size > count:
        raise ScanError(
            f"{stage}.batch_size is {batch_size}, but there are {count} images to train on; at most {count} is allowed"
        )
    if batch_size % processes() or batch_size < 2 * processes():
        raise ScanError(
            f"{stage}.batch_size is {batch_size}, but {processes()} processes share a batch; "
            f"a multiple of {processes()} is allowed, with two images or more for each"
        )
    return count // batch_size
