"""Backbones without their classifier, and the heads on top. Heads compute in float32, whatever the backbone does."""

import difflib
import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scan_core.errors import ScanError
from scan_core.models.settings import Backbone

PUBLISHED_WIDTH = 64  # channels of a ResNet's first stage, as published and in torchvision


class ConvNet(nn.Module):
    """Six 3x3 convolutions in three stages of ``width``, 2 and 4 times ``width`` channels: for small images.

    Each stage but the last ends in a 2x2 max-pool; global average pooling gives D = 4 * width. With ``patches`` the
    first convolution maps 2x2 patches to ``width`` channels; two with 2 and three with 4 times ``width`` follow. That
    costs the same, with more of the work where the image is still large.
    """

    def __init__(self, channels: int, width: int, patches: bool = False) -> None:
        super().__init__()
        factors, self.pooled_layers = ((1, 2, 2, 4, 4, 4), (2, 4)) if patches else ((1, 1, 2, 2, 4, 4), (1, 3))
        widths = [channels, *(factor * width for factor in factors)]
        self.feature_size = widths[-1]
        convs = [nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in itertools.pairwise(widths)]
        if patches:
            convs[0] = nn.Conv2d(channels, width, 2, stride=2, bias=False)
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in widths[1:])
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B,channels,height,width) to (B,D)."""
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            images = F.relu(norm(conv(images)), inplace=True)
            if layer in self.pooled_layers:
                images = F.max_pool2d(images, 2)  # halves height and width
        return images.mean(dim=(2, 3))


def _resnet(settings: Backbone, channels: int) -> nn.Module:
    """torchvision's ResNet with one of three stems. D is 8 times the width, or 32 times for ResNet-50.

    ``small`` is one 3x3 convolution with stride 1 and no max-pool, ``stl`` the same and the max-pool, ``imagenet`` the
    original 7x7 convolution with stride 2 and the max-pool.
    """
    from torchvision.models import resnet18, resnet34, resnet50

    resnet = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}[settings.name]()
    resnet.feature_size = resnet.fc.in_features * settings.width // PUBLISHED_WIDTH
    resnet.fc = nn.Identity()
    if settings.width != PUBLISHED_WIDTH:
        _scale_channels(resnet, settings.width)
    if settings.stem != "imagenet":
        resnet.conv1 = nn.Conv2d(channels, settings.width, 3, padding=1, bias=False)
    elif channels != 3 or settings.width != PUBLISHED_WIDTH:
        resnet.conv1 = nn.Conv2d(channels, settings.width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    if settings.stem == "small":
        resnet.maxpool = nn.Identity()
    return cast(nn.Module, resnet)


def _scale_channels(resnet: nn.Module, width: int) -> None:
    """Replaces convolutions and BatchNorms by ones with ``width`` / 64 as many channels, initialized as torchvision's.

    The first convolution depends on the stem, too: ``_resnet`` replaces it.
    """
    for parent in list(resnet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child is not resnet.conv1:
                before, after = (count * width // PUBLISHED_WIDTH for count in (child.in_channels, child.out_channels))
                size, stride = child.kernel_size[0], child.stride[0]  # all of a ResNet are square
                conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                setattr(parent, name, conv)
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(child.num_features * width // PUBLISHED_WIDTH))


def _timm(settings: Backbone, channels: int) -> nn.Module:
    """Any network of timm by its name, without classifier. Transformers take any size that their patches divide.

    Raises ``ScanError`` if timm has no network of that name, or the network gives no features (B,D).
    """
    import timm

    name = settings.model or ""
    # create_model would take a name such as hf-hub:owner/name for an address and download from it.
    if not timm.is_model(name):
        raise ScanError(f"backbone.model is {name}; timm {timm.__version__} has no such network{_similar_names(name)}")
    options = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    try:
        try:
            model, any_size = timm.create_model(name, **options, dynamic_img_size=True), True
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model, any_size = timm.create_model(name, **options), False
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # an unknown tag, or unsupported channels
        what = " ".join(str(error).split())
        raise ScanError(
            f"backbone.model is {name}; timm cannot make it for {channels} channels ({what}){_similar_names(name)}"
        ) from None
    patches = getattr(model, "patch_embed", None) if any_size else None
    if patches is not None:
        model.register_forward_pre_hook(_check_patches)
    # D is measured: num_features is another number if layers follow the pooling, as in MobileNetV3.
    config = model.pretrained_cfg
    side = config["input_size"][-1] if config.get("fixed_input_size") else 96
    side = 2 * max(patches.patch_size) if patches is not None else side
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, channels, side, side))
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ScanError(f"backbone.model is {name}, whose output is {shape}; it must be features, (images, features)")
    model.feature_size = output.shape[1]
    return cast(nn.Module, model.train())


def _similar_names(name: str) -> str:
    """What to do about a ``name`` that timm does not have, as the end of an error."""
    import timm

    names = timm.list_models(pretrained=True) if "." in name else timm.list_models()
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists them"


def _check_patches(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A forward pre-hook. Raises ``ScanError`` if the patches do not divide the images."""
    height, width = inputs[0].shape[2:]
    rows, columns = cast(Any, module.patch_embed).patch_size
    if height % rows or width % columns:
        raise ScanError(
            f"images are {height}x{width} and the backbone's patches {rows}x{columns}; set data.view, or "
            f"augmentation.crop_size, to a multiple of {rows}, such as {max(height // rows, 1) * rows}"
        )


def architecture(settings: Backbone) -> str:
    """The network that weights are made for, in words, without timm's tag, which names weights."""
    if settings.name == "timm":
        return f"timm {(settings.model or '').partition('.')[0]}"
    published = settings.name != "convnet" and settings.width == PUBLISHED_WIDTH
    name = settings.name if published else f"{settings.name} {settings.width}"
    return f"{name} with stem {settings.stem}"


def build_backbone(settings: Backbone, channels: int) -> nn.Module:
    """The network of ``settings``, (B,channels,height,width) to (B,D), with new weights.

    ``files.load_backbone`` loads those of ``settings.weights``. Raises ``ScanError`` if timm cannot make the network.
    """
    backbone: Any
    if settings.name == "convnet":
        backbone = ConvNet(channels, settings.width, settings.stem == "patch")
    else:
        backbone = (_timm if settings.name == "timm" else _resnet)(settings, channels)
    backbone.architecture = architecture(settings)
    return cast(nn.Module, backbone.to(memory_format=torch.channels_last))


def feature_size(backbone: nn.Module) -> int:
    """D of a network made by ``build_backbone``."""
    return cast(int, backbone.feature_size)


class Projector(nn.Module):
    """The pretext task's head: Linear-ReLU-Linear, optionally with BatchNorm before the ReLU, or one Linear.

    ``hidden`` None is the features' width (SimCLR, MoCo v2); 0 is one Linear (instance discrimination, rotation).
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
        """A copy with only the head ``head``."""
        single = ClusterHeads(self.linear.in_features, self.clusters, 1).to(self.linear.weight.device)
        rows = slice(head * self.clusters, (head + 1) * self.clusters)
        with torch.no_grad():
            single.linear.weight.copy_(self.linear.weight[rows])
            single.linear.bias.copy_(self.linear.bias[rows])
        return single


class Model(nn.Module):
    """A backbone, which may run in bfloat16, and a head, which runs in float32.

    A ``frozen`` backbone stays in eval mode and gets no gradient.
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
