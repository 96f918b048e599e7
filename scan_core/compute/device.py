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
    """The device, and the precision of the backbone."""

    device: torch.device
    precision: Literal["bf16", "fp32"]

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def has_fast_bf16(device: str) -> bool:
    """True if the hardware has bfloat16 instructions: CUDA GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def keep_freed_memory() -> None:
    """Lets malloc keep freed memory for the next step instead of returning it to the system.

    Otherwise the kernel zeroes the memory of each step's tensors page by page, which takes up to half of a step's time.
    The price is that a process keeps its peak. Without glibc, which alone has ``mallopt``, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows has no such library
        return
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


def configure_compute(precision: str, device: str) -> Compute:
    """Resolves ``precision`` (``auto``, ``bf16``, ``fp32``) and ``device`` (``auto``, ``cpu``, ``cuda``).

    Configures the process, too: ``keep_freed_memory`` on a CPU, TF32 on a GPU. Raises ``ScanError`` for an unknown
    device, or if there is no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ScanError(f"the device is {device}; auto, cpu and cuda are allowed")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ScanError("the device is to be cuda, but torch finds no CUDA GPU; choose cpu or auto")
    if device == "cpu":
        keep_freed_memory()
    fast = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    torch.backends.cudnn.allow_tf32 = fast  # torch's default rounds fp32 convolutions to 10 bits
    return Compute(torch.device(device), "bf16" if fast else "fp32")


def make_fabric(precision: str, device: str) -> "Fabric":
    """Fabric for the training loops: this precision, this device, and the processes that torchrun has started."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from torch.distributed import is_torchelastic_launched

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # each process would announce the precision
    compute, launched = configure_compute(precision, device), is_torchelastic_launched()
    torch.backends.cudnn.deterministic = True  # the same kernels in each run, so the same bytes
    number, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")) if launched else (1, 1)
    fabric = Fabric(
        accelerator=compute.device.type,
        devices=here,
        num_nodes=number // here,
        # BatchNorm's statistics stay each process's own until the network is evaluated, so no step exchanges them.
        # The first process may wait for days until another run that trains the same has ended.
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
    """Seeds torch, which initializes weights. Returns the generator for everything that is drawn."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
