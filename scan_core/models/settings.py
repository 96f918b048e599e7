"""Settings of the feature network: the group ``backbone``."""

from typing import Literal

from pydantic import model_validator

from scan_core.settings import Count, Settings


class Backbone(Settings):
    """The feature network."""

    name: Literal["convnet", "resnet18", "resnet34", "resnet50", "timm"]
    width: Count  # channels of the first stage; the published ResNets have 64; timm's networks ignore it
    # The first convolution. small: 3x3; patch (convnet): 2x2 with stride 2; stl (ResNets): 3x3 and max-pool;
    # imagenet (ResNets): 7x7 with stride 2 and max-pool
    stem: Literal["small", "patch", "stl", "imagenet"]
    model: str | None  # timm's name of the network
    weights: str | None  # a .safetensors file that ``scan weights import`` wrote; relative to the project

    @model_validator(mode="after")
    def _consistent(self) -> "Backbone":
        stems = {"convnet": ("small", "patch"), "timm": ("small", "patch", "stl", "imagenet")}
        allowed = stems.get(self.name, ("small", "stl", "imagenet"))
        if self.stem not in allowed:
            raise ValueError(f"stem is {self.stem}; {self.name} has {', '.join(allowed)}")
        if self.name == "timm" and not self.model:
            given = "null" if self.model is None else '""'
            raise ValueError(f"model is {given}; backbone.name timm needs timm's name of a network")
        return self
