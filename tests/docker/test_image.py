"""The image leaves out the files that git leaves out."""

from tests.project import ROOT


def lines(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def test_the_image_leaves_out_what_git_leaves_out():
    # A tracked file left out would make the copy's commit "-dirty"; an untracked one put in might be a secret.
    ignored = {line.rstrip("/") for line in lines(".gitignore")}
    patterns = {line[1:] if line.startswith("/") else f"**/{line}" for line in ignored}
    dvc = {".dvc/cache", ".dvc/tmp", ".dvc/config.local"}
    git = {".git/config", ".git/hooks", ".git/logs"}
    assert lines("docker/Dockerfile.dockerignore") == patterns | dvc | git | {"docker/.env"}
    assert lines(".dvc/.gitignore") == {path.removeprefix(".dvc") for path in dvc}
    assert lines("docker/.gitignore") == {".env"}
