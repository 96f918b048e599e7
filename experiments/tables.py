"""What each table and figure of the paper compares, and the numbers it gives for CIFAR-10 (ACC in percent).

A row names a run by what it changes in the preset, and where in its result the number lies. ``(c)`` marks a published
number that was carried over from memory of the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.runs import SWEEP, Result

Changes = tuple[tuple[str, Any], ...]
Curve = Callable[[Result], list[tuple[float, float]]]


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a figure."""

    label: str
    changes: Changes = ()
    value: Callable[[Result], dict[str, float]] = lambda result: scores(result, "selflabel")
    published: str = ""
    labelled: tuple[str, ...] = ()
    curve: Curve | None = None  # of a figure that has a line for each row


@dataclass(frozen=True)
class Experiment:
    """A table, or a figure whose rows are its points or its lines."""

    title: str
    rows: tuple[Row, ...]
    preset: str = SWEEP
    published: str = "CIFAR-10, paper"
    axis: str = ""  # of a figure
    height: str = "ACC, %"


def scores(result: Result, step: str) -> dict[str, float]:
    """ACC, NMI and ARI on validation images of ``kmeans_pixels``, ``kmeans_embeddings``, ``cluster``, ``selflabel``."""
    return {name: result.metrics["val"][step][name] for name in ("acc", "nmi", "ari")}


def many_to_one(result: Result) -> dict[str, float]:
    """The paper's measure for more clusters than classes."""
    found = result.metrics["val"]["selflabel"]
    return {"acc": found["acc_many_to_one"], "nmi": found["nmi"], "ari": found["ari"]}


def smoothed(result: Result) -> dict[str, float]:
    """How many of an image's 20 nearest are of its class, and what becomes of it."""
    return {
        "20 nearest of the class, train": result.metrics["train"]["neighbors"]["purity_20"],
        **step("selflabel")(result),
    }


def unguarded(result: Result) -> dict[str, float]:
    """ACC after the last epoch of self-labelling, whether the guard kept it or not."""
    return {"acc": float(result.curves["accuracy_selflabel"][-1]["acc"])}


def labelled(result: Result) -> dict[str, float]:
    """What a command that uses labels has measured."""
    return result.labelled


def step(name: str) -> Callable[[Result], dict[str, float]]:
    """``scores`` of one step."""
    return lambda result: scores(result, name)


def curve(name: str, x: str, y: str, split: str = "") -> Curve:
    """Two columns of a run's plot data; with ``split``, of that split's rows."""
    return lambda result: [
        (float(row[x]), float(row[y])) for row in result.curves[name] if not split or row["split"] == split
    ]


def line(label: str, changes: Changes, points: Curve, ends: tuple[str, str] = ("first epoch", "last epoch")) -> Row:
    """A row that is a line; its table has the values at both ends, which ``ends`` names."""

    def values(result: Result) -> dict[str, float]:
        found = points(result)
        return {ends[0]: found[0][1], ends[1]: found[-1][1]}

    return Row(label, changes, values, curve=points)


# The digits' two kinds of views; both without flips, for a mirrored 2 is no digit.
WEAK = {
    "kind": "simclr", "crop_scale": [0.4, 1.0], "crop_ratio": [0.75, 1.333], "rotate": 15, "shear": 10, "flip": 0.0,
    "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "blur": 0.0,
    "blur_sigma": [0.1, 2.0],
}  # fmt: skip
STRONG = {"kind": "strong", "flip": 0.0, "operations": 2, "cutout": 3}


def augmented(cluster: dict[str, Any], selflabel: dict[str, Any]) -> Changes:
    """The views of the two training steps."""
    return (("cluster.augmentation", cluster), ("selflabel.augmentation", selflabel))


# Of 1,437 digits a batch of 512 leaves two steps an epoch: too few for slow encoders, and for rotation, which sees four
# views of each image where the others see two, and so gets half the epochs.
ROTATION: Changes = (("pretext.method", "rotation"), ("pretext.batch_size", 128), ("pretext.epochs", 60))
INSTANCES: Changes = (("pretext.method", "instance_discrimination"),)
SLOW: Changes = (("pretext.batch_size", 128),)
PURITY = [curve("purity", "k", "purity", split) for split in ("train", "val")]
PURITY_ENDS = ("nearest one", "50 nearest")
ACCURACY = curve("accuracy_selflabel", "epoch", "acc")

EXPERIMENTS = {
    "table1": Experiment("Table 1: what each step adds", (
        Row("pretext + k-means", (), step("kmeans_embeddings"), "65.9 ± 5.7"),
        Row("SCAN loss, SimCLR's augmentation", augmented(WEAK, WEAK), step("cluster"), "78.7"),
        Row("… and self-labelling with the same, guard aside", augmented(WEAK, WEAK), unguarded, "10.0 (c)"),
        Row("… and self-labelling with the strong one, guard aside", augmented(WEAK, STRONG), unguarded, "87.4 (c)"),
        Row("SCAN loss, strong augmentation", augmented(STRONG, STRONG), step("cluster"), "81.8 ± 0.3"),
        Row("… and self-labelling with the same, guard aside", augmented(STRONG, STRONG), unguarded, "87.6 ± 0.4"),
    )),
    "table2": Experiment("Table 2: the pretext task", (
        Row("rotation (RotNet)", ROTATION, published="74.3"),
        Row("instance discrimination (NCE)", INSTANCES, published="83.5"),
        Row("SimCLR", (), published="87.6"),
        Row("MoCo v2", (("pretext.method", "moco"), *SLOW)),
        Row("BYOL", (("pretext.method", "byol"), *SLOW)),
        Row("none: a network at its random start", (("pretext.method", "none"),)),
    )),
    "table3": Experiment("Table 3: the method beside its baselines and bounds", (
        Row("k-means on pixels", (), step("kmeans_pixels")),
        Row("pretext + k-means", (), step("kmeans_embeddings"), "65.9 ± 5.7"),
        Row("SCAN loss", (), step("cluster"), "81.8 ± 0.3"),
        Row("SCAN loss + self-label", (), step("selflabel"), "87.6 ± 0.4"),
        Row("supervised (uses labels)", (), labelled, "93.8", ("supervised",)),
    ), preset="digits"),
    "table4": Experiment("Table 4: ImageNet-like images, 50 classes", (
        Row("pretext + k-means", (), step("kmeans_embeddings"), "65.9 (c)"),
        Row("SCAN loss", (), step("cluster"), "75.1"),
        Row("SCAN loss + self-label", (), step("selflabel"), "76.8"),
    ), preset="tiny_imagenet_50", published="ImageNet-50, paper"),
    "tableS1": Experiment("Table S1: twice as many clusters as classes, many-to-one", (
        Row("as many clusters as classes", (), step("selflabel"), "87.6 ± 0.4"),
        Row("twice as many, many-to-one", (("cluster.num_clusters", 20),), many_to_one, "86.2"),
        Row("twice as many, one-to-one", (("cluster.num_clusters", 20),), step("selflabel")),
    )),
    "purity": Experiment("Figure 2: how many of an image's nearest neighbours are of its class", (
        line("SimCLR, train", (), PURITY[0], PURITY_ENDS),
        line("SimCLR, validation", (), PURITY[1], PURITY_ENDS),
        line("instance discrimination, train", INSTANCES, PURITY[0], PURITY_ENDS),
        line("rotation, train", ROTATION, PURITY[0], PURITY_ENDS),
    ), axis="nearest neighbours", height="of the image's class, %"),
    "confident": Experiment("Figure 4: self-labelling by epoch", (
        line("ACC, validation", (), ACCURACY),
        line("confident, share of train", (), curve("selflabel", "epoch", "confident_share")),
    ), preset="digits", axis="epoch", height="%"),
    "surest": Experiment("The surest images are right more often", (
        line("SCAN loss", (), curve("surest", "percent", "cluster"), ("surest 5 %", "all")),
        line("SCAN loss + self-label", (), curve("surest", "percent", "selflabel"), ("surest 5 %", "all")),
    ), preset="digits", axis="% of the validation images, the surest first"),
    "augmentation": Experiment("Figure 5: self-labelling with SimCLR's or strong augmentation", (
        line("SimCLR's", augmented(WEAK, WEAK), ACCURACY),
        line("strong", augmented(WEAK, STRONG), ACCURACY),
    ), axis="epoch"),
    "threshold": Experiment("Figure 6: self-labelling's threshold", tuple(
        Row(f"{value:g}", (("selflabel.threshold", value),), unguarded) for value in (0.5, 0.8, 0.9, 0.95, 0.99)
    ), axis="threshold"),
    "neighbors": Experiment("Figure 7: the number of neighbours K", tuple(
        Row(str(k), (("cluster.neighbors", k),), step("selflabel"), {0: "56.3", 5: "79.3"}.get(k, ""))
        for k in (0, 5, 10, 20, 50)
    ), axis="K"),
    "smoothing": Experiment("Embeddings averaged with their nearest ones before neighbours are mined", tuple(
        Row(f"with {nearest}" if nearest else "as they are", (("neighbors.smoothing", nearest),), smoothed)
        for nearest in (0, 5, 20, 50)
    )),
    "oracle": Experiment("Figure 8: no false positives among the neighbours (uses labels)", tuple(
        Row(str(k), (), labelled, "", ("oracle", "--neighbors", str(k))) for k in (5, 20, 50)
    ), axis="K"),
    "entropy": Experiment("The entropy's weight λ", tuple(
        Row(f"{value:g}", (("cluster.entropy_weight", value),), step("cluster")) for value in (1.0, 2.0, 5.0, 7.0, 10.0)
    ), axis="λ"),
}  # fmt: skip
