"""One thread and the same examples each time, so that a test does the same everywhere; and two ways of computing."""

import pytest
import torch
from hypothesis import settings

from scan_core.compute.device import make_fabric

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def fp32():
    """Fabric on the CPU in float32."""
    return make_fabric("fp32", "cpu")


@pytest.fixture(scope="session")
def bf16():
    """Fabric on the CPU with bfloat16 autocast."""
    return make_fabric("bf16", "cpu")
