"""Settings of the random views: the groups ``augmentation``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scan_core.settings import CountOrZero, NonNegative, Pixels, Positive, Probability, Settings


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
