"""Settings of the source, the store and the splits: the group ``data`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scan_core.settings import Count, Pixels, Positive, Probability, Settings

SOURCES_WITH_PATH = ("folder", "archive", "parquet", "npy")
SOURCES_WITH_BOXES = ("folder", "archive", "parquet")
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
    boxes: str | None  # parts of images, each an item of its own: a .csv file or MegaDetector's .json
    split: Literal["source", "none"]  # source: train beside val or test, if the source has that; none: no such folders
    subset: Literal[50, 100, 200] | None  # number of imagenet's classes: the paper's subsets
    extra: Literal["pretext", "train", "none"]  # which split gets stl10's unlabeled images, or imagenet's other classes
    size: Pixels  # an array holds size x size pixels; a stored JPEG has this short side
    view: Pixels | None  # what the network sees, cropped from the stored image; null: size
    # How a rectangular image becomes square. With crop, the jpeg store keeps its shape, and what is seen is cropped.
    fit: Literal["crop", "pad", "stretch"]
    store: Literal["auto", "array", "jpeg"]
    shard_rows: Count  # images per file of the store
    duplicates: Literal["keep", "together", "drop"]  # copies count as one in clustering; drop: exact ones are left out
    protocol: Literal["split", "all"]  # split: val is held out and reported; all: every image trains and is reported
    val_fraction: Annotated[float, Field(gt=0, lt=1)]  # each image's probability of val, if the source has no split
    split_seed: Annotated[int, Field(ge=0, lt=2**64)]
    max_rejected: Probability  # largest share of unreadable files
    max_pixels: Count  # a larger image is rejected before it is decoded
    range: tuple[float, float] | None  # values of images of more than 8 bits that become 0 and 255; null: measured
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
        if self.boxes is not None and not self.boxes.endswith((".csv", ".json")):
            raise ValueError(f'boxes is "{self.boxes}"; null or the path of a .csv or .json file is allowed')
        if self.boxes is not None and self.name not in SOURCES_WITH_BOXES:
            raise ValueError(
                f"boxes is {self.boxes}; data.name {self.name} has no image files, and only null is allowed; "
                f"boxes go with {', '.join(SOURCES_WITH_BOXES)}"
            )
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}; two numbers are allowed, the smaller first, or null")
        if self.side > self.size:
            raise ValueError(f"view is {self.view}; at most data.size, {self.size}, is allowed")
        return self
