"""Weights on the hub: what is said of them is what timm says of its networks, and what their files would hold."""

import re

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from scan_core.models.networks import build_backbone, feature_size
from scan_core.weights import convert
from scan_core.weights.hub import CLIP, OWNER, _locate, is_on_hub, recorded_origin
from scan_core.weights.published import ON_HUB, PUBLISHED
from scan_core.weights.text import Sizes, TextTower
from tests.tiny import backbone_settings, refused


def text_tower(model):
    """Of OpenAI's CLIP, which is downloaded with the image tower."""
    if not re.match(CLIP, model):
        return []
    width = 768 if "large" in model else 512
    sizes = {"width": width, "heads": width // 64, "layers": 12, "context_length": 77, "vocab_size": 49408}
    with torch.device("meta"):
        return list(TextTower(Sizes(embed_dim=width, quick_gelu=True, **sizes)).state_dict().values())


@pytest.mark.parametrize("name", ON_HUB)
def test_what_is_said_of_a_network_is_what_timm_has(name):
    each = ON_HUB[name]
    settings = backbone_settings(name="timm", width=64, model=each.model)
    with torch.device("meta"):  # on no memory
        network, whole = build_backbone(settings, 3), timm.create_model(each.model)
    config = get_pretrained_cfg(each.model)
    assert feature_size(network) == each.features
    tensors = [*whole.state_dict().values(), *text_tower(each.model)]
    assert round(4 * sum(value.numel() for value in tensors) / 1e6) == each.megabytes
    _, images, _ = convert._preprocessing(network, settings, {})
    assert (images.side, config.license) == (each.side, each.license.lower())
    model, repository = _locate(name)
    assert model == each.model and repository.startswith(OWNER)
    assert repository.removeprefix(OWNER) in timm.list_models(pretrained=True)


def test_clips_networks_compute_the_gelu_that_it_was_trained_with():
    model, repository = _locate("clip_vit_b16")
    assert "quickgelu" in model and "quickgelu" not in repository


def test_which_networks_have_a_text_tower_in_their_repository():
    named = {name for name, each in ON_HUB.items() if re.match(CLIP, each.model)}
    assert named == {"clip_vit_b32", "clip_vit_b16", "clip_vit_l14"}
    assert re.match(CLIP, "vit_base_patch32_clip_224.laion2b")
    assert not re.match(CLIP, "vit_base_patch32_clip_224.openai_ft_in1k"), "trained further on labels"


@pytest.mark.parametrize(("name", "said"), [
    ("timm/cspnext_l.rsb_a1_in1k", "not in one of timm's own repositories, but on munehiro-k/cspnext_l.rsb_a1_in1k"),
    ("timm/gcvit_base.in1k", "on another server; download its file from there and use scan weights import FILE"),
    ("timm/vit_small_patch14_dinov2", "did you mean timm/vit_small_patch14_dinov2.lvd142m"),
    ("timm/x", "is not one of timm's networks with published weights; scan weights list has some"),
])  # fmt: skip
def test_a_network_that_is_elsewhere_or_nowhere_is_refused(name, said):
    refused(lambda: _locate(name), name, said)


def test_which_names_are_on_the_hub():
    assert all(map(is_on_hub, ON_HUB)) and is_on_hub("timm/vit_base_patch16_224.mae")
    assert not any(map(is_on_hub, [*PUBLISHED, "weights/a.safetensors", "timm/a.safetensors", "a"]))


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_another_file_has_no_recorded_origin(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert recorded_origin(path) == {}
