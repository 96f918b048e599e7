"""Typed settings of every step. Values live in ``params.yaml``; nothing here has a default that changes a result."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Frozen and strict: an unknown key, a wrong type or a value out of range is an error at the start of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Settings):
    """Which images, at which size, split how. Belongs to ``prepare`` alone."""

    name: Literal["digits"]
    size: Annotated[int, Field(ge=8, le=128)]  # pixels; images are stored as size x size
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Annotated[int, Field(ge=0)]


class Backbone(Settings):
    """The feature network. ``width`` is the number of channels of its first stage."""

    name: Literal["convnet", "resnet18"]
    width: Count

    @model_validator(mode="after")
    def _published_width(self) -> "Backbone":
        if self.name == "resnet18" and self.width != 64:
            raise ValueError(f"width is {self.width}; resnet18 has 64")
        return self


class SimclrAugmentation(Settings):
    """SimCLR's views, in the order they are applied: crop (with rotation and shear), flip, colour jitter, grayscale."""

    kind: Literal["simclr"]
    crop_scale: tuple[Positive, Positive]  # share of the area
    crop_ratio: tuple[Positive, Positive]  # width / height
    rotate: NonNegative  # degrees, drawn from ± this
    shear: NonNegative  # degrees, drawn from ± this
    flip: Probability
    jitter: Probability  # that colours are jittered at all
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    grayscale: Probability

    @model_validator(mode="after")
    def _ordered(self) -> "SimclrAugmentation":
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]; the first may not exceed the second")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale ends at {self.crop_scale[1]}; at most 1, the whole image, is allowed")
        return self


class StrongAugmentation(Settings):
    """The paper's strong views: flip, ``operations`` drawn of 14, one cutout square."""

    kind: Literal["strong"]
    flip: Probability
    operations: Annotated[int, Field(ge=0, le=14)]
    cutout: Annotated[int, Field(ge=0)]  # side in pixels, 0 for none


Augmentation = Annotated[SimclrAugmentation | StrongAugmentation, Field(discriminator="kind")]


class Optimizer(Settings):
    """SGD with momentum or Adam, both with L2 weight decay; the rate is a function of the step (``schedule``)."""

    name: Literal["sgd", "adam"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Annotated[float, Field(ge=0, lt=1)]  # Adam's first beta
    schedule: Literal["constant", "cosine"]
    warmup_epochs: Annotated[int, Field(ge=0)]  # linear, from 0
    final_lr: NonNegative  # where cosine ends


class Pretext(Settings):
    """Self-supervised features (SimCLR)."""

    method: Literal["simclr"]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    temperature: Positive
    projection: Count  # dimensions after the projector
    optimizer: Optimizer
    augmentation: Augmentation


class Embed(Settings):
    """Which features are mined: before (``backbone``) or after (``projector``) the projector."""

    features: Literal["backbone", "projector"]


class Neighbors(Settings):
    """How many neighbours are mined; ``cluster.neighbors`` says how many of them are used."""

    k: Count


class Cluster(Settings):
    """The SCAN loss (paper, eq. 2)."""

    num_clusters: Annotated[int, Field(ge=2)]
    heads: Count
    neighbors: Annotated[int, Field(ge=0)]  # 0: another view of the same image
    val_neighbors: Count
    entropy_weight: NonNegative
    train: Literal["all", "head"]  # head: the backbone is frozen, in eval mode
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    augmentation: Augmentation


class Selflabel(Settings):
    """Self-labelling on confident samples (paper, section 2.3), until their number stops growing."""

    threshold: Annotated[float, Field(gt=0, lt=1)]
    class_weights: bool
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    augmentation: Augmentation


class Evaluate(Settings):
    """What the report compares with."""

    kmeans_runs: Annotated[int, Field(ge=2)]
