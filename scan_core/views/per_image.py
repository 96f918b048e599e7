"""One operation for some images of a batch: on those alone where that is less work, on all of them where a compiler
makes one kernel of many operations and the masks.
"""

import functools
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]  # (B,channels,height,width) and an argument for each image


class Pick(Protocol):
    """``grouped`` or ``masked``."""

    def __call__(self, images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
        """``images`` with ``operation`` done to those that are ``chosen`` (B,) bool; ``argument`` is (B,...)."""


def grouped(images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
    """In place, on the chosen images alone."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        images.index_copy_(0, rows, operation(images.index_select(0, rows), argument[rows]))
    return images


def masked(images: Tensor, chosen: Tensor, operation: Operation, argument: Tensor) -> Tensor:
    """On all images, of which the chosen are taken: no index, so nothing waits for the device."""
    return torch.where(chosen.view(-1, 1, 1, 1), operation(images, argument), images)


def on_gpu(images: Tensor) -> bool:
    """Whether functions of ``images`` are compiled."""
    return images.device.type == "cuda"


def for_each_image(function: Callable[..., Tensor], images: Tensor, *drawn: Tensor) -> Tensor:
    """``function(images, *drawn, pick)``: grouped on the CPU, masked and compiled on a GPU.

    ``images`` (B,channels,height,width) may be changed in place; ``drawn`` (B,...) lie where they do.
    """
    return compiled(function)(images, *drawn, pick=masked) if on_gpu(images) else function(images, *drawn, pick=grouped)


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` for a GPU: one graph without a break, for each shape; made once."""
    return cast(Callable[..., Tensor], torch.compile(function, fullgraph=True, dynamic=False))
