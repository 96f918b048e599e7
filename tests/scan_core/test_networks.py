"""Backbones and heads: shapes, counts, float32 heads whatever the precision, freezing, compilation."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scan_core.device import Compute
from scan_core.networks import ClusterHeads, ConvNet, Model, Projector, build_backbone, feature_size
from tests.scan_core.tiny import BACKBONE, CPU, backbone_settings, cluster_model

RESNET18 = backbone_settings(name="resnet18", width=64)


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


def test_resnet18_has_the_published_parameters():
    """11,168,832 without a head, the number of the small-image stem, for colour images; D is 512."""
    backbone = build_backbone(RESNET18, 3)
    assert parameters(backbone) == 11_168_832
    assert feature_size(backbone) == 512
    assert parameters(build_backbone(RESNET18, 1)) == 11_168_832 - 2 * 64 * 9


def test_resnet18_has_the_small_image_stem():
    """No halving before the first stage: it sees every pixel of the image."""
    sizes = []
    backbone = build_backbone(RESNET18, 3).eval()
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        stage.register_forward_hook(lambda module, given, output: sizes.append(output.shape[2]))
    with torch.no_grad():
        backbone(inputs(1, 3, 16))
    assert sizes == [16, 8, 4, 2]


def test_convnet_has_six_convolutions_of_doubling_width():
    convnet = ConvNet(3, 4)
    assert [conv.out_channels for conv in convnet.convs] == [4, 4, 8, 8, 16, 16]
    widths = [3, 4, 4, 8, 8, 16, 16]
    convolutions = sum(9 * before * after for before, after in itertools.pairwise(widths))
    assert parameters(convnet) == convolutions + 2 * sum(widths[1:])


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


@pytest.mark.parametrize("settings", [BACKBONE, RESNET18], ids=lambda each: each.name)
def test_backbones_are_channels_last(settings):
    convolutions = [module for module in build_backbone(settings, 3).modules() if isinstance(module, nn.Conv2d)]
    assert all(each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions)


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


def test_one_head_taken_out_is_that_head():
    heads, features = ClusterHeads(6, clusters=3, heads=4), torch.randn(5, 6)
    for head in range(4):
        single = heads.only(head)
        assert (single.heads, single.clusters) == (1, 3)
        torch.testing.assert_close(single(features)[0], heads(features)[head])


def test_a_head_taken_out_is_a_copy():
    heads = ClusterHeads(6, clusters=3, heads=2)
    before = heads.linear.weight.detach().clone()
    nn.init.zeros_(heads.only(1).linear.weight)
    assert torch.equal(heads.linear.weight, before)
    assert heads.only(1).linear.weight.requires_grad


def test_a_heads_gradient_does_not_reach_the_others():
    heads = ClusterHeads(6, clusters=3, heads=4)
    heads(torch.randn(5, 6))[2].square().sum().backward()
    reached = heads.linear.weight.grad.view(4, 3, 6).abs().sum(dim=(1, 2)) > 0
    assert reached.tolist() == [False, False, True, False]


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


def test_without_autocast_everything_is_float32():
    model = cluster_model()
    model.backbone.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    seen = []
    model(inputs())
    assert seen == [torch.float32]


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
    assert images.grad is None
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert model.head.linear.weight.grad is not None
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())


def test_a_backbone_that_trains_does():
    model = Model(build_backbone(BACKBONE, 3), ClusterHeads(16, 3, 1)).train()
    assert all(module.training for module in model.modules())
    before = model.backbone.norms[0].running_mean.clone()
    model(inputs())[1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model.backbone.norms[0].running_mean, before)


def test_a_backbone_can_be_frozen_and_then_trained_again():
    backbone = build_backbone(BACKBONE, 3)
    Model(backbone, ClusterHeads(16, 3, 1), frozen=True)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    Model(backbone, ClusterHeads(16, 3, 1))
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_inference_without_gradients_has_none():
    model = cluster_model()
    with torch.no_grad():
        features, logits = model(inputs())
    assert not features.requires_grad
    assert not logits.requires_grad


# --- Compilation


@pytest.mark.parametrize("head", ["projector", "cluster"])
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "head"])
def test_the_convnet_step_compiles_whole_and_computes_the_same(head, frozen):
    made = Projector(16, 8) if head == "projector" else ClusterHeads(16, 3, 2)
    assert_compiled_is_eager(Model(build_backbone(BACKBONE, 3), made, frozen))


def test_the_resnet18_step_compiles_whole_and_computes_the_same():
    assert_compiled_is_eager(Model(build_backbone(RESNET18, 3), ClusterHeads(512, 3, 2)))


def assert_compiled_is_eager(model):
    """Outputs, gradients and BatchNorm buffers, in train mode. Without a single break of the graph."""
    torch.compiler.reset()
    model.train()
    twin, images = copy.deepcopy(model), inputs()
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
