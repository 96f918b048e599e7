"""Settings of embed, neighbors, cluster and selflabel."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from scan_core.errors import ScanError
from scan_core.settings import Count, CountOrZero, Momentum, NonNegative, Pixels, Positive, Settings, TwoOrMore
from scan_core.training.settings import Optimizer
from scan_core.views.settings import AnyAugmentation, Augmentation


class Space(Settings):
    """A frozen network whose features are used."""

    weights: str  # a name of ``scan weights list``, or a .safetensors file that ``scan weights import`` wrote
    side: Pixels | None  # of the images that it sees; null: those that it was trained on
    mirror: bool  # mean of the features of an image and of its mirror image


class Embed(Settings):
    """Which features are mined for neighbors and clustered: those of pretext's network, or those of frozen ones."""

    features: Literal["backbone", "projector"]  # of pretext's network: before or after the projector
    spaces: tuple[Space, ...]  # frozen networks, which take the place of pretext's
    dimensions: Count  # of the frozen networks' features, after PCA


class Neighbors(Settings):
    """How neighbors are mined. ``cluster.neighbors`` is how many of the ``k`` the loss uses."""

    k: Count
    smoothing: CountOrZero  # each embedding is averaged with this many nearest ones before the search
    exact_rows: Count  # the search is approximate if there are more images
    recall: Annotated[float, Field(gt=0, le=1)]  # of the approximate search, measured on a sample


def check_neighbors(k: int, count: int, split: str = "") -> None:
    """Raises ``ScanError`` if ``k`` neighbors cannot be mined among ``count`` images, all or those of a ``split``."""
    if k >= count:
        has = f"{split}, in which they are mined, has" if split else "there are"
        raise ScanError(f"neighbors.k is {k}, but {has} {count} images; at most {count - 1} is allowed")


def _auto_or_two(value: object) -> object:
    """Says in one sentence what is allowed: of a union, pydantic explains each part."""
    if value == "auto" or (type(value) is int and value >= 2):
        return value
    raise PydanticCustomError("num_clusters", "auto or an integer greater than or equal to 2 is allowed")


# auto: it is estimated from the embeddings
NumClusters = Annotated[Literal["auto"] | int, PlainValidator(_auto_or_two)]


class ScanCluster(Settings):
    """The SCAN loss (paper, eq. 2) trains heads, and the network under them, on views of the images."""

    method: Literal["scan"]
    num_clusters: NumClusters
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
    def _prior_fits(self) -> "ScanCluster":
        if self.prior is None:
            return self
        if self.num_clusters == "auto":
            raise ValueError("prior is set, but num_clusters is auto; null is allowed, or give the number of clusters")
        if len(self.prior) != self.num_clusters:
            raise ValueError(
                f"prior has {len(self.prior)} values; one per cluster, {self.num_clusters}, or null is allowed"
            )
        if abs(sum(self.prior) - 1) > 1e-4:
            raise ValueError(f"prior has the sum {sum(self.prior):.6g}; 1 is allowed: divide each value by the sum")
        return self


class FrozenCluster(Settings):
    """Stored embeddings are clustered by several methods, one of which is kept; see ``candidates``."""

    method: Literal["frozen"]
    methods: Annotated[tuple[Literal["kmeans", "graph", "scan", "temi", "turtle"], ...], Field(min_length=1)]
    num_clusters: NumClusters
    heads: Count  # that the SCAN loss trains, and TEMI
    neighbors: Count  # that it draws from
    val_neighbors: Count  # of the neighbor agreement that is reported
    entropy_weight: NonNegative
    steps: Count  # of the SCAN loss from random heads
    batch_size: TwoOrMore
    lr: Positive  # Adam's, falling to 0 by a half cosine

    @model_validator(mode="after")
    def _methods_differ(self) -> "FrozenCluster":
        twice = [each for each in dict.fromkeys(self.methods) if self.methods.count(each) > 1]
        if twice:
            raise ValueError(f"methods has {twice[0]} {self.methods.count(twice[0])} times; once is allowed")
        return self


Cluster = Annotated[ScanCluster | FrozenCluster, Field(discriminator="method")]


def known_number(settings: ScanCluster | FrozenCluster) -> int:
    """``num_clusters`` as a number. Raises ``ScanError`` if it is auto."""
    if settings.num_clusters == "auto":
        raise ScanError("cluster.num_clusters is auto; a number is needed here, such as 10")
    return settings.num_clusters


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
