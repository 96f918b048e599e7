"""Model files: a round trip, the same bytes each time, and no partial load."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scan_core.errors import ScanError
from scan_core.networks import ClusterHeads, Model, Projector, build_backbone
from scan_core.settings import Backbone
from scan_core.weights import load_model, load_strictly, read_weights, save_model
from tests.scan_core.tiny import BACKBONE, cluster_model

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
    assert load_model(tmp_path / "p.safetensors")[1]["head"] == {"kind": "projector", "projection": 5}


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
