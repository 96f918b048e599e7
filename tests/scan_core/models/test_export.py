"""The ONNX file: its resizing and its networks against the pipeline's own, and the file itself in onnxruntime."""

import json
import tomllib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from scan_core.compute.device import Compute
from scan_core.models import export
from scan_core.models.export import OfFrozen, OfTrained, Resize, check_export, export_model, run_export
from scan_core.models.predictor import Predictor
from tests.project import ROOT
from tests.scan_core.models.models_on_disk import frozen_model, images_of, stats, trained_model
from tests.tiny import CPU, backbone_settings, refused

FLOAT = Compute(CPU, "fp32")
VIT = backbone_settings(name="timm", width=64, model="vit_small_patch14_reg4_dinov2.lvd142m")
missing = [name for name in (*export.NEEDED, export.RUNTIME) if find_spec(name) is None]
with_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_the_extra_has_what_writes_a_file_and_development_all_that_these_tests_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(each.partition(">=")[0] for each in extras["onnx"]) == sorted(export.NEEDED)
    assert any(each.startswith(f"{export.RUNTIME}>=") for each in extras["dev"])
    locked = (ROOT / "requirements-dev.lock").read_text()
    assert [name for name in (*export.NEEDED, export.RUNTIME) if f"\n{name}==" not in locked] == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "side"), [(64, 128), (224, 96), (50, 33), (32, 224)])
def test_resizing_is_that_of_pil_and_of_the_plain_path_up_to_rounding(size, side, channels):
    pixels = torch.from_numpy(np.random.default_rng(size).integers(0, 256, (2, channels, size, size), np.uint8))
    found = Resize(size, side)(pixels.float())
    assert torch.equal(found, found.round()) and found.shape == (2, channels, side, side)
    plain = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).float()
    assert (found - plain).abs().max() <= 2 and (found - plain).abs().mean() < 0.05  # its weights have 16 bits
    for image, each in zip(pixels, found, strict=True):
        for plane, values in zip(image.numpy(), each, strict=True):
            by_pil = np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC), int)
            assert np.abs(values.numpy() - by_pil).max() <= 1 and (values.numpy() == by_pil).mean() > 0.999


def answers_of(module, shown):
    with torch.no_grad():
        return [each.numpy() for each in module.eval()(torch.from_numpy(shown))]


def assert_is_the_model(found, embeddings, files, about, tolerance):
    """``found`` (70,C) and ``embeddings`` (70,D) are what the model says of ``images_of(about, seed=1)``."""
    said = Predictor(files, FLOAT)(images_of(about, seed=1)[0], torch.arange(70))
    ranked = np.take_along_axis(found, said.prediction.clusters, axis=1)
    np.testing.assert_allclose(ranked, said.prediction.probabilities, atol=tolerance)
    np.testing.assert_allclose(embeddings, said.embeddings, atol=tolerance)
    assert len(set(said.prediction.cluster.tolist())) > 1, "proves little"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return frozen_model(tmp_path_factory.mktemp("frozen"), stats())[0]


def test_frozen_networks_give_what_the_model_says(frozen):
    about = stats()
    assert_is_the_model(*answers_of(OfFrozen(frozen, 20), images_of(about, seed=1)[1]), frozen, about, 0.02)


def test_without_resizing_it_is_the_same_to_rounding(tmp_path):
    about = stats(size=16)
    files = frozen_model(tmp_path, about, sides=((16, True),))[0]
    assert_is_the_model(*answers_of(OfFrozen(files, 16), images_of(about, seed=1)[1]), files, about, 1e-5)


def test_gray_images_have_three_equal_colors(tmp_path):
    about = stats(channels=1)
    files = frozen_model(tmp_path, about, sides=((20, False),))[0]
    assert_is_the_model(*answers_of(OfFrozen(files, 20), images_of(about, seed=1)[1]), files, about, 1e-5)


@pytest.mark.parametrize("about", [stats(8), stats(13, view=8), stats(8, channels=1)])
@pytest.mark.parametrize("projected", [False, True])
def test_a_trained_network_gives_what_the_model_says(tmp_path, about, projected):
    files = trained_model(tmp_path, about, projected)[0]
    assert_is_the_model(*answers_of(OfTrained(files, about), images_of(about, seed=1)[1]), files, about, 1e-5)


@with_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frozen", "trained", "transformer"])
def test_the_file_alone_gives_what_the_model_says(tmp_path, kind):
    import onnx
    import onnxruntime

    about = {"frozen": stats(), "trained": stats(size=13, view=8), "transformer": stats(size=126)}[kind]
    if kind == "trained":
        files = trained_model(tmp_path / "model", about)[0]
    else:  # the transformer's positions are for images of another size
        sides = ((16, False), (12, True)) if kind == "frozen" else ((126, False),)
        files = frozen_model(tmp_path / "model", about, sides, *([VIT] if kind == "transformer" else []))[0]
    path = tmp_path / "model.onnx"
    export_model(files, about, path, {"groups": {0: (3, "daisy")}})
    assert {each.name for each in tmp_path.iterdir()} == {"model", "model.onnx"}
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}, "not every program has it"
    shown = images_of(about, seed=1)[1]
    found, embeddings = run_export(path, shown)
    assert_is_the_model(found, embeddings, files, about, 0.02 if kind == "frozen" else 1e-4)
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["scan"]) == {"groups": {"0": [3, "daisy"]}}
    assert session.get_inputs()[0].shape == ["batch", about["size"], about["size"], 3]
    alone = run_export(path, shown[:1])
    np.testing.assert_allclose(alone[0], found[:1], atol=1e-5)
    agreement = check_export(path, files, about, shown)
    assert agreement.images == 70 and agreement.same >= 68 and agreement.difference < 0.02


@pytest.fixture
def runtime(monkeypatch):
    """As if onnxruntime were there; the probabilities that it gives for three images are put in."""
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name)
    given = []
    monkeypatch.setattr(export, "run_export", lambda path, pixels: (given[0], None))
    return given


def test_a_file_that_is_not_the_model_is_found_out(tmp_path, runtime):
    about = stats(8)
    files = trained_model(tmp_path, about)[0]
    shown = images_of(about)[1][:3]
    found = answers_of(OfTrained(files, about), shown)[0]
    runtime.append(found)
    assert check_export(tmp_path / "a.onnx", files, about, shown).same == 3
    for wrong in (found[:, ::-1], np.full_like(found, np.nan), found + np.eye(3, dtype=np.float32) * 0.15):
        runtime[0] = wrong
        refused(lambda: check_export(tmp_path / "a.onnx", files, about, shown), "a.onnx is wrong", "do not use it")


def test_without_onnxruntime_nothing_is_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert check_export(tmp_path / "a.onnx", None, None, None) is None


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    refused(lambda: export_model(None, None, tmp_path / "a.onnx", {}), "pip install onnxscript", "onnx and onnxscript")


def test_what_cannot_be_written_is_refused_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name)
    about = stats(8)
    files = trained_model(tmp_path / "model", about)[0]

    def fail(module, example):
        raise RuntimeError("no decompositions\nregistered for aten::some")

    monkeypatch.setattr(export, "_to_onnx", fail)
    refused(lambda: export_model(files, about, tmp_path / "a.onnx", {}), "no decompositions registered for aten::some")
    monkeypatch.setattr(export, "LARGEST", 2**10)
    refused(lambda: export_model(files, about, tmp_path / "a.onnx", {}), "a smaller one fits into an ONNX file")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
