"""The environment that a run records."""

from importlib.metadata import Distribution, distributions

from pipeline.tracking.packaging import environment


class Broken(Distribution):
    """A package whose installation was interrupted: it has no metadata."""

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


def test_the_environment_lists_all_packages_but_broken_ones(monkeypatch):
    monkeypatch.setattr("pipeline.tracking.packaging.distributions", lambda: [Broken(), *distributions()])
    packages = environment()["packages"]
    assert packages["torch"].startswith("2.") and list(packages) == sorted(packages)
    assert "none" not in packages
