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


SOURCES_WITH_PATH = ("folder", "archive", "parquet", "npy")
ARRAY_UP_TO = 128  # pixels; beyond, ``store: auto`` packs JPEGs, for an array would not fit


class Data(Settings):
    """Which images, at which size, split how. Belongs to ``prepare`` alone.

    A setting that a source has no use for is left alone, so that another source is one setting away.
    """

    name: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_20", "stl10", "imagenet",
        "folder", "archive", "parquet", "npy",
    ]  # fmt: skip
    path: str | None  # of folder, archive, parquet and npy; a relative one starts at the project
    labels: str  # folders: the source's own; none; or a .csv file with columns source,label. For evaluate alone
    subset: Literal[50, 100, 200] | None  # classes of imagenet that are clustered, the paper's
    extra: Literal["pretext", "train", "none"]  # what images beyond those are for: stl10's unlabelled, imagenet's rest
    size: Annotated[int, Field(ge=8, le=1024)]  # pixels; stored as size x size, or with that short side (jpeg)
    view: Annotated[int, Field(ge=8, le=1024)] | None  # pixels the network sees, cut from those; null: size
    fit: Literal["crop", "pad", "stretch"]  # how a rectangle becomes a square
    store: Literal["auto", "array", "jpeg"]
    shard_rows: Annotated[int, Field(ge=1)]  # images in one file of the store
    duplicates: Literal["keep", "drop"]
    protocol: Literal["split", "all"]  # split: report on val; all: train on, and report on, every image
    val_fraction: Annotated[float, Field(gt=0, lt=1)]  # where the source has no split of its own
    split_seed: Annotated[int, Field(ge=0)]
    max_rejected: Probability  # share of the files that may be unreadable
    max_pixels: Count  # an image with more is rejected before it is decoded
    max_unpacked: Positive  # GiB in an archive

    @property
    def stored(self) -> Literal["array", "jpeg"]:
        """``store``, with ``auto`` resolved."""
        if self.store == "auto":
            return "array" if self.size <= ARRAY_UP_TO else "jpeg"
        return self.store

    @property
    def side(self) -> int:
        """Pixels a side that the network sees."""
        return self.view or self.size

    @model_validator(mode="after")
    def _consistent(self) -> "Data":
        if self.name in SOURCES_WITH_PATH and not self.path:
            raise ValueError(f"path is null; data.name {self.name} needs the path of what is to be read")
        if self.labels not in ("folders", "none") and not self.labels.endswith(".csv"):
            raise ValueError(f'labels is "{self.labels}"; folders, none or the path of a .csv file is allowed')
        if self.side > self.size:
            raise ValueError(f"view is {self.view}; at most data.size, {self.size}, is allowed")
        if self.stored == "jpeg" and self.fit != "crop":
            raise ValueError(f"fit is {self.fit}; the jpeg store keeps each image's shape and allows crop alone")
        return self


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
