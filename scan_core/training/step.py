"""Everything around each loop's loss: batches, optimizer, learning rate, running means, compiling, CUDA graphs.

A reader of the loops may skip this module: ``TrainStep.graphed`` runs a loop's own step, and nothing here knows a loss.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scan_core.compute.cuda_graphs import cuda_graphed, make_capturable, uses_cuda_graphs
from scan_core.compute.distributed import all_reduce_mean, local_generator, world_size
from scan_core.errors import ScanError
from scan_core.models.networks import Model
from scan_core.training.muon import Muon
from scan_core.training.schedule import learning_rate
from scan_core.training.settings import Optimizer
from scan_core.training.state import Epoch, Step, TrainingState

MIN_STEPS_TO_COMPILE = 5_000  # in fewer steps, compiling is expected to take longer than it saves
LARS_TRUST = 0.001  # trust coefficient

StepFn = Callable[..., dict[str, Tensor]]  # device tensors to scalars, which are averaged, and other tensors


class LoopSettings(Protocol):
    """The settings that each loop has."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def optimizer(self) -> Optimizer: ...


class TrainStep:
    """The machinery of one loop over ``count`` images; ``stage`` names its group of settings in errors.

    ``model`` is ``state.module`` as a step calls it: compiled where that pays, and with gradients averaged over the
    processes. Raises ``ScanError`` as ``check_batch`` does.
    """

    def __init__(
        self, stage: str, state: TrainingState, settings: LoopSettings, fabric: Fabric, count: int, module: Any = None
    ) -> None:
        self.state, self.settings, self.fabric, self.count = state, settings, fabric, count
        self.steps = check_batch(stage, settings.batch_size, count)
        network = self.compiled(module or state.module)
        self.model, self.optimizer = cast("tuple[Any, Any]", fabric.setup(network, state.optimizer))
        state.sums = {
            name: value.to(fabric.device) for name, value in state.sums.items()
        }  # a resumed state is loaded on the host
        # timm's LARS reads its learning rate on the host, so its steps cannot be captured.
        captures = uses_cuda_graphs(fabric.device) and settings.optimizer.name != "lars"
        self.lr = make_capturable(self.optimizer, fabric.device) if captures else None

    def compiled(self, module: Model) -> Model:
        """``module``, compiled on a GPU if the training is long enough."""
        return compiled_model(module) if pays_to_compile(self.fabric, self.steps * self.settings.epochs) else module

    def epochs(self) -> Iterator[int]:
        """The epochs still to be done, from 0."""
        while self.state.epoch < self.settings.epochs:
            yield self.state.epoch

    def batches(self) -> Iterator[Tensor]:
        """The batches still to be done in this epoch: (B,) int64 positions on the host, each image at most once."""
        state, size = self.state, self.settings.batch_size
        if state.order is None:
            state.order = torch.randperm(self.count, generator=state.generator)
        while state.step < self.steps:
            yield state.order[state.step * size : (state.step + 1) * size]

    def generator(self) -> torch.Generator:
        """The generator for this process's next draws."""
        return local_generator(self.state.generator)

    def backward_and_update(self, loss: Tensor) -> None:
        """Backward pass, optimizer step, gradients cleared."""
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def graphed(self, step: StepFn) -> StepFn:
        """A decorator for a loop's step: at the scheduled rate, as a CUDA graph on a GPU, its scalars averaged.

        The restrictions of ``cuda_graphed`` apply to ``step``. The sums of its scalars stay on the device, so no step
        waits for it.
        """

        def detached(*inputs: Tensor) -> dict[str, Tensor]:
            return {name: value.detach() for name, value in step(*inputs).items()}

        run = detached if self.lr is None else cuda_graphed(detached, self.fabric.device)

        def scheduled(*inputs: Tensor) -> dict[str, Tensor]:
            lr = self._learning_rate(self.state.epoch * self.steps + self.state.summed)
            for group in self.optimizer.param_groups:
                group["lr"] = lr if self.lr is None else self.lr.fill_(lr)
            outputs: dict[str, Tensor] = run(*inputs)
            self._add({name: value for name, value in outputs.items() if value.dim() == 0})
            return outputs

        return scheduled

    def _add(self, scalars: dict[str, Tensor]) -> None:
        state = self.state
        if state.sums:
            torch._foreach_add_(list(state.sums.values()), list(scalars.values()))
        else:  # copied, because a CUDA graph overwrites them
            state.sums = {name: value.clone() for name, value in scalars.items()}
        state.summed += 1

    def end_step(self, images: int) -> Step:
        """Counts a step of ``images`` views, also if it was skipped."""
        self.state.step += 1
        return Step(images)

    def end_epoch(self, **values: float) -> Epoch:
        """Records the epoch: means of the steps' scalars over all processes, the last learning rate, ``values``.

        The loss is 0 if every step was skipped.
        """
        sums, means = self.state.sums, {"loss": 0.0}
        if sums:
            total = all_reduce_mean(torch.stack(list(sums.values())))
            means |= dict(zip(sums, (total.double() / self.state.summed).tolist(), strict=True))
        lr = self._learning_rate((self.state.epoch + 1) * self.steps - 1)
        return self.state.end_epoch({**means, "lr": lr, **values})

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.settings.optimizer, step, self.steps, self.settings.epochs)


def build_optimizer(settings: Optimizer, module: nn.Module, fabric: Fabric) -> torch.optim.Optimizer:
    """The optimizer of all parameters that train: SGD or Adam with L2 decay as in the paper, LARS, or Muon.

    LARS (arXiv 1708.03888, eq. 6) neither decays nor scales biases and BatchNorm's parameters, as in SimCLR and BYOL.
    Muon multiplies in the precision of ``fabric``.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.name == "adam":
        return torch.optim.Adam(parameters, betas=(settings.momentum, 0.999), fused=True, **common)
    if settings.name == "lars":
        from timm.optim import Lars

        matrices = {"params": [each for each in parameters if each.ndim > 1], "always_adapt": True}
        vectors = {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}
        groups = [group for group in (matrices, vectors) if group["params"]]
        lars: torch.optim.Optimizer = Lars(groups, momentum=settings.momentum, trust_coeff=LARS_TRUST, **common)
        return lars
    if settings.name == "muon":
        bf16 = fabric.strategy.precision.precision == "bf16-mixed"
        return Muon(parameters, momentum=settings.momentum, bf16=bf16, **common)
    return torch.optim.SGD(parameters, momentum=settings.momentum, fused=True, **common)


def pays_to_compile(fabric: Fabric, steps: int) -> bool:
    """True on a GPU, for a training of many steps."""
    return bool(fabric.device.type == "cuda") and steps >= MIN_STEPS_TO_COMPILE


def compiled_model(module: Model) -> Model:
    """Another ``Model`` of the same weights whose backbone is compiled, once for each shape of its input.

    The head, two small products, is not compiled, so the compiler's cache on disk serves each stage that runs the
    backbone on batches of the same shape.
    """
    twin = copy.copy(module)
    twin._modules = {**module._modules, "backbone": cast(nn.Module, torch.compile(module.backbone, dynamic=False))}
    return twin


def check_batch(stage: str, batch_size: int, count: int) -> int:
    """The number of whole batches in ``count`` images.

    Raises ``ScanError`` if there is none, or if the processes cannot share a batch.
    """
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
