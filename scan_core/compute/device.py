"""Device, precision and seeds."""

import ctypes
import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from scan_core.errors import ScanError

if TYPE_CHECKING:  # seconds to import, and only training needs it
    from lightning_fabric import Fabric

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass(frozen=True)
class Compute:
    """Where to compute, and in which precision the backbone does."""

    device: torch.device
    precision: Literal["bf16", "fp32"]

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def has_fast_bf16(device: str) -> bool:
    """Whether bfloat16 has instructions of its own there: any CUDA GPU since Ampere, CPUs with AMX or AVX512-BF16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Lets malloc keep what is freed for the next step, in place of giving it back to the system.

    The memory of a step's tensors comes back page by page otherwise, each one zeroed by the kernel, which takes up to
    half of a step's time; the price is that a process keeps its peak. Nothing is done where libc has no ``mallopt``:
    it is glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows has no such library
        return
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


def configure_compute(precision: str, device: str) -> Compute:
    """Resolves ``precision`` (``auto``, ``bf16``, ``fp32``) and ``device`` (``auto``, ``cpu``, ``cuda``).

    Sets what the process needs there: on the CPU ``keep_freed_memory``, on a GPU whether fp32 may be rounded.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ScanError(f"SCAN_DEVICE is {device}; auto, cpu and cuda are allowed")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ScanError("SCAN_DEVICE is cuda, but torch finds no CUDA GPU; set SCAN_DEVICE=cpu or leave it unset")
    if device == "cpu":
        keep_freed_memory()
    fast = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    torch.backends.cudnn.allow_tf32 = fast  # by default fp32 convolutions would be rounded to 10 bits
    return Compute(torch.device(device), "bf16" if fast else "fp32")


def make_fabric(precision: str, device: str) -> "Fabric":
    """Fabric with the same precision and device, on what torchrun has started: what the training loops run on."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from torch.distributed import is_torchelastic_launched

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision once a process
    compute, launched = configure_compute(precision, device), is_torchelastic_launched()
    torch.backends.cudnn.deterministic = True  # the same kernels each time, for the same bytes
    number, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")) if launched else (1, 1)
    fabric = Fabric(
        accelerator=compute.device.type,
        devices=here,
        num_nodes=number // here,
        # BatchNorm's statistics are each process's own until the network is evaluated: nothing to exchange each step.
        # The first process may wait for days, for another run that trains the same.
        strategy=DDPStrategy(forward_sync_buffers=False, timeout=timedelta(days=30)) if number > 1 else "auto",
        precision="bf16-mixed" if compute.precision == "bf16" else "32-true",
    )
    if number > 1:
        fabric.launch()
    return fabric


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``; through pinned memory to a GPU, so that the host need not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def seed_everything(seed: int) -> torch.Generator:
    """Seeds torch, which initialises weights, and returns the generator of everything that is drawn."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
