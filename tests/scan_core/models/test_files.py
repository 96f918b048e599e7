"""Model files: a round trip, the same bytes each time, and no partial load."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scan_core.errors import ScanError
from scan_core.models.files import load_backbone, load_model, load_strictly, read_weights, save_backbone, save_model
from scan_core.models.networks import ClusterHeads, Model, Projector, architecture, build_backbone, feature_size
from scan_core.models.settings import Backbone
from scan_core.pretext.methods import start_pretext, train_pretext, trained_model
from tests.tiny import BACKBONE, backbone_settings, change, cluster_model, images, pretext_settings, refused

STATS = {"channels": 3, "view": 8, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def projector_model():
    return Model(build_backbone(BACKBONE, 3), Projector(16, 5))


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


@pytest.mark.parametrize("model", [cluster_model(clusters=3, heads=2), projector_model()], ids=["cluster", "projector"])
def test_what_is_saved_is_loaded(tmp_path, model):
    model.train()
    images = torch.randn(4, 3, 8, 8)
    model(images)  # so that the BatchNorm buffers are not those of a new network
    path = tmp_path / "model.safetensors"
    save_model(path, model, BACKBONE, STATS)
    loaded, description = load_model(path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    model.eval()
    loaded.eval()
    for found, wanted in zip(loaded(images), model(images), strict=True):
        assert torch.equal(found, wanted)
    assert type(loaded.head) is type(model.head)
    assert (description["channels"], description["size"]) == (3, [8, 8])
    assert (description["mean"], description["std"]) == (STATS["mean"], STATS["std"])
    assert Backbone(**description["backbone"]) == BACKBONE


def test_the_description_says_which_head(tmp_path, path):
    assert load_model(path)[1]["head"] == {"kind": "cluster", "clusters": 3, "heads": 2}
    save_model(tmp_path / "p.safetensors", projector_model(), BACKBONE, STATS)
    projector = {"kind": "projector", "projection": 5, "hidden": None, "norm": False}
    assert load_model(tmp_path / "p.safetensors")[1]["head"] == projector


RESNET18 = backbone_settings(name="resnet18", width=64)
VIT = backbone_settings(name="timm", width=64, model="test_vit")
GREY = STATS | {"channels": 1, "mean": [0.1], "std": [0.4]}
HEADS = {
    "cluster": lambda features: ClusterHeads(features, 3, 2),
    "mlp": lambda features: Projector(features, 5),
    "linear": lambda features: Projector(features, 5, hidden=0),
    "norm": lambda features: Projector(features, 5, hidden=7, norm=True),
    "none": lambda features: torch.nn.Identity(),
}


TIMM = [change(VIT, model=f"test_{name}") for name in ("vit", "resnet", "convnext")]


@pytest.mark.parametrize(
    ("settings", "head"),
    [*((BACKBONE, head) for head in HEADS), (RESNET18, "cluster"), *((each, "mlp") for each in TIMM), (VIT, "none")],
    ids=lambda each: each if isinstance(each, str) else each.model or each.name,
)
@pytest.mark.parametrize("stats", [STATS, GREY], ids=["colour", "grey"])
def test_every_network_comes_back(tmp_path, settings, head, stats):
    backbone = build_backbone(settings, stats["channels"])
    model = Model(backbone, HEADS[head](feature_size(backbone)))
    given = torch.randn(4, stats["channels"], 32, 32)
    model(given)  # so that BatchNorm's buffers are not a new network's
    save_model(tmp_path / "a.safetensors", model, change(settings, weights="/home/me/a.safetensors"), stats)
    loaded, description = load_model(tmp_path / "a.safetensors")
    for found, wanted in zip(loaded.eval()(given), model.eval()(given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert Backbone(**description["backbone"]) == settings, "weights are in the file; where they came from is not"
    save_model(tmp_path / "b.safetensors", loaded, settings, stats)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_saving_twice_gives_the_same_bytes(tmp_path, path):
    saved = path.read_bytes()
    for number in range(3):
        again = tmp_path / f"{number}.safetensors"
        save_model(again, load_model(path)[0], BACKBONE, STATS)
        assert again.read_bytes() == saved


def test_other_weights_give_other_bytes(tmp_path, path):
    save_model(tmp_path / "other.safetensors", cluster_model(clusters=3, heads=2, seed=1), BACKBONE, STATS)
    assert (tmp_path / "other.safetensors").read_bytes() != path.read_bytes()


def test_a_frozen_network_is_saved_as_any_other(tmp_path, path):
    model = cluster_model(clusters=3, heads=2)
    save_model(tmp_path / "f.safetensors", Model(model.backbone, model.head, frozen=True), BACKBONE, STATS)
    assert (tmp_path / "f.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("key", ["backbone.convs.3.weight", "backbone.norms.0.running_mean", "head.linear.bias"])
def test_a_missing_key_is_an_error_that_names_it(path, key):
    rewritten(path, lambda tensors: tensors.pop(key))
    with pytest.raises(ScanError, match=re.escape(f"{key} is missing")):
        load_model(path)


def test_an_unexpected_key_is_an_error_that_names_it(path):
    rewritten(path, lambda tensors: tensors.update({"backbone.fc.weight": torch.zeros(2)}))
    with pytest.raises(ScanError, match=re.escape("backbone.fc.weight is unexpected")):
        load_model(path)


def test_a_renamed_key_is_named_twice(path):
    rewritten(path, lambda tensors: tensors.update({"module.head.linear.bias": tensors.pop("head.linear.bias")}))
    with pytest.raises(ScanError) as error:
        load_model(path)
    assert "head.linear.bias is missing" in str(error.value)
    assert "module.head.linear.bias is unexpected" in str(error.value)


def test_a_wrong_shape_is_an_error_that_names_both(path):
    rewritten(path, lambda tensors: tensors.update({"head.linear.bias": torch.zeros(7)}))
    with pytest.raises(ScanError, match=re.escape("head.linear.bias is (7,), not (6,)")):
        load_model(path)


def test_a_shape_that_would_broadcast_is_wrong_too(path):
    rewritten(path, lambda tensors: tensors.update({"head.linear.bias": torch.zeros(1)}))
    with pytest.raises(ScanError, match=re.escape("head.linear.bias is (1,), not (6,)")):
        load_model(path)


def test_of_many_differences_three_are_named_and_the_rest_counted(path):
    rewritten(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if "norms" in key])
    with pytest.raises(ScanError, match=r"running_\w+ is missing.* and 27 more"):
        load_model(path)  # six norms of five tensors each


def test_a_load_that_fails_leaves_the_network_as_it_was(tmp_path):
    model, other = cluster_model(), cluster_model(seed=1).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del other["head.linear.bias"]
    with pytest.raises(ScanError):
        load_strictly(model, other, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_that_is_missing_says_how_to_make_it(tmp_path):
    with pytest.raises(ScanError, match=r"pretext\.safetensors is missing; make it with: dvc repro pretext"):
        load_model(tmp_path / "pretext.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 64, b"\x08" + b"\x00" * 7 + b"{}      "])
def test_a_file_that_is_no_model_is_an_error(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ScanError, match="is not a model of this pipeline"):
        load_model(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_a_truncated_file_is_an_error(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ScanError, match="is not a model of this pipeline"):
        load_model(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"scan": "{"}])
def test_tensors_without_a_readable_description_are_an_error(path, metadata):
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ScanError, match="is not a model of this pipeline"):
        read_weights(path)


@pytest.mark.parametrize("damage", ["backbone", "head", "channels"])
def test_a_description_that_lacks_something_is_an_error(path, damage):
    tensors, description = load_file(path), read_weights(path)[0]
    del description[damage]
    save_file(tensors, path, metadata={"scan": json.dumps(description)})
    with pytest.raises(ScanError, match="is not a model of this pipeline"):
        load_model(path)


def test_the_weights_are_loaded_on_the_host_and_train(path):
    model, _ = load_model(path)
    assert isinstance(model.head, ClusterHeads)
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())


# --- A backbone's weights by themselves


def imported(path, settings, channels=3, seed=7, network=None):
    """A file of such weights, and the backbone they are of, in eval mode."""
    torch.manual_seed(seed)
    backbone = build_backbone(settings, channels)
    save_backbone(path, backbone.state_dict(), {"from": "timm", "network": network or architecture(settings)})
    return backbone.eval()


@pytest.mark.parametrize("settings", [BACKBONE, RESNET18, VIT], ids=lambda each: each.model or each.name)
def test_weights_come_back_into_the_same_network(tmp_path, settings):
    path = tmp_path / "weights" / "a.safetensors"
    source, network = imported(path, settings), build_backbone(settings, 3).eval()
    given = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(given), source(given))
    load_backbone(network, path)
    assert torch.equal(network(given), source(given))
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"], "no unfinished file stays"


def test_the_keys_that_differ_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    imported(path, VIT)
    said = ("bn1.bias is missing", " and ", "more", "the file is of timm test_vit, backbone is timm test_resnet")
    refused(lambda: load_backbone(build_backbone(change(VIT, model="test_resnet"), 3), path), path, *said)
    refused(lambda: load_backbone(build_backbone(change(BACKBONE, width=8), 3), path), "convnet 8")
    imported(path, BACKBONE)
    said = ("convs.0.weight is (4, 3, 3, 3), not (8, 3, 3, 3)", "the file is of convnet 4")
    refused(lambda: load_backbone(build_backbone(change(BACKBONE, width=8), 3), path), *said)


def test_the_same_keys_are_not_the_same_network(tmp_path):
    """stl and small differ by a max-pool, which has no weights; variants of CLIP by their activation."""
    imported(tmp_path / "a.safetensors", RESNET18)
    network = build_backbone(change(RESNET18, stem="stl"), 3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    said = ("resnet18 with stem small", "resnet18 with stem stl", "change backbone")
    refused(lambda: load_backbone(network, tmp_path / "a.safetensors"), *said)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    dino = change(VIT, model="test_vit.r160_in1k")  # a tag names weights, not another network
    imported(tmp_path / "b.safetensors", dino)
    load_backbone(build_backbone(VIT, 3), tmp_path / "b.safetensors")


@pytest.mark.parametrize("settings", [BACKBONE, RESNET18, VIT], ids=lambda each: each.model or each.name)
def test_grey_images_give_what_three_equal_channels_would(tmp_path, settings):
    source = imported(tmp_path / "a.safetensors", settings)
    grey = build_backbone(settings, 1).eval()
    load_backbone(grey, tmp_path / "a.safetensors")
    given = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(given), source(given.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("made", "built"), [(1, 3), (3, 4), (2, 1)])
def test_other_numbers_of_channels_are_refused(tmp_path, made, built):
    imported(tmp_path / "a.safetensors", BACKBONE, made)
    said = f"convs.0.weight is (4, {made}, 3, 3), not (4, {built}, 3, 3)"
    refused(lambda: load_backbone(build_backbone(BACKBONE, built), tmp_path / "a.safetensors"), said)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x08" + b"\x00" * 7 + b"{}      "])
def test_a_file_that_is_no_import_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(lambda: load_backbone(build_backbone(BACKBONE, 3), path), path, "scan weights import")


@pytest.mark.parametrize("scan", [None, "{", "[]", '{"origin": 3}', "{}"])
def test_tensors_that_were_not_imported_are_refused(tmp_path, scan):
    path = tmp_path / "a.safetensors"
    tensors = {key: value.contiguous() for key, value in build_backbone(BACKBONE, 3).state_dict().items()}
    save_file(tensors, path, metadata=None if scan is None else {"scan": scan})
    refused(lambda: load_backbone(build_backbone(BACKBONE, 3), path), path, "scan weights import")
    refused(lambda: load_backbone(build_backbone(BACKBONE, 3), tmp_path / "b"), tmp_path / "b", "scan weights import")


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
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", ["none", "simclr"])
def test_the_pretext_starts_from_imported_weights(tmp_path, fp32, method):
    """``none`` keeps them as they are; another method goes on from them."""
    source = imported(tmp_path / "a.safetensors", BACKBONE)
    settings = pretext_settings(method=method)
    state = start_pretext(settings, BACKBONE, 3, 32, 0, fp32, tmp_path / "a.safetensors")
    kept = trained_model(state).backbone.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in source.state_dict().items())
    if method == "none":
        assert list(train_pretext(state, images(), torch.arange(32), settings, fp32)) == []
        save_model(tmp_path / "p.safetensors", trained_model(state), BACKBONE, STATS)
        loaded, description = load_model(tmp_path / "p.safetensors")
        assert description["head"] == {"kind": "none"}
        given = torch.randn(2, 3, 8, 8)
        assert torch.equal(loaded.eval().backbone(given), source(given))
