"""Several processes that train one network, as torchrun starts them.

All processes have the same weights and the same generator, so they draw the same batches. Each process takes its shard
of a batch and augments the shard with draws of its own. A loss that compares images with each other is computed on the
whole batch: ``all_gather`` brings the shards together with their gradients, so the mean of the processes' gradients is
the gradient that a single process would have. With a single process every function returns its argument.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

Value = TypeVar("Value")


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_shard(batch: Tensor) -> Tensor:
    """This process's part (B / world_size,...) of a batch (B,...); all parts have the same length."""
    return batch.chunk(world_size())[rank()]


def local_generator(generator: torch.Generator) -> torch.Generator:
    """A generator for what only this process draws. It advances ``generator`` equally in all processes."""
    if world_size() == 1:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + rank())


def all_gather(shard: Tensor, dim: int = 0) -> Tensor:
    """The shards of all processes along ``dim``, in the order of their ranks; the inverse of ``local_shard``.

    The gradient of a shard is the sum of the gradients that all processes have for it. With a gather that detaches the
    other shards, a contrastive loss would lose half of its gradient.
    """
    if world_size() == 1:
        return shard
    return torch.cat(cast(tuple[Tensor, ...], _AllGather.apply(shard)), dim)


class _AllGather(torch.autograd.Function):
    """Our own, because ``torch.distributed.nn.functional.all_gather`` (Fabric's, too) is deprecated and warns."""

    @staticmethod
    def forward(_: Any, shard: Tensor) -> tuple[Tensor, ...]:
        shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(shards, shard.contiguous())
        return tuple(shards)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        summed = torch.stack(gradients)
        distributed.all_reduce(summed)
        return summed[rank()]


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over the processes, in place."""
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
    """The first process's ``value``: tensors on the host, numbers, lists and dicts."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]
