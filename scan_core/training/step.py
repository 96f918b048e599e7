"""What the training loops share: the state that a resume needs, one optimiser step, and what loops yield."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.cuda_graphs import CudaGraphed, cuda_graphed, make_capturable
from scan_core.compute.distributed import all_reduce_mean, world_size
from scan_core.errors import ScanError
from scan_core.models.networks import Model
from scan_core.settings import Optimizer
from scan_core.training.lars import Lars
from scan_core.training.muon import Muon
from scan_core.training.schedule import learning_rate


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

MIN_STEPS_TO_COMPILE = 5_000  # steps: in fewer, compiling is meant to take longer than it saves


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


def compiled(module: Model, fabric: Fabric, steps: int) -> Model:
    """``module``, compiled where that pays: on a GPU, for ``steps`` steps or more."""
    return compiled_model(module) if on_gpu(fabric) and steps >= MIN_STEPS_TO_COMPILE else module


def on_gpu(fabric: Fabric) -> bool:
    """Whether networks may be compiled."""
    return bool(fabric.device.type == "cuda")


def compiled_model(module: Model) -> Model:
    """Another ``Model`` of the same weights, its backbone compiled; for each shape, of which a loop has one or two.

    The head, two small products, is not: so what the compiler makes of a backbone, and keeps on disk, serves each
    stage that shows it a batch of the same shape.
    """
    twin = copy.copy(module)
    twin._modules = {**module._modules, "backbone": cast(nn.Module, torch.compile(module.backbone, dynamic=False))}
    return twin


def momentum_copy(model: Model) -> Model:
    """A copy that no optimiser changes, to be moved by ``ema_update_``."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def ema_update_(average: nn.Module, module: nn.Module, decay: float, buffers: bool) -> None:
    """average <- decay * average + (1 - decay) * module, for parameters and, if ``buffers``, BatchNorm's statistics.

    An average that is only evaluated needs the statistics; one that is trained with keeps its own.
    """
    pairs: list[tuple[Tensor, Tensor]] = list(zip(average.parameters(), module.parameters(), strict=True))
    if buffers:
        pairs += zip(average.buffers(), module.buffers(), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([slow for slow, _ in floats], [fast for _, fast in floats], 1 - decay)
    for slow, fast in pairs:
        if not slow.is_floating_point():
            slow.copy_(fast)


Objective = Callable[..., tuple[Any, ...]]


class Stepper:
    """Loss, backward, optimiser step and learning rate of one step, and the epoch's mean of what is measured.

    ``objective`` gives, for the inputs of a step, the loss, a dict of scalars to be averaged, and maybe more tensors,
    without a gradient. Sums stay on the device until the epoch ends: no synchronisation inside it. On a GPU the step is
    ``cuda_graphed``, and what holds for that holds for ``objective``.
    """

    def __init__(
        self,
        fabric: Fabric,
        optimizer: Any,
        settings: Optimizer,
        steps_per_epoch: int,
        epochs: int,
        objective: Objective,
    ) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        names: list[str] = []  # of what is measured

        def once(*inputs: Tensor) -> Sequence[Tensor]:
            loss, measured, *others = objective(*inputs)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            names[:] = measured
            return torch.stack([value.detach() for value in measured.values()]), *others

        self.names, self.run = names, cuda_graphed(once, fabric.device)
        self.sums: Tensor | float = 0.0  # (names,)
        self.steps = 0
        self.rate = make_capturable(optimizer, fabric.device) if isinstance(self.run, CudaGraphed) else None

    def __call__(self, epoch: int, *inputs: Tensor) -> Sequence[Tensor]:
        """One step of epoch ``epoch`` (from 0) down the loss of ``inputs``; what else the objective gives.

        That may be overwritten by the next step.
        """
        step = epoch * self.steps_per_epoch + self.steps
        lr = learning_rate(self.settings, step, self.steps_per_epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.rate is None else self.rate.fill_(lr)
        measured, *others = self.run(*inputs)
        self.sums = measured + self.sums
        self.steps += 1
        return others

    def means(self, epoch: int) -> dict[str, float]:
        """Means since the last call, over all processes, and the rate at the end of epoch ``epoch`` (from 0)."""
        means: list[float] = []
        if isinstance(self.sums, Tensor):
            means = (all_reduce_mean(self.sums).double() / self.steps).tolist()
        self.sums, self.steps = 0.0, 0
        last = (epoch + 1) * self.steps_per_epoch - 1
        rate = learning_rate(self.settings, last, self.steps_per_epoch, self.epochs)
        return {**dict(zip(self.names, means, strict=False)), "lr": rate}


def check_batch(stage: str, batch_size: int, count: int) -> int:
    """Whole batches in ``count`` images. Raises ``ScanError`` if there is none, or the processes cannot share one."""
    if batch_size > count:
        raise ScanError(
            f"{stage}.batch_size is {batch_size}, but there are {count} images to train on; at most {count} is allowed"
        )
    if batch_size % world_size() or batch_size < 2 * world_size():
        raise ScanError(
            f"{stage}.batch_size is {batch_size}, but {world_size()} processes share a batch; "
            f"a multiple of {world_size()} is allowed, with two images or more for each"
        )
    return count // batch_size
