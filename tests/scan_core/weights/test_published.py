"""Weights by name: what is said of them is what their files hold."""

import hashlib
from dataclasses import replace

import pytest
import timm
import torch

from scan_core.models.files import Preprocessing
from scan_core.models.networks import build_backbone
from scan_core.weights import published
from scan_core.weights.convert import import_checkpoint
from scan_core.weights.published import PUBLISHED, load_published, package_file
from tests.tiny import refused


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_timms_network_with_every_tensor_of_the_file_in_its_place(name):
    each, path = PUBLISHED[name], package_file(name)
    found = load_published(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == each.sha256 == found.origin["sha256"]
    assert each.megabytes == round(path.stat().st_size / 1e6)
    assert found.preprocessing == Preprocessing(each.side, each.mean, each.std) and found.left_out == {"classifier": 2}
    network = build_backbone(found.backbone, 3)
    network.load_state_dict(found.tensors)
    whole = timm.create_model(each.model)  # with the file's tensors in its own order
    given = torch.load(path, weights_only=True).values()
    whole.load_state_dict(dict(zip(whole.state_dict(), given, strict=True)))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = network.eval()(images)
    assert features.shape == (2, each.features)
    wanted = whole.eval().forward_head(whole.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-4)


def test_a_name_that_is_not_known_a_missing_package_and_a_damaged_file_are_refused(tmp_path, monkeypatch):
    name = "efficientnet_lite0"
    refused(lambda: load_published("resnet"), "no weights resnet", "scan weights list")
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], package="not-there"))
    refused(lambda: load_published(name), "package not-there", "make setup")
    damaged = tmp_path / "a.pth"
    damaged.write_bytes(b"x")
    monkeypatch.setattr(published, "package_file", lambda _: damaged)
    refused(lambda: load_published(name), damaged, "SHA-256", "install it again")


def renamed(state):
    """A state dict under other names, each with the same last part."""
    return {f"_{number}.{key.rpartition('.')[2]}": value for number, (key, value) in enumerate(state.items())}


def test_tensors_under_other_names_are_paired_in_order_if_shapes_and_last_parts_agree(tmp_path):
    path, state = tmp_path / "a.pth", timm.create_model("test_resnet").state_dict()
    torch.save(renamed(state), path)
    found = import_checkpoint(path, "timm", model="test_resnet")
    assert found.left_out == {"classifier": 2}
    assert all(torch.equal(value, state[key]) for key, value in found.tensors.items())


@pytest.mark.parametrize("change", [
    lambda state: dict(list(state.items())[:-1]),  # one too few
    lambda state: {key.replace("running_mean", "running_var_"): value for key, value in state.items()},
    lambda state: dict(reversed(state.items())),
], ids=["fewer", "another last part", "another order"])  # fmt: skip
def test_tensors_that_may_be_others_are_not_paired(tmp_path, change):
    path, state = tmp_path / "a.pth", timm.create_model("test_resnet").state_dict()
    torch.save(change(renamed(state)), path)
    said = "the network alone has conv1.0.weight", "the file alone has _"
    refused(lambda: import_checkpoint(path, "timm", model="test_resnet"), path, *said)
