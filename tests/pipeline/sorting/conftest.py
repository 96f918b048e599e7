"""A project in which a small run is finished."""

import pytest


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, which commands start in."""
    monkeypatch.delenv("SCAN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
