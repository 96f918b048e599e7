"""``scan model export``: what it writes and prints, and that it leaves no file that is wrong."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli.app import app
from scan_core.errors import ScanError
from scan_core.models import export
from tests.pipeline.groups.conftest import project, write_run  # noqa: F401 (a fixture)
from tests.scan_core.models.test_export import with_onnx

STATS = {
    "store": "array", "size": 8, "view": 8, "channels": 3, "fit": "crop", "count": 70, "rows": [70],
    "mean": [0.5] * 3, "std": [0.5] * 3,
}  # fmt: skip


def scan(*words):
    done = CliRunner().invoke(app, ["model", "export", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def finished(project):  # noqa: F811
    """A finished run of 70 stored images in three groups, of which one has a name and another is merged with it."""
    write_run([0] * 10 + [1] * 25 + [2] * 35)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
    artifacts.save_array(artifacts.IMAGES / "pixels-00000.npy", pixels)
    artifacts.save_array(artifacts.IMAGES / "pretext.npy", np.arange(70))
    artifacts.save_json(artifacts.IMAGES / "stats.json", STATS)
    for path in (artifacts.BELONGING, artifacts.MODELS / "pretext.safetensors"):
        path.write_bytes(b"")
    scan("x.onnx")  # numbers the groups, and fails because the model is none
    text = (project / "groups.yaml").read_text()
    text = text.replace("names: {}", 'names: {1: "daisy"}').replace("merge: {}", "merge: {3: 1}")
    (project / "groups.yaml").write_text(text)
    return project


@pytest.fixture
def written(monkeypatch):
    """What is written in place of a file: what is to be said of the groups, and the images that are compared."""
    seen = {}

    def write(files, stats, path, about):
        seen.update(about=about, files=files, stats=stats)
        path.write_bytes(b"x" * 2_000_000)

    def check(path, files, stats, pixels):
        seen["pixels"] = pixels
        return export.Agreement(64, 63, 0.00123)

    monkeypatch.setattr(export, "export_model", write)
    monkeypatch.setattr(export, "check_export", check)
    return seen


def test_the_file_says_which_group_each_output_is(finished, written):
    done = scan("model.onnx")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "wrote     model.onnx, 2.0 MB: images (B,8,8,3) uint8",
        "checked   63 of 64 stored images are in the same group; a probability differs by at most 0.001",
    ]
    groups = {0: (1, "daisy"), 1: (2, ""), 2: (1, "daisy")}  # the largest is number 1, the smallest is merged with it
    assert written["about"] == {"size": 8, "channels": 3, "fit": "crop", "groups": groups}
    stored = np.load(artifacts.IMAGES / "pixels-00000.npy")
    assert np.array_equal(written["pixels"], stored[:64]) and written["stats"] == STATS
    assert written["files"].pretext and not written["files"].networks
    json.dumps(written["about"])


def test_a_file_that_is_wrong_is_deleted(finished, written, monkeypatch):
    def wrong(*_):
        raise ScanError("model.onnx is wrong")

    monkeypatch.setattr(export, "check_export", wrong)
    done = scan("model.onnx")
    assert done.exit_code == 1 and "model.onnx is wrong" in done.stderr and not (finished / "model.onnx").exists()


def test_a_file_that_nothing_can_run_is_not_called_checked(finished, written, monkeypatch):
    monkeypatch.setattr(export, "check_export", lambda *_: None)
    done = scan("model.onnx")
    assert done.exit_code == 0 and "install onnxruntime" in done.stdout and "63 of 64" not in done.stdout


@pytest.mark.parametrize(("file", "said"), [
    ("model.pt", "the file is model.pt; a name that ends in .onnx is allowed"),
    ("none/model.onnx", "there is no folder none; make it"),
    ("model.onnx", "selflabel.safetensors is missing"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(project, file, said):  # noqa: F811
    done = scan(file)
    assert done.exit_code == 1 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@with_onnx
@pytest.mark.slow
def test_the_command_writes_a_file_that_gives_the_groups(finished):
    from tests.scan_core.models.models_on_disk import trained_model

    files = trained_model(finished / "made", STATS)[0]
    for path, place in ((files.model, "selflabel"), (files.pretext, "pretext"), (files.belonging, "belonging")):
        path.replace(artifacts.MODELS / f"{place}.safetensors")
    done = scan("model.onnx")
    assert done.exit_code == 0, done.output
    assert "64 of 64 stored images are in the same group" in done.stdout and (finished / "model.onnx").exists()
