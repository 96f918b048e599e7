"""Settings of the pretext task: the group ``pretext``, a union by ``method``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from scan_core.clustering.settings import FrozenCluster
from scan_core.settings import Count, Momentum, NonNegative, Pixels, Positive, Settings, TwoOrMore
from scan_core.training.settings import Optimizer
from scan_core.views.settings import Augmentation, SimclrAugmentation


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
    """Instance discrimination (arXiv 1805.01978): each image is discriminated from a memory bank's entries by NCE."""

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
    """The backbone as it is. Code for trained methods reads the class attributes; nothing is trained."""

    method: Literal["none"]
    trained_epochs: ClassVar[int] = 0
    batch_size: ClassVar[int] = 2


class FrozenPretext(Settings):
    """No network of this project at all: embed has frozen ones."""

    method: Literal["frozen"]
    trained_epochs: ClassVar[int] = 0
    batch_size: ClassVar[int] = 2


class AdaptedPretext(Settings):
    """A published network, whose last layers learn groups on which methods agree; see ``pretext.adapted``."""

    method: Literal["adapted"]
    trained_epochs: ClassVar[int] = 0
    weights: str  # of a network that embed.spaces has, too, at the same pixels
    side: Pixels | None
    judge: str  # weights of another network, whose neighbors tell whether the groups are better
    images: TwoOrMore  # that are learned from, at most
    dimensions: Count  # of its features, after PCA
    neighbors: Count  # that are mined
    groups: FrozenCluster  # how the groups are found
    trusted: Annotated[float, Field(gt=0, le=1)]  # share of each group that is learned from
    threshold: Annotated[float, Field(gt=0, lt=1)]  # of a prediction that is learned from
    steps: Count
    batch_size: TwoOrMore
    views: Count  # random ones of each image, besides itself and its mirror image
    optimizer: Optimizer
    augmentation: SimclrAugmentation


Pretext = Annotated[
    SimclrPretext
    | MocoPretext
    | ByolPretext
    | InstanceDiscriminationPretext
    | RotationPretext
    | NoPretext
    | FrozenPretext
    | AdaptedPretext,
    Field(discriminator="method"),
]
