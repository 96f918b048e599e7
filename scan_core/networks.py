"""Backbones without their classifier, and the heads on top. Heads compute in float32 whatever the backbone does."""

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.settings import Backbone


class ConvNet(nn.Module):
    """Six 3x3 convolutions in three stages of ``width``, 2 and 4 times ``width`` channels: for tiny images.

    Each stage but the last ends in a 2x2 max-pool; global average pooling gives D = 4 * width.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        convs = [nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in itertools.pairwise(widths)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in widths[1:])
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B,channels,height,width) to (B,D)."""
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            images = F.relu(norm(conv(images)), inplace=True)
            if number in (1, 3):
                images = F.max_pool2d(images, 2)  # halves height and width
        return images.mean(dim=(2, 3))


def _resnet18(channels: int, width: int) -> nn.Module:
    """ResNet-18 with the small-image stem: one 3x3 stride-1 convolution of ``width`` = 64, no max-pool. D = 512."""
    from torchvision.models import resnet18

    resnet = resnet18()
    resnet.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool, resnet.fc = nn.Identity(), nn.Identity()
    return cast(nn.Module, resnet)


def feature_size(settings: Backbone) -> int:
    """D of the network ``settings`` names."""
    return {"convnet": 4, "resnet18": 8}[settings.name] * settings.width


def build_backbone(settings: Backbone, channels: int) -> nn.Module:
    """The network ``settings`` names, for images of ``channels`` channels: (B,channels,height,width) to (B,D)."""
    backbone = {"convnet": ConvNet, "resnet18": _resnet18}[settings.name](channels, settings.width)
    return backbone.to(memory_format=torch.channels_last)


class Projector(nn.Module):
    """SimCLR's head: Linear(D,D)-ReLU-Linear(D,projection)."""

    def __init__(self, features: int, projection: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, projection)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) to (B,projection)."""
        return cast(Tensor, self.layers(features))


class ClusterHeads(nn.Module):
    """H independent linear heads as one matrix product."""

    def __init__(self, features: int, clusters: int, heads: int) -> None:
        super().__init__()
        self.clusters, self.heads = clusters, heads
        self.linear = nn.Linear(features, heads * clusters)

    def forward(self, features: Tensor) -> Tensor:
        """(B,D) to logits (H,B,C)."""
        logits = cast(Tensor, self.linear(features))  # (B,H*C)
        return logits.view(-1, self.heads, self.clusters).transpose(0, 1)

    def only(self, head: int) -> "ClusterHeads":
        """A copy with that one head."""
        single = ClusterHeads(self.linear.in_features, self.clusters, 1).to(self.linear.weight.device)
        rows = slice(head * self.clusters, (head + 1) * self.clusters)
        with torch.no_grad():
            single.linear.weight.copy_(self.linear.weight[rows])
            single.linear.bias.copy_(self.linear.bias[rows])
        return single


class Model(nn.Module):
    """A backbone and one head. The backbone may run in bfloat16; the head always runs in float32.

    ``frozen`` keeps the backbone in eval mode and out of the backward pass.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.frozen = backbone, head, frozen
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,channels,height,width) to features (B,D) and the head's output, both float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return features, self.head(features)
