"""What a run says it was made with."""

from importlib.metadata import Distribution, distributions

from pipeline.tracking.packaging import environment


class Broken(Distribution):
    """What an interrupted installation leaves: a folder without metadata."""

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


def test_the_environment_lists_what_is_installed_and_survives_what_is_broken(monkeypatch):
    monkeypatch.setattr("pipeline.tracking.packaging.distributions", lambda: [Broken(), *distributions()])
    packages = environment()["packages"]
    assert packages["torch"].startswith("2.") and list(packages) == sorted(packages)
    assert "none" not in packages
