"""Typed settings of every step. Values live in ``params.yaml``; nothing here has a default that changes a result."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scan_core.errors import ScanError

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
    val_fraction: Annotated[float, Field(gt=0, lt=1)]  # each image's probability of val, if the source has no split
    split_seed: Annotated[int, Field(ge=0, lt=2**64)]
    max_rejected: Probability  # share of the files that may be unreadable
    max_pixels: Count  # an image with more is rejected before it is decoded
    max_unpacked: Positive  # GiB in an archive
    mean: tuple[Probability, ...] | None  # of each channel in [0,1]; null: measured on train
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None

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

    name: Literal["convnet", "resnet18", "resnet34", "resnet50", "timm"]
    width: Count  # 64 but for convnet; of no use to timm
    # The first convolution. small: 3x3; patch (convnet): 2x2 with stride 2; stl (ResNets): 3x3 and max-pool;
    # imagenet (ResNets): 7x7 with stride 2 and max-pool
    stem: Literal["small", "patch", "stl", "imagenet"]
    model: str | None  # timm's name of it
    weights: str | None  # a .safetensors file that ``scan weights import`` wrote; a relative path starts at the project

    @model_validator(mode="after")
    def _consistent(self) -> "Backbone":
        if self.name.startswith("resnet") and self.width != 64:
            raise ValueError(f"width is {self.width}; {self.name} has 64")
        stems = {"convnet": ("small", "patch"), "timm": ("small", "patch", "stl", "imagenet")}
        allowed = stems.get(self.name, ("small", "stl", "imagenet"))
        if self.stem not in allowed:
            raise ValueError(f"stem is {self.stem}; {self.name} has {', '.join(allowed)}")
        if self.name == "timm" and not self.model:
            given = "null" if self.model is None else '""'
            raise ValueError(f"model is {given}; backbone.name timm needs timm's name of a network")
        return self


class SimclrAugmentation(Settings):
    """SimCLR's views, in the order applied: crop (with rotation and shear), flip, colour jitter, grayscale, blur."""

    kind: Literal["simclr"]
    crop_size: Annotated[int, Field(ge=8, le=1024)] | None  # pixels a side of a view; null: as many as a plain one has
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
    blur: Probability
    blur_sigma: tuple[Positive, Positive]  # pixels

    @model_validator(mode="after")
    def _ordered(self) -> "SimclrAugmentation":
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
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


class NoAugmentation(Settings):
    """The plain image. With a frozen backbone its features are then computed once."""

    kind: Literal["none"]


Augmentation = Annotated[SimclrAugmentation | StrongAugmentation, Field(discriminator="kind")]
AnyAugmentation = Annotated[SimclrAugmentation | StrongAugmentation | NoAugmentation, Field(discriminator="kind")]


class Optimizer(Settings):
    """SGD with momentum, LARS or Adam with L2 weight decay, Muon with decoupled; the rate follows ``schedule``."""

    name: Literal["sgd", "lars", "adam", "muon"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Annotated[float, Field(ge=0, lt=1)]  # Adam's first beta, Muon's momentum
    schedule: Literal["constant", "cosine"]
    warmup_epochs: Annotated[int, Field(ge=0)]  # linear, from 0
    final_lr: NonNegative  # where cosine ends


class Pretext(Settings):
    """Self-supervised features. A setting that a method has no use for is left alone, as in ``Data``."""

    method: Literal["simclr", "moco", "instance_discrimination", "rotation", "byol", "none"]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    temperature: Positive  # of simclr, moco, instance_discrimination
    projection: Count  # dimensions after the projector
    hidden: Count | None  # those inside it; null: as many as the features
    projector_norm: bool  # BatchNorm inside the projector; byol's always have it
    encoder_momentum: Annotated[float, Field(ge=0, lt=1)]  # of moco's and byol's slow encoder; byol's rises to 1
    queue: Count  # moco's negatives
    key_groups: Count  # parts of a shuffled batch in which moco's keys see BatchNorm, as if on so many devices
    negatives: Count  # drawn from instance_discrimination's memory bank for each image
    memory_momentum: Annotated[float, Field(ge=0, lt=1)]
    proximal: NonNegative  # instance_discrimination's weight of the distance to the bank's entry
    optimizer: Optimizer
    augmentation: Augmentation

    @property
    def trained_epochs(self) -> int:
        """``epochs``, of which ``none`` has none."""
        return 0 if self.method == "none" else self.epochs

    @model_validator(mode="after")
    def _groups(self) -> "Pretext":
        if self.method == "moco" and self.batch_size % self.key_groups:
            raise ValueError(f"key_groups is {self.key_groups}; a divisor of batch_size, {self.batch_size}, is allowed")
        if self.method == "moco" and self.batch_size < 2 * self.key_groups:
            raise ValueError(
                f"key_groups is {self.key_groups}; at most {self.batch_size // 2}, half of batch_size, is allowed"
            )
        return self


class Embed(Settings):
    """Which features are mined: before (``backbone``) or after (``projector``) the projector."""

    features: Literal["backbone", "projector"]


class Neighbors(Settings):
    """How many neighbours are mined; ``cluster.neighbors`` says how many of them are used."""

    k: Count
    smoothing: Annotated[int, Field(ge=0)]  # nearest ones with which each embedding is averaged first
    exact_rows: Count  # beyond so many images the search is approximate
    recall: Annotated[float, Field(gt=0, le=1)]  # of that search, measured on a sample


def check_neighbors(k: int, count: int, split: str = "") -> None:
    """Raises ``ScanError`` where each of ``count`` images, all there are or those of a ``split``, has less others."""
    if k >= count:
        has = f"{split}, in which they are mined, has" if split else "there are"
        raise ScanError(f"neighbors.k is {k}, but {has} {count} images; at most {count - 1} is allowed")


class Cluster(Settings):
    """The SCAN loss (paper, eq. 2)."""

    num_clusters: Annotated[int, Field(ge=2)]
    heads: Count
    neighbors: Annotated[int, Field(ge=0)]  # 0: another view of the same image
    val_neighbors: Count
    entropy_weight: NonNegative
    entropy_of: Literal["anchors", "both"]  # whose mean prediction the entropy is taken of; both: neighbours too
    prior: tuple[Positive, ...] | None  # known shares of the clusters, in any order; null: the entropy, for equal ones
    train: Literal["all", "head"]  # head: the backbone is frozen, in eval mode
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    augmentation: AnyAugmentation

    @model_validator(mode="after")
    def _prior_fits(self) -> "Cluster":
        if self.prior is None:
            return self
        if len(self.prior) != self.num_clusters:
            raise ValueError(
                f"prior has {len(self.prior)} values; one for each cluster, {self.num_clusters}, is allowed, or null"
            )
        if abs(sum(self.prior) - 1) > 1e-4:
            raise ValueError(f"prior has the sum {sum(self.prior):.6g}; 1 is allowed: divide each value by the sum")
        return self


class Selflabel(Settings):
    """Self-labelling on confident samples (paper, section 2.3), until their number stops growing."""

    threshold: Annotated[float, Field(gt=0, lt=1)]
    class_weights: bool
    ema: Annotated[float, Field(ge=0, lt=1)]  # decay of the average that is evaluated and kept; 0: none
    train: Literal["all", "head"]  # head: the backbone is frozen, in eval mode
    epochs: Annotated[int, Field(ge=0)]  # 0: the model is kept as it is
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Optimizer
    augmentation: Augmentation


class Evaluate(Settings):
    """What the report compares with. ``probes`` are extras that see labels and decide nothing."""

    kmeans_runs: Annotated[int, Field(ge=2)]
    probes: bool  # accuracy of a linear model and of nearest neighbours, trained on labels, on the embeddings
