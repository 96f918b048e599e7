"""The Makefile's recipes, with stand-ins for the programs that they start."""

import re
import subprocess

import pytest

from tests.project import ROOT

PROGRAMS = ("python", "uv", "scan", "dvc", "ruff", "mypy", "lint-imports", "pytest")
LINT = ["ruff", "ruff", "mypy", "lint-imports"]


@pytest.fixture
def folder(tmp_path):
    """A project whose path contains a space; each program in its environment prints its name and arguments."""
    folder = tmp_path / "My Projects" / "scan"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml"):
        (folder / name).touch()
    (folder / ".git").mkdir()
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in PROGRAMS:
        program = folder / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\necho "started $(basename "$0") $*"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize(("target", "programs"), [
    ("setup", []), ("repro", ["scan", "dvc", "scan"]), ("lint", LINT), ("check", [*LINT, "pytest"]),
    ("test", [*LINT, "pytest"]), ("reproduce", ["pytest"]), ("bench", ["uv", "python"]), ("ui", ["scan"]),
    ("faults", ["python"]),
    ("lock", ["uv", "uv"]),
])  # fmt: skip
def test_a_target_starts_its_programs_in_a_folder_whose_path_contains_a_space(folder, target, programs):
    done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("started ")]
    assert started == ["uv", "uv", *programs]  # the first two fill the environment
    again = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True).stdout
    assert [line.split()[1] for line in again.splitlines() if line.startswith("started ")] == programs


def test_a_user_s_installation_has_no_test_tools_and_a_developer_s_serves_the_user_too(folder):
    def installed(target):
        done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True, check=True)
        return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("started uv pip sync")]

    assert installed("setup") == ["requirements.lock"] and installed("repro") == []
    assert installed("check") == ["requirements-dev.lock"] and installed("repro") == installed("check") == []
    (folder / "pyproject.toml").touch()
    assert installed("repro") == ["requirements.lock"] and installed("check") == ["requirements-dev.lock"]


def test_another_index_for_torch_leaves_out_what_only_a_gpu_needs(folder):
    (folder / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    done = subprocess.run(
        ["make", "setup", "TORCH_INDEX=https://wheels.example"], cwd=folder, capture_output=True, text=True, check=True
    )
    sync, torch, _ = (line for line in done.stdout.splitlines() if line.startswith("started uv"))
    assert sync.endswith("--require-hashes .venv/cpu.lock")
    versions = dict(re.findall(r"^(\w[\w-]*)==(\S+)", (folder / "requirements.lock").read_text(), re.M))
    named = f"torch=={versions['torch']} torchvision=={versions['torchvision']}"
    assert torch.endswith(f"--no-deps --index https://wheels.example {named}")
    left = (folder / ".venv" / "cpu.lock").read_text()
    kept = dict(re.findall(r"^(\w[\w-]*)==(.*)", left, re.M))
    gone = {name for name in versions if name not in kept}
    assert gone == {"torch", "torchvision", "triton", "faiss-gpu"} | {
        name for name in versions if name.startswith(("nvidia-", "cuda-"))
    }
    assert kept["faiss-cpu"] == f"{versions['faiss-cpu']} \\"  # on every platform
    assert left.count("--hash=") > len(kept), "hashes of what is left are checked"


def test_check_leaves_out_slow_tests_and_test_does_not(folder):
    check, test = (subprocess.run(["make", name], cwd=folder, capture_output=True, text=True).stdout
                   for name in ("check", "test"))  # fmt: skip
    assert "started pytest -n auto --maxprocesses 8 --dist loadfile -m not slow and not reproduction\n" in check
    assert "started pytest -n auto --maxprocesses 8 --dist loadfile\n" in test


def test_an_unpacked_archive_is_told_what_it_lacks_before_anything_runs(folder):
    (folder / ".git").rmdir()
    done = subprocess.run(["make", "repro"], cwd=folder, capture_output=True, text=True)
    assert done.returncode and "error: this folder is no clone made by git" in done.stderr
    assert "started dvc" not in done.stdout
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config.local").touch()  # DVC was told that there is no git
    assert subprocess.run(["make", "repro"], cwd=folder, capture_output=True).returncode == 0


def test_too_old_a_python_is_told_which_one_is_needed_and_nothing_is_made(folder):
    (folder / ".venv" / "bin" / "python").unlink()
    old = folder / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    for python in (f"'{old}'", "no-such-python"):
        done = subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True)
        assert done.returncode and "Python 3.11 or newer is needed: make setup PYTHON=python3.12" in done.stderr
        assert "started" not in done.stdout
    assert (
        "error: Python 3.9.2 is too old"
        in subprocess.run(["make", "setup", f"PYTHON='{old}'"], cwd=folder, capture_output=True, text=True).stderr
    )
