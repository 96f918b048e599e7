"""The Makefile's recipes, with stand-ins for the programs that they start."""

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
    for name in ("requirements.lock", "pyproject.toml"):
        (folder / name).touch()
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in PROGRAMS:
        program = folder / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\necho "started $(basename "$0") $*"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize(("target", "programs"), [
    ("setup", []), ("repro", ["scan", "dvc", "scan"]), ("lint", LINT), ("check", [*LINT, "pytest"]),
    ("test", [*LINT, "pytest"]), ("reproduce", ["pytest"]), ("bench", ["uv", "python"]), ("ui", ["scan"]),
    ("lock", ["uv"]),
])  # fmt: skip
def test_a_target_starts_its_programs_in_a_folder_whose_path_contains_a_space(folder, target, programs):
    done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("started ")]
    assert started == ["uv", "uv", *programs]  # the first two fill the environment
    again = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True).stdout
    assert [line.split()[1] for line in again.splitlines() if line.startswith("started ")] == programs


def test_check_leaves_out_slow_tests_and_test_does_not(folder):
    check, test = (subprocess.run(["make", name], cwd=folder, capture_output=True, text=True).stdout
                   for name in ("check", "test"))  # fmt: skip
    assert "started pytest -n auto --maxprocesses 8 --dist loadfile -m not slow and not reproduction\n" in check
    assert "started pytest -n auto --maxprocesses 8 --dist loadfile\n" in test
