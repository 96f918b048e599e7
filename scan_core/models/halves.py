"""A published network in two parts: layers that stay as they are, and those above them, which learn."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from scan_core.errors import ScanError

PARTS = ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool")  # of an EfficientNet, in timm's names


class LowerLayers(nn.Module):
    """The layers of an EfficientNet that stay as they are: (B,3,side,side) to (B,width,height,width)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = check_network(network)

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        return cast(Tensor, network.blocks[:-1](network.bn1(network.conv_stem(images))))


class UpperLayers(nn.Module):
    """The layers that learn, which are those of ``network``: what ``LowerLayers`` gives to features (B,D).

    BatchNorm's statistics stay those of the images that the weights were trained on.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        whole = check_network(network)
        self.block, self.conv, self.norm, self.pool = whole.blocks[-1], whole.conv_head, whole.bn2, whole.global_pool

    def train(self, mode: bool = True) -> "UpperLayers":
        return super().train(False)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.pool(self.norm(self.conv(self.block(maps)))))


def check_network(network: nn.Module) -> Any:
    """``network``, if it is built as an EfficientNet. Raises ``ScanError``."""
    if not all(hasattr(network, name) for name in PARTS):
        raise ScanError(
            f"pretext.weights are of {type(network).__name__}, which pretext.method adapted does not take; an "
            "EfficientNet such as efficientnet_lite0 is allowed, or pretext.method frozen"
        )
    return network
