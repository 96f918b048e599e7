"""The ``SCAN_*`` variables: one table has them all, and a value that is not allowed is an error."""

import os
import re

import pytest

from pipeline.environment import VARIABLES, _value, data_home
from scan_core.errors import ScanError
from tests.project import ROOT

WRONG = {
    "SCAN_DEVICE": ["tpu", "CPU"],
    "SCAN_RESUME": ["1"],
    "SCAN_SAVE_SECONDS": ["often", "-1", "nan"],
    "SCAN_THREADS": ["0", "1.5"],
    "SCAN_TRACKING": ["off"],
    "SCAN_WORKERS": ["two", "-1", "0", "1.5"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_value_that_is_not_allowed_is_an_error(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    unset = ", or leave it unset" if name in ("SCAN_RESUME", "SCAN_TRACKING") else ""
    with pytest.raises(ScanError, match=f"^{name} is {text}; {VARIABLES[name].allowed} is allowed{unset}$"):
        _value(name)


@pytest.mark.parametrize(("name", "text", "value"), [
    ("SCAN_DEVICE", None, "auto"), ("SCAN_DEVICE", "", "auto"), ("SCAN_DEVICE", "cuda", "cuda"),
    ("SCAN_RESUME", "", None), ("SCAN_SAVE_SECONDS", "0.5", 0.5), ("SCAN_SAVE_SECONDS", "", 30.0),
    ("SCAN_THREADS", None, 0), ("SCAN_THREADS", "3", 3), ("SCAN_WORKERS", None, os.cpu_count()),
])  # fmt: skip
def test_a_variable_has_its_value_or_its_default(monkeypatch, name, text, value):
    monkeypatch.delenv(name, raising=False) if text is None else monkeypatch.setenv(name, text)
    assert _value(name) == value


@pytest.mark.parametrize(("given", "found"), [("", "p/datasets"), ("mine", "p/mine"), ("/mine", "/mine")])
def test_a_relative_data_folder_starts_at_the_project(monkeypatch, tmp_path, given, found):
    monkeypatch.setenv("SCAN_DATA", given)
    assert data_home(tmp_path / "p") == tmp_path / found


def test_the_table_has_every_variable_and_each_is_documented():
    def named(*patterns: str) -> set[str]:
        files = [path for pattern in patterns for path in ROOT.glob(pattern)]
        return {name for path in files for name in re.findall(r"\bSCAN_[A-Z]+(?:_[A-Z]+)*", path.read_text())}

    assert named("pipeline/**/*.py", "stages/*.py", "dvc.yaml", "docker/compose.yaml") == set(VARIABLES)
    assert set(VARIABLES) <= named("README.md", "docs/**/*.md")
