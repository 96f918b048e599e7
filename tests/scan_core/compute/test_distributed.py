"""Two processes under torchrun train what one trains."""

import os
import subprocess
import sys

import pytest
import torch

from scan_core.compute.device import seed_everything
from tests import tiny
from tests.project import ROOT
from tests.scan_core.compute.two_processes import everything
from tests.tiny import LOOPS

pytestmark = pytest.mark.slow  # two processes train all loops first
FOR_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def one(fp32):
    """What a single process comes to."""
    return everything(fp32)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two comes to."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [*FOR_TWO, "-m", "tests.scan_core.compute.two_processes", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def numbers(value, where=""):
    """(path, tensor of float64) of all numbers in a state but generators, by their names."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in ("generator", "torch_rng"):
                yield from numbers(each, f"{where}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from numbers(each, f"{where}[{number}]")
    elif isinstance(value, torch.Tensor | int | float):
        yield where, torch.as_tensor(value).double()


@pytest.mark.parametrize("name", LOOPS)
def test_a_step_without_batchnorm_is_that_of_one_process(one, two, name):
    # Gradients of losses that compare images, the queue, the bank, the average, choices and curves: all of it.
    alone, shared = dict(numbers(one["plain"][name])), dict(numbers(two[0]["plain"][name]))
    assert alone.keys() == shared.keys()
    for where, value in alone.items():
        torch.testing.assert_close(
            shared[where], value, rtol=1e-4, atol=2e-6, msg=lambda text, at=where: f"{at}: {text}"
        )


@pytest.mark.parametrize("name", LOOPS)
def test_processes_stay_in_step(two, name):
    first, second = (found["usual"][name] for found in two)
    for part in two[0]["usual"][name].keys() - {"generator", "torch_rng", "cuda_rng"}:
        ours, theirs = (dict(numbers({part: state[part]}, name)) for state in (first, second))
        for where, value in ours.items():
            if not where.endswith(("running_mean", "running_var")):  # each process's own until it is evaluated
                assert torch.equal(value, theirs[where]), where
    assert torch.equal(first["generator"], second["generator"])


@pytest.mark.parametrize("name", LOOPS)
def test_a_resume_continues_to_the_bit(two, name):
    tiny._assert_same(two[0]["usual"][name], two[0]["resumed"][name], name)


def test_each_process_draws_its_own_and_all_stay_in_step(one, two):
    first, second = (found["draws"] for found in two)
    assert not torch.equal(first["own"], second["own"])
    assert torch.equal(first["shared"], second["shared"])
    assert torch.equal(one["draws"]["own"], torch.rand(4, generator=seed_everything(0)))  # the generator itself


def test_all_evaluate_the_network_of_the_first_process_which_is_saved(one, two):
    assert one["evaluated"]["outputs"].shape == (1, 15, 3)
    for found in two:
        for name, value in one["evaluated"].items():
            torch.testing.assert_close(found["evaluated"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("groups", "as_one"), [(1, 2), (2, 2), (4, 4)])
def test_keys_are_shuffled_over_all_processes_and_see_batchnorm_in_groups(one, two, groups, as_one):
    for found in two:
        torch.testing.assert_close(found["keys"][groups], one["keys"][as_one], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one["keys"][1], one["keys"][2], atol=1e-3)  # or the groups would not matter
