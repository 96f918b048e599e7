"""Which device and precision are chosen, how memory is kept, and what a seed seeds."""

import platform
import subprocess
import sys

import pytest
import torch

from scan_core.compute import device
from scan_core.compute.device import Compute, configure_compute, has_fast_bf16, make_fabric, seed_everything
from scan_core.errors import ScanError
from tests.tiny import assert_equal


@pytest.fixture
def machine(monkeypatch):
    """Pretends a machine with or without a GPU and fast bfloat16."""

    def pretend(cuda, fast):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(device, "has_fast_bf16", lambda name: fast)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "asked", "found"),
    [(True, "auto", "cuda"), (False, "auto", "cpu"), (True, "cpu", "cpu"), (True, "cuda", "cuda")],
)
def test_auto_takes_a_gpu_where_there_is_one(machine, cuda, asked, found):
    machine(cuda, fast=False)
    assert configure_compute("auto", asked).device == torch.device(found)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cuda", "the device is to be cuda, but torch finds no CUDA GPU"),
        ("tpu", "the device is tpu; auto, cpu and cuda are allowed"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(machine, asked, said):
    machine(cuda=False, fast=False)
    with pytest.raises(ScanError, match=said):
        configure_compute("auto", asked)


@pytest.mark.parametrize(
    ("asked", "fast", "found"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("bf16", False, "bf16"), ("fp32", True, "fp32")],
)
def test_auto_takes_bf16_where_it_is_fast(machine, asked, fast, found):
    machine(False, fast)
    assert configure_compute(asked, "cpu").precision == found


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_fast_on_gpus_since_ampere(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert has_fast_bf16("cuda") is fast


@pytest.mark.parametrize(("amx", "avx"), [(False, False), (True, False), (False, True)])
def test_bf16_is_fast_on_cpus_with_instructions_for_it(monkeypatch, amx, avx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert has_fast_bf16("cpu") is (amx or avx)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_inference_and_training_run_in_the_same_precision(precision, dtype):
    linear, inputs = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for compute in (Compute(torch.device("cpu"), precision), make_fabric(precision, "cpu")):
        with compute.autocast():
            assert linear(inputs).dtype == dtype


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("bf16", True)])
def test_fp32_is_not_rounded_to_ten_bits_on_a_gpu(precision, rounded):
    """As torch would do for convolutions unless told not to."""
    torch.backends.cudnn.allow_tf32 = not rounded
    make_fabric(precision, "cpu")
    assert torch.backends.cudnn.allow_tf32 == rounded


def test_fabric_is_on_the_chosen_device_alone():
    fabric = make_fabric("fp32", "cpu")
    assert (fabric.device, fabric.world_size) == (torch.device("cpu"), 1)


def test_a_seed_seeds_weights_and_draws():
    """Draws do not depend on how many weights there are."""

    def both(seed, features=3):
        generator = seed_everything(seed)
        return torch.nn.Linear(features, 3).weight.detach().clone(), torch.rand(3, generator=generator)

    first, same, other = both(1), both(1), both(2)
    assert_equal(first, same)
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))
    assert torch.equal(both(1, 20)[1], first[1])


FAULTS = """
import resource
import torch
from scan_core.compute.device import configure_compute

configure_compute("fp32", "cpu")
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)  # 64 MiB, freed at once
before = faults()
torch.ones(2**23)  # the same place would not do: malloc wants a little more, to align it
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.slow
def test_memory_that_was_freed_is_used_again_without_the_system():
    """In another process: the first call in this one has its effect for good."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1000  # of 8,192 pages


@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_a_libc_without_mallopt_is_left_as_it_is(monkeypatch, error):
    def no_library(name):
        raise error

    monkeypatch.setattr(device.ctypes, "CDLL", no_library)
    assert configure_compute("fp32", "cpu").precision == "fp32"
