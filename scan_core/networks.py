"""Backbones without their classifier, and the heads on top. Heads compute in float32 whatever the backbone does."""

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.errors import ScanError
from scan_core.settings import Backbone


class ConvNet(nn.Module):
    """Six 3x3 convolutions in three stages of ``width``, 2 and 4 times ``width`` channels: for tiny images.

    Each stage but the last ends in a 2x2 max-pool; global average pooling gives D = 4 * width.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.num_features = widths[-1]
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


def _resnet(settings: Backbone, channels: int) -> nn.Module:
    """torchvision's ResNet, of which D is 512, or 2048 for ResNet-50, with one of three stems.

    ``small`` is one 3x3 convolution with stride 1 and no max-pool, ``stl`` the same and the max-pool, ``imagenet`` the
    original 7x7 convolution with stride 2 and the max-pool.
    """
    from torchvision.models import resnet18, resnet34, resnet50

    resnet = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}[settings.name]()
    if settings.stem != "imagenet":
        resnet.conv1 = nn.Conv2d(channels, settings.width, 3, padding=1, bias=False)
    elif channels != 3:
        resnet.conv1 = nn.Conv2d(channels, settings.width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    if settings.stem == "small":
        resnet.maxpool = nn.Identity()
    resnet.num_features = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return cast(nn.Module, resnet)


def _timm(settings: Backbone, channels: int) -> nn.Module:
    """Any network of timm by its name, without classifier. Transformers take any size that their patches divide."""
    import timm

    assert settings.model is not None
    try:
        model = timm.create_model(settings.model, pretrained=False, num_classes=0, in_chans=channels)
        if hasattr(model, "patch_embed") and hasattr(model, "dynamic_img_size"):
            model = timm.create_model(
                settings.model, pretrained=False, num_classes=0, in_chans=channels, dynamic_img_size=True
            )
    except RuntimeError as error:  # what timm raises for a name it does not know
        raise ScanError(f"backbone.model is {settings.model}; timm has none of that name ({error})") from None
    return cast(nn.Module, model)


def build_backbone(settings: Backbone, channels: int) -> nn.Module:
    """The network ``settings`` names, for images of ``channels`` channels: (B,channels,height,width) to (B,D).

    Its weights are new; ``weights.load_backbone`` puts those of ``settings.weights`` in.
    """
    if settings.name == "convnet":
        backbone: nn.Module = ConvNet(channels, settings.width)
    else:
        backbone = (_timm if settings.name == "timm" else _resnet)(settings, channels)
    return backbone.to(memory_format=torch.channels_last)


def feature_size(backbone: nn.Module) -> int:
    """D of a network that ``build_backbone`` made."""
    return cast(int, backbone.num_features)


class Projector(nn.Module):
    """The pretext task's head: Linear-ReLU-Linear, with BatchNorm before the ReLU or not, or one Linear.

    ``hidden`` None is as wide as the features (SimCLR, MoCo v2); 0 is one Linear (instance discrimination, rotation).
    """

    def __init__(self, features: int, projection: int, hidden: int | None = None, norm: bool = False) -> None:
        super().__init__()
        self.projection, self.hidden, self.norm = projection, hidden, norm
        width = features if hidden is None else hidden
        layers: list[nn.Module] = []
        if width:
            layers = [nn.Linear(features, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(width or features, projection))

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
