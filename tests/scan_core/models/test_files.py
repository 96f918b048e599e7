"""Model files: a round trip, the same bytes each time, and no partial load."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scan_core.errors import ScanError
from scan_core.models.files import Preprocessing, load_backbone, load_model, load_strictly, save_backbone, save_model
from scan_core.models.networks import ClusterHeads, Model, Projector, architecture, build_backbone, feature_size
from scan_core.models.settings import Backbone
from tests.tiny import BACKBONE, assert_same_tensors, backbone_settings, change, cluster_model, refused

IMAGES = Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
STATS = {"channels": 3, "view": 8, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


@pytest.fixture
def path(tmp_path):
    """A file of a clustering network with two heads."""
    file = tmp_path / "models" / "cluster.safetensors"
    save_model(file, cluster_model(clusters=3, heads=2), BACKBONE, STATS)
    return file


def rewritten(path, change):
    """The file with its tensors changed and its description as it was."""
    tensors = load_file(path)
    change(tensors)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)
    return path


RESNET18 = backbone_settings(name="resnet18", width=64)
VIT = backbone_settings(name="timm", width=64, model="test_vit")
GRAY = STATS | {"channels": 1, "mean": [0.1], "std": [0.4]}


def projector(**values):
    """What makes it, and what a description says of it."""
    return lambda features: Projector(features, **values), {
        "kind": "projector",
        "hidden": None,
        "norm": False,
        **values,
    }


HEADS = {  # by what a description says of them
    "cluster": (lambda features: ClusterHeads(features, 3, 2), {"kind": "cluster", "clusters": 3, "heads": 2}),
    "mlp": projector(projection=5),
    "linear": projector(projection=5, hidden=0),
    "norm": projector(projection=5, hidden=7, norm=True),
    "none": (lambda features: torch.nn.Identity(), {"kind": "none"}),
}
TIMM = [change(VIT, model=f"test_{name}") for name in ("vit", "resnet", "convnext")]


@pytest.mark.parametrize(
    ("settings", "head"),
    [*((BACKBONE, head) for head in HEADS), (RESNET18, "cluster"), *((each, "mlp") for each in TIMM), (VIT, "none")],
    ids=lambda each: each if isinstance(each, str) else each.model or each.name,
)
@pytest.mark.parametrize("stats", [STATS, GRAY], ids=["color", "gray"])
@pytest.mark.slow
def test_every_network_comes_back_and_gives_the_same_bytes_again(tmp_path, settings, head, stats):
    backbone = build_backbone(settings, stats["channels"])
    make, described = HEADS[head]
    model = Model(backbone, make(feature_size(backbone)))
    given = torch.randn(4, stats["channels"], 32, 32)
    model(given)  # so that BatchNorm's buffers are not a new network's
    save_model(tmp_path / "a.safetensors", model, change(settings, weights="/home/me/a.safetensors"), stats)
    loaded, description = load_model(tmp_path / "a.safetensors")
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in loaded.parameters())
    for found, wanted in zip(loaded.eval()(given), model.eval()(given), strict=True):
        assert torch.equal(found, wanted)
    assert Backbone(**description.pop("backbone")) == settings, "weights are in the file; where they came from is not"
    assert description == {
        "head": described,
        "size": [8, 8],
        **{key: stats[key] for key in ("channels", "mean", "std")},
    }
    save_model(tmp_path / "b.safetensors", loaded, settings, stats)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_frozen_network_is_saved_as_any_other(tmp_path, path):
    model = cluster_model(clusters=3, heads=2)
    save_model(tmp_path / "f.safetensors", Model(model.backbone, model.head, frozen=True), BACKBONE, STATS)
    assert (tmp_path / "f.safetensors").read_bytes() == path.read_bytes()
    save_model(tmp_path / "other.safetensors", cluster_model(clusters=3, heads=2, seed=1), BACKBONE, STATS)
    assert (tmp_path / "other.safetensors").read_bytes() != path.read_bytes()


@pytest.mark.parametrize(("changed", "said"), [
    (lambda tensors: tensors.pop("backbone.convs.3.weight"), ["the network alone has backbone.convs.3.weight"]),
    (lambda tensors: tensors.pop("backbone.norms.0.running_mean"), ["alone has backbone.norms.0.running_mean"]),
    (lambda tensors: tensors.update({"module.head.linear.bias": tensors.pop("head.linear.bias")}),
     ["the network alone has head.linear.bias", "the file alone has module.head.linear.bias"]),
    (lambda tensors: tensors.update({"head.linear.bias": torch.zeros(7)}), ["head.linear.bias is (7,), not (6,)"]),
    (lambda tensors: tensors.update({"head.linear.bias": torch.zeros(1)}),  # it would broadcast
     ["head.linear.bias is (1,), not (6,)"]),
    (lambda tensors: [tensors.pop(key) for key in list(tensors) if "norms" in key],  # of six norms, five each
     ["the network alone has backbone.norms.0.weight, ", " and 27 more"]),
])  # fmt: skip
def test_keys_and_shapes_that_differ_are_named(path, changed, said):
    refused(lambda: load_model(rewritten(path, changed)), f"{path} does not fit the network: ", *said)


def test_a_load_that_fails_leaves_the_network_as_it_was(tmp_path):
    model, other = cluster_model(), cluster_model(seed=1).state_dict()
    before = deepcopy(model.state_dict())
    del other["head.linear.bias"]
    with pytest.raises(ScanError):
        load_strictly(model, other, tmp_path)
    assert_same_tensors(model.state_dict(), before)


NO_MODELS = b"", b"not a model", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "


@pytest.mark.parametrize("load", [load_model, lambda path: load_backbone(build_backbone(BACKBONE, 3), path)])
@pytest.mark.parametrize("content", [*NO_MODELS, 0.01, 0.2, 0.99])
def test_what_is_no_whole_model_file_is_refused(path, content, load):
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    refused(lambda: load(path), f"{path} is not a model of this pipeline")
    path.unlink()
    refused(lambda: load(path), f"{path} is missing")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"scan": "{"}, "backbone", "head", "channels"])
def test_tensors_without_a_readable_and_whole_description_are_an_error(path, metadata):
    if isinstance(metadata, str):
        description = load_model(path)[1]
        del description[metadata]
        metadata = {"scan": json.dumps(description)}
    save_file(load_file(path), path, metadata=metadata)
    refused(lambda: load_model(path), "is not a model of this pipeline")


# --- A backbone's weights by themselves


def imported(path, settings, channels=3, seed=7):
    """A file of such weights, and the backbone they are of, in eval mode."""
    torch.manual_seed(seed)
    backbone = build_backbone(settings, channels)
    save_backbone(path, backbone.state_dict(), {"from": "timm", "network": architecture(settings)}, settings, IMAGES)
    return backbone.eval()


@pytest.mark.parametrize("channels", [3, 1], ids=["color", "gray"])
@pytest.mark.parametrize("settings", [BACKBONE, RESNET18, VIT], ids=lambda each: each.model or each.name)
def test_weights_come_back_and_a_gray_image_gives_what_three_equal_channels_would(tmp_path, settings, channels):
    path = tmp_path / "weights" / "a.safetensors"
    source, network = imported(path, settings), build_backbone(settings, channels).eval()
    given = torch.randn(2, channels, 32, 32)
    wanted, tolerance = source(given.expand(2, 3, 32, 32)), 1e-4 if channels == 1 else 0
    assert not torch.allclose(network(given), wanted, rtol=1e-2)
    load_backbone(network, path)
    torch.testing.assert_close(network(given), wanted, rtol=tolerance, atol=tolerance / 10)
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"], "no unfinished file stays"


def test_the_keys_that_differ_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    imported(path, VIT)
    said = (
        "the network alone has ",
        "the file alone has ",
        "more",
        "the file is of timm test_vit, backbone is timm test_resnet",
    )
    refused(lambda: load_backbone(build_backbone(change(VIT, model="test_resnet"), 3), path), path, *said)
    wide = build_backbone(change(BACKBONE, width=8), 3)
    refused(lambda: load_backbone(wide, path), "convnet 8")
    imported(path, BACKBONE)
    said = ("convs.0.weight is (4, 3, 3, 3), not (8, 3, 3, 3)", "the file is of convnet 4")
    refused(lambda: load_backbone(wide, path), *said)


def test_the_same_keys_are_not_the_same_network(tmp_path):
    """stl and small differ by a max-pool, which has no weights; variants of CLIP by their activation."""
    imported(tmp_path / "a.safetensors", RESNET18)
    network = build_backbone(change(RESNET18, stem="stl"), 3)
    before = deepcopy(network.state_dict())
    said = ("resnet18 with stem small", "resnet18 with stem stl", "change backbone")
    refused(lambda: load_backbone(network, tmp_path / "a.safetensors"), *said)
    assert_same_tensors(network.state_dict(), before)
    dino = change(VIT, model="test_vit.r160_in1k")  # a tag names weights, not another network
    imported(tmp_path / "b.safetensors", dino)
    load_backbone(build_backbone(VIT, 3), tmp_path / "b.safetensors")


@pytest.mark.parametrize(("made", "built"), [(1, 3), (3, 4), (2, 1)])
def test_other_numbers_of_channels_are_refused(tmp_path, made, built):
    imported(tmp_path / "a.safetensors", BACKBONE, made)
    said = f"convs.0.weight is (4, {made}, 3, 3), not (4, {built}, 3, 3)"
    refused(lambda: load_backbone(build_backbone(BACKBONE, built), tmp_path / "a.safetensors"), said)


@pytest.mark.parametrize("description", ["[]", "{}", '{"backbone": {}}'])
def test_tensors_that_were_not_imported_are_refused(tmp_path, description):
    path = tmp_path / "a.safetensors"
    tensors = {key: value.contiguous() for key, value in build_backbone(BACKBONE, 3).state_dict().items()}
    save_file(tensors, path, metadata={"scan": description})
    refused(lambda: load_backbone(build_backbone(BACKBONE, 3), path), f"{path} holds no imported weights")


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    imported(path, BACKBONE)
    before = path.read_bytes()

    def half(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("scan_core.models.files.save_file", half)
    with pytest.raises(OSError, match="no space"):
        imported(path, BACKBONE, seed=8)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == {path: before}
