"""Device, precision and seeds."""

import logging

import torch
from lightning_fabric import Fabric

from scan_core.errors import ScanError


def has_fast_bf16(device: str) -> bool:
    """Whether bfloat16 has instructions of its own there: any CUDA GPU since Ampere, CPUs with AMX or AVX512-BF16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def make_fabric(precision: str, device: str) -> Fabric:
    """One process on ``device`` (``auto``, ``cpu``, ``cuda``) with ``precision`` (``auto``, ``bf16``, ``fp32``)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ScanError("SCAN_DEVICE is cuda, but torch finds no CUDA GPU; set SCAN_DEVICE=cpu or leave it unset")
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision once a process
    return Fabric(accelerator=device, devices=1, precision={"bf16": "bf16-mixed", "fp32": "32-true"}[precision])


def seeded(seed: int) -> torch.Generator:
    """Seeds torch, which initialises weights, and returns the generator of everything that is drawn."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)
