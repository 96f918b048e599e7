"""Typed settings of every step. Values are in ``params.yaml``; nothing here has a default that changes a result."""

from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scan_core.errors import ScanError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # weight of the old value in an average
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
TwoOrMore = Annotated[int, Field(ge=2)]
Pixels = Annotated[int, Field(ge=8, le=1024)]  # per side


class Settings(BaseModel):
    """Frozen and strict: an unknown key, a wrong type or a value out of range is an error at the start of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def variants(union: Any) -> dict[str, type[Settings]]:
    """Tag to class, for a union of settings such as ``Pretext``; empty for any other type.

    The first field of each class is its tag: ``method`` or ``kind``.
    """
    union = get_args(union)[0] if get_origin(union) is Annotated else union
    classes = [each for each in get_args(union) if isinstance(each, type) and issubclass(each, Settings)]
    return {get_args(next(iter(each.model_fields.values())).annotation)[0]: each for each in classes}


# --- data

SOURCES_WITH_PATH = ("folder", "archive", "parquet", "npy")
ARRAY_UP_TO = 128  # pixels; ``store: auto`` packs larger images as JPEGs, because an array would not fit in memory


class Data(Settings):
    """Which images are read, at which size they are stored, and how they are split.

    A source ignores the settings that it does not use: another source is one or two settings away.
    """

    name: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_20", "stl10", "imagenet",
        "folder", "archive", "parquet", "npy",
    ]  # fmt: skip
    path: str | None  # of folder, archive, parquet and npy; relative to the project
    labels: str  # folders: the source's own; none; or a .csv file with columns source,label
    subset: Literal[50, 100, 200] | None  # number of imagenet's classes: the paper's subsets
    extra: Literal["pretext", "train", "none"]  # which split gets stl10's unlabeled images, or imagenet's other classes
    size: Pixels  # an array holds size x size pixels; a stored JPEG has this short side
    view: Pixels | None  # what the network sees, cropped from the stored image; null: size
    fit: Literal["crop", "pad", "stretch"]  # how a rectangular image becomes square
    store: Literal["auto", "array", "jpeg"]
    shard_rows: Count  # images per file of the store
    duplicates: Literal["keep", "drop"]
    protocol: Literal["split", "all"]  # split: val is held out and reported; all: every image trains and is reported
    val_fraction: Annotated[float, Field(gt=0, lt=1)]  # each image's probability of val, if the source has no split
    split_seed: Annotated[int, Field(ge=0, lt=2**64)]
    max_rejected: Probability  # largest share of unreadable files
    max_pixels: Count  # a larger image is rejected before it is decoded
    max_unpacked: Positive  # GiB; largest unpacked size of an archive
    mean: tuple[Probability, ...] | None  # per channel, in [0,1]; null: measured on train
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None

    @property
    def stored(self) -> Literal["array", "jpeg"]:
        """``store``, with ``auto`` resolved."""
        if self.store == "auto":
            return "array" if self.size <= ARRAY_UP_TO else "jpeg"
        return self.store

    @property
    def side(self) -> int:
        """Pixels per side that the network sees."""
        return self.view or self.size

    @model_validator(mode="after")
    def _consistent(self) -> "Data":
        if self.name in SOURCES_WITH_PATH and not self.path:
            raise ValueError(f"path is null; data.name {self.name} reads from a path: set it")
        if self.labels not in ("folders", "none") and not self.labels.endswith(".csv"):
            raise ValueError(f'labels is "{self.labels}"; folders, none or the path of a .csv file is allowed')
        if self.side > self.size:
            raise ValueError(f"view is {self.view}; at most data.size, {self.size}, is allowed")
        if self.stored == "jpeg" and self.fit != "crop":
            raise ValueError(f"fit is {self.fit}; the jpeg store keeps each image's shape, so only crop is allowed")
        return self


# --- views


class SimclrAugmentation(Settings):
    """SimCLR's views, in the order applied: crop (with rotation and shear), flip, color jitter, grayscale, blur."""

    kind: Literal["simclr"]
    crop_size: Pixels | None  # of a view; null: as many as the network sees otherwise
    crop_scale: tuple[Positive, Positive]  # share of the image's area
    crop_ratio: tuple[Positive, Positive]  # width / height
    rotate: NonNegative  # degrees; drawn from -rotate to rotate
    shear: NonNegative  # degrees; drawn from -shear to shear
    flip: Probability
    jitter: Probability  # probability of the color jitter
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
    """The paper's strong views: a flip, ``operations`` of 14 operations drawn at random, and one square cutout."""

    kind: Literal["strong"]
    flip: Probability
    operations: Annotated[int, Field(ge=0, le=14)]
    cutout: CountOrZero  # side in pixels; 0: no cutout


class NoAugmentation(Settings):
    """The plain image. If the backbone is frozen, its features are computed once."""

    kind: Literal["none"]


Augmentation = Annotated[SimclrAugmentation | StrongAugmentation, Field(discriminator="kind")]
AnyAugmentation = Annotated[SimclrAugmentation | StrongAugmentation | NoAugmentation, Field(discriminator="kind")]


# --- models


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


# --- training


class Optimizer(Settings):
    """SGD, LARS and Adam have L2 weight decay, Muon decoupled weight decay. The rate follows ``schedule``."""

    name: Literal["sgd", "lars", "adam", "muon"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Momentum  # Adam's first beta, Muon's momentum
    schedule: Literal["constant", "cosine"]
    warmup_epochs: CountOrZero  # the rate rises linearly from 0
    final_lr: NonNegative  # the rate at the end of the cosine


# --- pretext


class TrainedPretext(Settings):
    """What every pretext task that trains has."""

    method: str
    epochs: Count
    batch_size: TwoOrMore
    optimizer: Optimizer
    augmentation: Augmentation

    @property
    def trained_epochs(self) -> int:
        """``epochs``; 0 for ``none``."""
        return self.epochs


class SimclrPretext(TrainedPretext):
    """SimCLR (arXiv 2002.05709): two views of an image agree, against the other images of the batch."""

    method: Literal["simclr"]
    temperature: Positive
    projection: Count  # dimensions after the projector
    hidden: Count | None  # dimensions inside the projector; null: as many as the features
    projector_norm: bool  # BatchNorm inside the projector


class MocoPretext(TrainedPretext):
    """MoCo v2 (arXiv 2003.04297): two views of an image agree, against a queue of older keys."""

    method: Literal["moco"]
    temperature: Positive
    projection: Count
    hidden: Count | None
    projector_norm: bool
    encoder_momentum: Momentum  # of the key encoder
    queue: Count  # number of negatives
    key_groups: Count  # parts of the shuffled batch; each part of the keys has its own BatchNorm statistics

    @model_validator(mode="after")
    def _groups(self) -> "MocoPretext":
        if self.batch_size % self.key_groups:
            raise ValueError(f"key_groups is {self.key_groups}; a divisor of batch_size, {self.batch_size}, is allowed")
        if self.batch_size < 2 * self.key_groups:
            raise ValueError(
                f"key_groups is {self.key_groups}; at most {self.batch_size // 2}, half of batch_size, is allowed"
            )
        return self


class ByolPretext(TrainedPretext):
    """BYOL (arXiv 2006.07733): one view predicts the target network's projection of the other. No negatives."""

    method: Literal["byol"]
    projection: Count
    hidden: Count | None
    encoder_momentum: Momentum  # of the target network; it rises to 1 during training


class InstanceDiscriminationPretext(TrainedPretext):
    """Instance discrimination (arXiv 1805.01978): an image is told from a memory bank's entries by NCE."""

    method: Literal["instance_discrimination"]
    temperature: Positive
    projection: Count
    negatives: Count  # drawn from the memory bank per image
    memory_momentum: Momentum  # of the memory bank's entries
    proximal: NonNegative  # weight of the squared distance to the image's own entry, eq. 8


class RotationPretext(TrainedPretext):
    """RotNet (arXiv 1803.07728): the network predicts by how many quarter turns an image was rotated."""

    method: Literal["rotation"]


class NoPretext(Settings):
    """The backbone as it is. The class attributes are what code for trained methods reads; no step is taken."""

    method: Literal["none"]
    trained_epochs: ClassVar[int] = 0
    batch_size: ClassVar[int] = 2
    optimizer: ClassVar[Optimizer] = Optimizer(
        name="sgd", lr=1.0, weight_decay=0.0, momentum=0.0, schedule="constant", warmup_epochs=0, final_lr=0.0
    )


Pretext = Annotated[
    SimclrPretext | MocoPretext | ByolPretext | InstanceDiscriminationPretext | RotationPretext | NoPretext,
    Field(discriminator="method"),
]


# --- clustering


class Embed(Settings):
    """Which features are mined for neighbors: those before (``backbone``) or after the projector (``projector``)."""

    features: Literal["backbone", "projector"]


class Neighbors(Settings):
    """How neighbors are mined. ``cluster.neighbors`` is how many of the ``k`` the loss uses."""

    k: Count
    smoothing: CountOrZero  # each embedding is averaged with so many nearest ones before the search
    exact_rows: Count  # the search is approximate if there are more images
    recall: Annotated[float, Field(gt=0, le=1)]  # of the approximate search, measured on a sample


def check_neighbors(k: int, count: int, split: str = "") -> None:
    """Raises ``ScanError`` if ``k`` neighbors cannot be mined among ``count`` images, all or those of a ``split``."""
    if k >= count:
        has = f"{split}, in which they are mined, has" if split else "there are"
        raise ScanError(f"neighbors.k is {k}, but {has} {count} images; at most {count - 1} is allowed")


class Cluster(Settings):
    """The SCAN loss (paper, eq. 2)."""

    num_clusters: TwoOrMore
    heads: Count
    neighbors: CountOrZero  # 0: another view of the same image
    val_neighbors: Count
    entropy_weight: NonNegative
    entropy_of: Literal["anchors", "both"]  # whose mean prediction the entropy is of; both: anchors and neighbors
    prior: tuple[Positive, ...] | None  # the clusters' known shares, in any order; null: equal shares
    train: Literal["all", "head"]  # head: the backbone is frozen and in eval mode
    epochs: Count
    batch_size: TwoOrMore
    optimizer: Optimizer
    augmentation: AnyAugmentation

    @model_validator(mode="after")
    def _prior_fits(self) -> "Cluster":
        if self.prior is None:
            return self
        if len(self.prior) != self.num_clusters:
            raise ValueError(
                f"prior has {len(self.prior)} values; one per cluster, {self.num_clusters}, or null is allowed"
            )
        if abs(sum(self.prior) - 1) > 1e-4:
            raise ValueError(f"prior has the sum {sum(self.prior):.6g}; 1 is allowed: divide each value by the sum")
        return self


class Selflabel(Settings):
    """Self-labeling on confident samples (paper, section 2.3)."""

    threshold: Annotated[float, Field(gt=0, lt=1)]
    class_weights: bool
    ema: Momentum  # decay of the averaged weights, which are evaluated and kept; 0: no average
    train: Literal["all", "head"]  # head: the backbone is frozen and in eval mode
    epochs: CountOrZero  # 0: the clustering model is kept as it is
    batch_size: TwoOrMore
    optimizer: Optimizer
    augmentation: Augmentation


# --- evaluation


class Evaluate(Settings):
    """What the report compares the clusters with."""

    kmeans_runs: TwoOrMore
    probes: bool  # accuracies of a linear model and of nearest neighbors that see labels; they decide nothing
