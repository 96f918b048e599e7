"""Several processes that train one network, as torchrun starts them: who has which part, and how parts come together.

All have the same weights and the same generator, so they draw the same batches. Each takes its part of a batch and
augments it with draws of its own. A loss that compares images with each other is that of the whole batch: its inputs
are gathered with their gradient, every process computes it, and the mean of their gradients is that of one process.
On a single process every function here gives back what it got.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

Value = TypeVar("Value")


def world_size() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_shard(batch: Tensor) -> Tensor:
    """This process's part of (B,...), all parts being equal: (B / processes,...)."""
    return batch.chunk(world_size())[rank()]


def local_generator(generator: torch.Generator) -> torch.Generator:
    """A generator of what only this process draws. It moves ``generator`` by the same in all, which stay in step."""
    if world_size() == 1:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + rank())


def all_gather(part: Tensor, dim: int = 0) -> Tensor:
    """The parts of all processes along ``dim``, in their order; the inverse of ``local_shard``.

    The gradient of a part is the sum of those that all processes have for it: detached, as a plain gather leaves the
    other parts, a contrastive loss would lose half of it.
    """
    if world_size() == 1:
        return part
    return torch.cat(cast(tuple[Tensor, ...], _Gather.apply(part)), dim)


class _Gather(torch.autograd.Function):
    """A part to those of all processes, and their gradients back."""

    @staticmethod
    def forward(_: Any, part: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(parts, part.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        of_all = torch.stack(gradients)
        distributed.all_reduce(of_all)
        return of_all[rank()]


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over the processes of each value."""
    if world_size() > 1:
        distributed.all_reduce(values)
        values /= world_size()
    return values


@torch.no_grad()
def broadcast_buffers(module: nn.Module) -> None:
    """Gives all processes the first one's BatchNorm statistics, with which the network is evaluated and saved."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def broadcast(value: Value) -> Value:
    """What the first process has for ``value``: tensors on the host, numbers, lists and dicts."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]
