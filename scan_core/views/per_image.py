"""One operation applied to some images of a batch.

The CPU applies it to the chosen images alone. A GPU applies it to all images and keeps the result of the chosen ones,
because a compiler then fuses many operations into one kernel and nothing waits for the number of chosen images.
"""

import functools
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]  # images (B,channels,height,width) and an argument (B,...) per image


class ApplyTo(Protocol):
    """``apply_indexed`` or ``apply_masked``."""

    def __call__(self, images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
        """``images`` (B,...) after ``operation`` on the ``chosen`` (B,) bool ones; ``argument`` is (B,...)."""


def apply_indexed(images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
    """Gathers the chosen images, applies ``operation`` to them and writes them back in place."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        images.index_copy_(0, rows, operation(images.index_select(0, rows), argument[rows]))
    return images


def apply_masked(images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
    """Applies ``operation`` to every image and keeps its result for the chosen ones, without a host sync."""
    return torch.where(chosen.view(-1, 1, 1, 1), operation(images, argument), images)


def apply_per_image(function: Callable[..., Tensor], images: Tensor, *drawn: Tensor) -> Tensor:
    """``function(images, *drawn, apply_to)``: indexed on the CPU, masked and compiled on a GPU.

    ``function`` may change ``images`` (B,channels,height,width) in place; ``drawn`` (B,...) are on the same device.
    """
    if runs_compiled(images):
        return compiled_for_gpu(function)(images, *drawn, apply_to=apply_masked)
    return function(images, *drawn, apply_to=apply_indexed)


def runs_compiled(images: Tensor) -> bool:
    """Whether functions of ``images`` are compiled: on a GPU."""
    return images.device.type == "cuda"


@functools.cache
def compiled_for_gpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` compiled into one graph without a break per input shape; the wrapper is made once."""
    return cast(Callable[..., Tensor], torch.compile(function, fullgraph=True, dynamic=False))
