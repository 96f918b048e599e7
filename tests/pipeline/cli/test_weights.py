"""``scan weights import``: what it writes, what it prints to be set, and that a mistake leaves nothing behind."""

import hashlib
import json
import os

import pytest
import timm
import torch
import torchvision
from ruamel.yaml import YAML
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.params import Params
from pipeline.presets import preset_values
from pipeline.weights import sign_weights, weights_file
from scan_core.errors import ScanError
from scan_core.models.files import load_backbone
from scan_core.models.networks import build_backbone
from scan_core.weights.published import ON_HUB, PUBLISHED
from tests.project import ROOT, completed, merge


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return preset_values(ROOT / "presets" / "digits.yaml")


def scan(*words):
    result = CliRunner().invoke(app, ["weights", "import", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def printed_settings(result):
    """The lines for params.yaml, as YAML: to use the weights frozen, and to train them further."""
    both = result.stdout.split("params.yaml:\n\n")[1]
    frozen, trained = both.split("\nTo train this network further, set instead:\n")
    return [YAML(typ="safe", pure=True).load(text) for text in (frozen, trained)]


def test_what_is_printed_is_settings_that_load_the_file(project, digits):
    torch.save(timm.create_model("test_resnet").state_dict(), "best.pth.tar")
    result = scan("best.pth.tar", "--from", "timm", "--model", "test_resnet.r160_in1k")
    assert result.exit_code == 0, result.output
    assert files(project) == ["best.pth.tar", "weights/best.safetensors"]
    frozen, trained = printed_settings(result)
    assert frozen == {
        "pretext": {"method": "frozen"}, "cluster": {"method": "frozen"}, "selflabel": {"epochs": 0},
        "embed": {"spaces": [{"weights": "weights/best.safetensors", "side": None, "mirror": False}]},
    }  # fmt: skip
    assert trained == {
        "data": {"size": 168, "view": 160, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "backbone": {
            "name": "timm", "width": 64, "stem": "imagenet", "model": "test_resnet.r160_in1k",
            "weights": "weights/best.safetensors",
        },
    }  # fmt: skip
    Params.model_validate_json(json.dumps(completed(merge(digits, frozen))))
    params = Params.model_validate_json(json.dumps(completed(merge(digits, trained))))
    load_backbone(build_backbone(params.backbone, 3), project / params.backbone.weights)
    assert "left out  classifier (2)" in result.stdout
    assert "network   timm test_resnet" in result.stdout
    assert "weights/best.safetensors" in result.stdout.splitlines()[3]


def test_the_resnet_is_found_from_the_tensors(project, digits):
    state = torchvision.models.resnet18().state_dict()
    content = {f"module.encoder_q.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    content |= {"module.encoder_k.fc.0.bias": torch.zeros(1), "module.queue": torch.zeros(1)}
    torch.save({"state_dict": content}, "moco.pth.tar")
    result = scan("moco.pth.tar", "--from", "moco_v2")
    assert result.exit_code == 0, result.output
    _, settings = printed_settings(result)
    assert settings["data"] == {"size": 256, "view": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert settings["backbone"]["name"] == "resnet18" and settings["backbone"]["stem"] == "imagenet"
    assert "left out  momentum encoder (1), queue (1)" in result.stdout
    Params.model_validate_json(json.dumps(completed(merge(digits, settings))))


@pytest.mark.parametrize(("name", "to", "written"), [
    ("model.safetensors", (), "weights/test_vit.r160_in1k"), ("pytorch_model.bin", (), "weights/test_vit.r160_in1k"),
    ("a.b.pth", (), "weights/a.b"), ("a.pth", ("--to", "there/b.safetensors"), "there/b"),
])  # fmt: skip
def test_the_name_of_what_is_written(project, name, to, written):
    """Files of Hugging Face are all called the same, so they get their network's name."""
    state = timm.create_model("test_vit").state_dict()
    (save_file if name.endswith(".safetensors") else torch.save)(state, name)
    assert scan(name, "--from", "timm", "--model", "test_vit.r160_in1k", *to).exit_code == 0
    assert files(project) == sorted([name, f"{written}.safetensors"])


@pytest.mark.parametrize(("words", "said"), [
    (("none.pth", "--from", "timm"), "none.pth is not a file"),
    (("a.pth", "--from", "timm"), "with --model"),
    (("a.pth", "--from", "timm", "--model", "test_vitt"), "did you mean test_vit"),
    (("a.pth", "--from", "timm", "--model", "test_resnet"), "the network alone has"),
    (("a.pth", "--from", "simclr"), "--from is simclr; moco_v2, torchvision, timm, dino are allowed"),
    (("a.pth", "--from", "timm", "--model", "test_vit", "--to", "a.bin"), "--to is a.bin; a .safetensors file"),
    (("a.pth", "--from", "timm", "--model", "test_vit", "--to", "a.pth/b.safetensors"), "a.pth"),
    (("weights/b.safetensors", "--from", "timm", "--model", "test_vit"), "other than the checkpoint"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(project, words, said):
    state = timm.create_model("test_vit").state_dict()
    torch.save(state, "a.pth")
    (project / "weights").mkdir()
    save_file(state, "weights/b.safetensors")
    before = [(project / name).read_bytes() for name in ("a.pth", "weights/b.safetensors")]
    result = scan(*words)
    assert result.exit_code == 1
    assert result.stdout == "" and result.stderr.startswith("scan: error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr
    assert [(project / name).read_bytes() for name in files(project)] == before


def test_the_signature_is_the_files_hash(project, monkeypatch):
    (project / "a.safetensors").write_bytes(b"one")
    (project / "copy").mkdir()
    monkeypatch.chdir("copy")  # where DVC runs some experiments
    expected = hashlib.sha256(b"one").hexdigest()
    assert sign_weights("key", "a.safetensors", project) == expected, "from the project, wherever the stage runs"
    assert sign_weights("key", str(project / "a.safetensors"), project / "elsewhere") == expected
    monkeypatch.setenv("HOME", str(project))
    assert sign_weights("key", "~/a.safetensors", project / "elsewhere") == expected
    os.utime(project / "a.safetensors", (0, 0))
    assert sign_weights("key", "a.safetensors", project) == expected, "its time is no part of it"
    (project / "a.safetensors").write_bytes(b"two")
    assert sign_weights("key", "a.safetensors", project) != expected


@pytest.mark.parametrize("name", ["none.safetensors", "."])
def test_weights_that_are_not_there_are_an_error(project, name):
    with pytest.raises(ScanError, match=r"backbone\.weights is .*scan weights import"):
        sign_weights("backbone.weights", name, project)


@pytest.mark.slow
def test_published_weights_are_made_where_they_are_first_named_and_always_the_same(project):
    signed = sign_weights("embed.spaces.0.weights", "efficientnet_lite0", project)
    path = weights_file("efficientnet_lite0", project)
    assert path == project / "weights" / "efficientnet_lite0.safetensors"
    before = path.read_bytes()
    assert hashlib.sha256(before).hexdigest() == signed
    result = CliRunner().invoke(app, ["weights", "get", "efficientnet_lite0"])
    assert result.exit_code == 0 and path.read_bytes() == before
    assert printed_settings(result)[0]["embed"]["spaces"][0]["weights"] == "weights/efficientnet_lite0.safetensors"


def test_the_list_fits_a_terminal_and_says_whether_labels_were_used():
    output = CliRunner().invoke(app, ["weights", "list"]).stdout
    lines, _ = (part.splitlines() for part in output.split("\n\n"))
    assert all(len(line) <= 80 for line in lines) and "with labels" in lines[0]
    rows = {line.split()[0]: line.split()[-2:] for line in lines[1:]}
    assert list(rows) == [*PUBLISHED, *ON_HUB]
    assert rows["efficientnet_lite0"] == ["yes", "Apache-2.0"]
    assert rows["dinov2_base_reg4"][0] == "no" and rows["clip_vit_l14"][0] == rows["siglip2_base"][0] == "captions"
