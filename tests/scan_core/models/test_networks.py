"""Backbones and heads: shapes, counts, float32 heads whatever the precision, freezing, compilation."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scan_core.compute.device import Compute
from scan_core.models.networks import (
    ClusterHeads,
    ConvNet,
    Model,
    Projector,
    architecture,
    build_backbone,
    feature_size,
)
from tests.tiny import BACKBONE, CPU, assert_equal, backbone_settings, refused

RESNET18 = backbone_settings(name="resnet18", width=64)


def timm_settings(model):
    return backbone_settings(name="timm", width=64, model=model)


VIT, TIMM_RESNET = timm_settings("test_vit"), timm_settings("test_resnet")


def inputs(batch=4, channels=3, size=8, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# --- Backbones


@pytest.mark.parametrize("settings", [BACKBONE, RESNET18], ids=lambda each: each.name)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 11])
def test_features_have_the_size_that_is_announced(settings, channels, size):
    backbone = build_backbone(settings, channels).eval()
    with torch.no_grad():
        features = backbone(inputs(2, channels, size))
    assert features.shape == (2, feature_size(backbone))


@pytest.mark.parametrize(
    ("name", "parts", "features"),
    [("resnet18", 11_176_512, 512), ("resnet34", 21_284_672, 512), ("resnet50", 23_508_032, 2048)],
)
def test_resnets_have_the_published_parameters(name, parts, features):
    """torchvision's without the last layer (513,000, or 2,049,000); a 3x3 stem has 9 for 49 weights of each kernel.

    ResNet-18 with the small stem has the 11,168,832 that the paper's settings state.
    """
    small = parts - (49 - 9) * 3 * 64
    assert name != "resnet18" or small == 11_168_832
    for stem, number in {"imagenet": parts, "small": small, "stl": small}.items():
        with torch.device("meta"):
            backbone = build_backbone(backbone_settings(name=name, width=64, stem=stem), 3)
            gray = build_backbone(backbone_settings(name=name, width=64, stem=stem), 1)
        assert parameters(backbone) == number
        assert parameters(gray) == number - 2 * 64 * (49 if stem == "imagenet" else 9)
        assert feature_size(backbone) == features


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_of_width_64_starts_as_torchvision_s_to_the_bit(name):
    from torchvision import models

    torch.manual_seed(3)
    reference = getattr(models, name)()
    nn.init.kaiming_normal_(reference.conv1.weight, mode="fan_out", nonlinearity="relu")
    reference.fc = nn.Identity()
    torch.manual_seed(3)
    state = build_backbone(backbone_settings(name=name, width=64, stem="imagenet"), 3).state_dict()
    assert list(state) == list(reference.state_dict())
    assert all(torch.equal(state[key], value) for key, value in reference.state_dict().items())


@pytest.mark.parametrize(
    ("name", "stem", "width"),
    [
        ("resnet18", "small", 1),
        ("resnet18", "imagenet", 96),
        ("resnet34", "stl", 24),
        pytest.param("resnet50", "imagenet", 24, marks=pytest.mark.slow),
    ],
)
def test_a_resnet_may_have_any_width(name, stem, width):
    backbone = build_backbone(backbone_settings(name=name, width=width, stem=stem), 3).eval()
    with torch.device("meta"):
        published = build_backbone(backbone_settings(name=name, width=64, stem=stem), 3).state_dict()
    assert list(backbone.state_dict()) == list(published)
    for key, value in backbone.state_dict().items():
        wanted = [count if count == 3 else count * width / 64 for count in published[key].shape[:2]]
        assert list(value.shape) == [*wanted, *published[key].shape[2:]], key
        if value.dim() == 4 and value.numel() > 5000:  # kaiming_normal_ by fan_out, as torchvision's
            assert value.std().item() == pytest.approx((2 / (len(value) * value[0, 0].numel())) ** 0.5, rel=0.1), key
    with torch.no_grad():
        assert backbone(inputs(2, 3, 64)).shape == (2, feature_size(backbone))


@pytest.mark.parametrize(
    ("stem", "sides"), [("small", [64, 32, 16, 8]), ("stl", [32, 16, 8, 4]), ("imagenet", [16, 8, 4, 2])]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stem_decides_what_the_first_stage_sees(stem, sides, channels):
    """At 64 pixels: ``small`` halves nothing before the first stage, ``stl`` once, ``imagenet`` twice."""
    found = []
    backbone = build_backbone(backbone_settings(name="resnet18", width=64, stem=stem), channels).eval()
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        stage.register_forward_hook(lambda module, given, output: found.append(output.shape[2]))
    with torch.no_grad():
        assert backbone(inputs(1, channels, 64)).shape == (1, 512)
    assert found == sides


@pytest.mark.parametrize(
    ("stem", "widths", "sizes", "first"),
    [("small", [4, 4, 8, 8, 16, 16], [16, 16, 8, 8, 4, 4], 9), ("patch", [4, 8, 8, 16, 16, 16], [8, 8, 8, 4, 4, 2], 4)],
)
def test_convnet_has_six_convolutions(stem, widths, sizes, first):
    found, convnet = [], build_backbone(backbone_settings(stem=stem), 3).eval()
    for conv in convnet.convs:
        conv.register_forward_hook(lambda module, given, output: found.append((output.shape[1], output.shape[2])))
    with torch.no_grad():
        assert convnet(inputs(2, 3, 16)).shape == (2, 16)
    assert found == list(zip(widths, sizes, strict=True))
    convolutions = first * 3 * 4 + sum(9 * before * after for before, after in itertools.pairwise(widths))
    assert parameters(convnet) == convolutions + 2 * sum(widths)


def test_convnet_is_its_layers_one_after_the_other():
    convnet = ConvNet(3, 4).eval()
    for norm in convnet.norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    images = inputs()
    features = images
    for conv, norm, pool in zip(convnet.convs, convnet.norms, [False, True, False, True, False, False], strict=True):
        features = F.conv2d(features, conv.weight, padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        features = (features - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        features = (features + norm.bias.view(1, -1, 1, 1)).clamp(min=0)
        features = F.max_pool2d(features, 2) if pool else features
    torch.testing.assert_close(convnet(images), features.mean(dim=(2, 3)))


@pytest.mark.parametrize("settings", [BACKBONE, RESNET18, TIMM_RESNET, VIT], ids=lambda each: each.model or each.name)
def test_backbones_are_channels_last(settings):
    convolutions = [module for module in build_backbone(settings, 3).modules() if isinstance(module, nn.Conv2d)]
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions)


# --- timm's networks


@pytest.mark.parametrize(
    ("model", "features"),
    [
        ("test_vit", 64),
        ("test_vit3", 96),  # pools by attention
        ("test_resnet", 96),
        ("test_convnext", 64),
        ("test_efficientnet", 256),
        ("mobilenetv3_small_050", 1024),  # whose num_features are 288: a layer follows the pooling
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_timm_are_measured_and_the_same_each_time(model, features, channels):
    backbone = build_backbone(timm_settings(model), channels)
    assert all(module.training for module in backbone.modules()), "as any new network"
    backbone.eval()
    assert feature_size(backbone) == features
    images = inputs(2, channels, 32)
    with torch.no_grad():
        first = backbone(images)
        assert first.shape == (2, features)
        assert torch.equal(first, backbone(images))
        plain = copy.deepcopy(backbone).to(memory_format=torch.contiguous_format)
        torch.testing.assert_close(plain(images), first, rtol=1e-4, atol=1e-5)


def test_a_transformer_takes_any_size_that_its_patches_divide():
    backbone = build_backbone(VIT, 3).eval()  # made for 160 pixels, in patches of 16
    for side in (16, 32, 160):
        assert backbone(inputs(1, 3, side)).shape == (1, 64)
    refused(lambda: backbone(inputs(1, 3, 40)), "images are 40x40", "patches 16x16", "data.view", "as 32")
    refused(lambda: backbone(inputs(1, 3, 8)), "as 16")
    refused(lambda: copy.deepcopy(backbone)(inputs(1, 3, 40)), "images are 40x40")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50d0", "did you mean resnet50d"),
        ("vit_small_patch16_224.dinno", "did you mean vit_small_patch16_224.dino"),
        ("zzzzzzzz", "timm.list_models() lists them"),
    ],
)
def test_a_name_that_timm_does_not_have(name, said):
    refused(lambda: build_backbone(timm_settings(name), 3), f"backbone.model is {name}", said)


@pytest.mark.parametrize("name", ["hf-hub:timm/test_vit.r160_in1k", "hf_hub:a/b", "timm/test_vit", "local-dir:/tmp"])
def test_a_name_is_never_an_address(monkeypatch, name):
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("it would be fetched"))
    refused(lambda: build_backbone(timm_settings(name), 3), f"backbone.model is {name}")


def test_a_network_that_gives_no_features_is_refused(monkeypatch):
    import timm

    class Maps(nn.Identity):
        pretrained_cfg = {"input_size": (3, 8, 8), "fixed_input_size": True}  # noqa: RUF012 (as timm has it)

    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: Maps())
    refused(lambda: build_backbone(VIT, 3), "backbone.model is test_vit", "(1, 3, 8, 8)")


def test_architecture_is_what_weights_are_made_for():
    assert architecture(BACKBONE) == "convnet 4 with stem small"
    assert architecture(backbone_settings(name="resnet18", width=64, stem="stl")) == "resnet18 with stem stl"
    assert architecture(backbone_settings(name="resnet18", width=32, stem="stl")) == "resnet18 32 with stem stl"
    assert architecture(timm_settings("vit_small_patch16_224.dino")) == "timm vit_small_patch16_224"


# --- Heads


def test_projector_is_linear_relu_linear():
    projector, features = Projector(6, 4), torch.randn(5, 6)
    first, last = projector.layers[0], projector.layers[2]
    assert first.weight.shape == (6, 6)
    wanted = (features @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(projector(features), wanted)
    assert wanted.shape == (5, 4)


def test_cluster_heads_are_independent_linear_heads():
    heads, features = ClusterHeads(6, clusters=3, heads=4), torch.randn(5, 6)
    logits = heads(features)
    assert logits.shape == (4, 5, 3)
    for head in range(4):
        weight, bias = heads.linear.weight.view(4, 3, 6)[head], heads.linear.bias.view(4, 3)[head]
        torch.testing.assert_close(logits[head], features @ weight.T + bias)
    logits[2].square().sum().backward()
    reached = heads.linear.weight.grad.view(4, 3, 6).abs().sum(dim=(1, 2)) > 0
    assert reached.tolist() == [False, False, True, False]


def test_one_head_taken_out_is_a_copy_of_that_head():
    heads, features = ClusterHeads(6, clusters=3, heads=4), torch.randn(5, 6)
    before = heads.linear.weight.detach().clone()
    for head in range(4):
        single = heads.only(head)
        assert (single.heads, single.clusters) == (1, 3)
        assert single.linear.weight.requires_grad
        torch.testing.assert_close(single(features)[0], heads(features)[head])
        nn.init.zeros_(single.linear.weight)
    assert torch.equal(heads.linear.weight, before)


# --- Precision


@pytest.mark.parametrize("head", [Projector(16, 8), ClusterHeads(16, 3, 2)], ids=["projector", "cluster"])
@pytest.mark.parametrize("frozen", [False, True])
def test_heads_compute_in_float32_under_bf16(bf16, head, frozen):
    """The backbone does run in bfloat16; the head's output is what float32 gives on the same features."""
    model = Model(build_backbone(BACKBONE, 3), head, frozen)
    seen = []
    model.backbone.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    for context in (bf16.autocast(), Compute(CPU, "bf16").autocast()):
        with context:
            features, outputs = model(inputs())
        assert features.dtype == outputs.dtype == torch.float32
        assert torch.equal(outputs, head(features))
        # The same features in bfloat16 would give another output.
        assert not torch.equal(outputs, copy.deepcopy(head).bfloat16()(features.bfloat16()).float())
    assert seen == [torch.bfloat16, torch.bfloat16]
    features, _ = model(inputs())
    assert seen[2:] == [features.dtype] == [torch.float32], "without autocast"


# --- Freezing


def test_a_frozen_backbone_gets_no_gradient_and_stays_in_eval_mode():
    model = Model(build_backbone(BACKBONE, 3), ClusterHeads(16, 3, 1), frozen=True)
    before = copy.deepcopy(model.backbone.state_dict())
    for mode in (True, False, True):
        model.train(mode)
        assert not any(module.training for module in model.backbone.modules())
        assert model.head.training is mode
    images = inputs().requires_grad_()
    features, logits = model(images)
    assert not features.requires_grad
    logits.sum().backward()
    assert all(each.grad is None for each in (images, *model.backbone.parameters()))
    assert model.head.linear.weight.grad is not None
    assert_equal(model.backbone.state_dict(), before)


def test_a_backbone_that_was_frozen_can_train_again():
    backbone = build_backbone(BACKBONE, 3)
    Model(backbone, ClusterHeads(16, 3, 1), frozen=True)
    model = Model(backbone, ClusterHeads(16, 3, 1)).train()
    assert all(module.training for module in model.modules())
    before = backbone.norms[0].running_mean.clone()
    model(inputs())[1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(backbone.norms[0].running_mean, before)


# --- Compilation


@pytest.mark.parametrize(
    ("settings", "head", "frozen"),
    [
        *((BACKBONE, head, frozen) for head in ("projector", "cluster") for frozen in (False, True)),
        (RESNET18, "cluster", False), (VIT, "cluster", False),
    ],
    ids=lambda each: str(getattr(each, "model", None) or getattr(each, "name", each)),
)  # fmt: skip
@pytest.mark.slow
def test_every_backbones_step_compiles_whole_and_computes_the_same(settings, head, frozen):
    backbone = build_backbone(settings, 3)
    features = feature_size(backbone)
    made = Projector(features, 8) if head == "projector" else ClusterHeads(features, 3, 2)
    assert_compiled_is_eager(Model(backbone, made, frozen), 32 if settings is VIT else 8)


def assert_compiled_is_eager(model, size=8):
    """Outputs, gradients and BatchNorm buffers, in train mode. Without a single break of the graph."""
    torch.compiler.reset()
    model.train()
    twin, images = copy.deepcopy(model), inputs(size=size)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(compiled(images), model(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float32
    compiled(images)[1].square().mean().backward()
    model(images)[1].square().mean().backward()
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    for one, other in zip(twin.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
