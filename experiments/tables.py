"""What each table and figure of the paper compares, and the numbers it gives: ACC, or ACC / NMI / ARI, in percent.

A row names a run by what it changes in the preset, and where in its result the number lies. ``(c)`` marks published
numbers that were carried over from memory of the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.runs import SWEEP, Result, Run
from pipeline.params import Params
from scan_core.settings import NoPretext

Changes = tuple[tuple[str, Any], ...]
Curve = Callable[[Result], list[tuple[float, float]]]

# The paper's columns by preset. Others stand beside the one that comes nearest, as a reminder of what was found there.
COLUMNS = {
    "cifar10": "CIFAR-10", "cifar100_20": "CIFAR-100-20", "stl10": "STL-10", "imagenet_50": "ImageNet-50",
    "imagenet_100": "ImageNet-100", "imagenet_200": "ImageNet-200", "imagenet_1000": "ImageNet-1000",
}  # fmt: skip
NEAREST = {"digits": "cifar10", "digits_quick": "cifar10", "cifar10_cpu": "cifar10", "tiny_imagenet_50": "imagenet_50"}


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a figure."""

    label: str
    changes: Changes | Callable[[Params], Changes] = ()  # from the preset's settings, where they depend on these
    value: Callable[[Result], dict[str, float]] = lambda result: scores(result, "selflabel")
    published: dict[str, str] = field(default_factory=dict)  # by column
    labelled: tuple[str, ...] = ()
    curve: Curve | None = None  # of a figure that has a line for each row

    def run(self, preset: str, seed: int) -> Run:
        """The row's run of a preset."""
        changes = self.changes(Run(preset, seed).params()) if callable(self.changes) else self.changes
        return Run(preset, seed, changes, self.labelled)


@dataclass(frozen=True)
class Experiment:
    """A table, or a figure whose rows are its points or its lines."""

    title: str
    rows: tuple[Row, ...]
    preset: str = SWEEP
    axis: str = ""  # of a figure
    height: str = "ACC, %"

    def published(self, preset: str) -> tuple[str, list[str]]:
        """The head of the paper's column for ``preset``, and each row's number there or ""; no head where none has."""
        column = NEAREST.get(preset, preset)
        numbers = [row.published.get(column, "") for row in self.rows]
        measures = "ACC / NMI / ARI" if any("/" in number for number in numbers) else "ACC"
        return (f"{COLUMNS[column]}, paper ({measures})" if any(numbers) else ""), numbers


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


def line(
    label: str,
    changes: Changes | Callable[[Params], Changes],
    points: Curve,
    ends: tuple[str, str] = ("first epoch", "last epoch"),
) -> Row:
    """A row that is a line; its table has the values at both ends, which ``ends`` names."""

    def values(result: Result) -> dict[str, float]:
        found = points(result)
        return {ends[0]: found[0][1], ends[1]: found[-1][1]}

    return Row(label, changes, values, curve=points)


WEAK, STRONG = "pretext", "selflabel"  # whose views a preset has, SimCLR's and strong ones


def augmented(cluster: str, selflabel: str) -> Callable[[Params], Changes]:
    """The two training steps with SimCLR's or strong views, as the preset has them."""

    def changes(preset: Params) -> Changes:
        assert not isinstance(preset.pretext, NoPretext)
        views = {WEAK: preset.pretext.augmentation, STRONG: preset.selflabel.augmentation}
        return (
            ("cluster.augmentation", views[cluster].model_dump(mode="json")),
            ("selflabel.augmentation", views[selflabel].model_dump(mode="json")),
        )

    return changes


def pretext(method: str) -> Callable[[Params], Changes]:
    """Another pretext task."""

    def changes(preset: Params) -> Changes:
        found: Changes = (("pretext.method", method),)
        if method in ("rotation", "none"):  # which have no projector
            found += (("embed.features", "backbone"),)
        # Of 1,457 digits a batch of 512 leaves two steps an epoch: too few for slow encoders, and for rotation.
        if preset.data.name == "digits" and method in ("rotation", "moco", "byol"):
            found += (("pretext.batch_size", 128),)
        if method == "rotation":  # which sees four views of each image where the others see two
            found += (("pretext.epochs", preset.pretext.trained_epochs // 2),)
        return found

    return changes


def doubled(preset: Params) -> Changes:
    """Twice as many clusters."""
    return (("cluster.num_clusters", 2 * preset.cluster.num_clusters),)


KMEANS = {
    "cifar10": "65.9 ± 5.7 / 59.8 / 50.9", "cifar100_20": "39.5 / 40.2 / 23.9 (c)", "stl10": "65.8 / 60.4 / 50.6 (c)",
    "imagenet_50": "65.9 (c)", "imagenet_100": "59.7 (c)", "imagenet_200": "52.5 (c)",
}  # fmt: skip
SCAN = {
    "cifar10": "81.8 ± 0.3 / 71.2 / 66.5 (c)", "cifar100_20": "42.2 ± 3.0 / 44.1 / 26.7 (c)",
    "stl10": "75.5 ± 2.0 / 65.4 / 59.0 (c)",
    "imagenet_50": "75.1", "imagenet_100": "66.2", "imagenet_200": "56.3", "imagenet_1000": "39.9 / 72.0 / 27.5",
}  # fmt: skip
SELFLABEL = {
    "cifar10": "87.6 ± 0.4 / 78.7 / 75.8", "cifar100_20": "45.9 ± 2.7 / 46.8 / 30.1 (c)",
    "stl10": "76.7 ± 1.9 / 68.0 / 61.6 (c)", "imagenet_50": "76.8 / 82.2 / 66.1",
    "imagenet_100": "68.9 / 80.8 / 57.6", "imagenet_200": "58.1 / 77.2 / 47.0",
}  # fmt: skip
COLLAPSED, RECOVERED = {"cifar10": "10.0 (c)"}, {"cifar10": "87.4 (c)"}
DOUBLED = {"cifar10": "86.2", "cifar100_20": "55.1", "stl10": "76.8"}
SUPERVISED = {
    "cifar10": "93.8 / 86.2 / 87.0", "cifar100_20": "80.0 / 68.0 / 63.2", "stl10": "80.6 / 65.9 / 63.1",
}  # fmt: skip
NEIGHBORS = {
    0: {"cifar10": "56.3", "cifar100_20": "24.6", "stl10": "47.7"},
    5: {"cifar10": "79.3", "cifar100_20": "41.1", "stl10": "69.8"},
}  # fmt: skip
PURITY = [curve("purity", "k", "purity", split) for split in ("train", "val")]
PURITY_ENDS = ("nearest one", "50 nearest")
ACCURACY = curve("accuracy_selflabel", "epoch", "acc")

EXPERIMENTS = {
    "table1": Experiment("Table 1: what each step adds", (
        Row("pretext + k-means", (), step("kmeans_embeddings"), KMEANS),
        Row("SCAN loss, SimCLR's augmentation", augmented(WEAK, WEAK), step("cluster"), {"cifar10": "78.7"}),
        Row("… and self-labelling with the same, guard aside", augmented(WEAK, WEAK), unguarded, COLLAPSED),
        Row("… and self-labelling with the strong one, guard aside", augmented(WEAK, STRONG), unguarded, RECOVERED),
        Row("SCAN loss, strong augmentation", augmented(STRONG, STRONG), step("cluster"), SCAN),
        Row("… and self-labelling with the same, guard aside", augmented(STRONG, STRONG), unguarded, SELFLABEL),
    )),
    "table2": Experiment("Table 2: the pretext task", (
        Row("rotation (RotNet)", pretext("rotation"), published={"cifar10": "74.3"}),
        Row("instance discrimination (NCE)", pretext("instance_discrimination"), published={"cifar10": "83.5"}),
        Row("SimCLR", pretext("simclr"), published={"cifar10": "87.6"}),
        Row("MoCo v2", pretext("moco")),
        Row("BYOL", pretext("byol")),
        Row("none: a network at its random start", pretext("none")),
    )),
    "table3": Experiment("Table 3: the method beside its baselines and bounds", (
        Row("k-means on pixels", (), step("kmeans_pixels")),
        Row("pretext + k-means", (), step("kmeans_embeddings"), KMEANS),
        Row("SCAN loss", (), step("cluster"), SCAN),
        Row("SCAN loss + self-label", (), step("selflabel"), SELFLABEL),
        Row("supervised (uses labels)", (), labelled, SUPERVISED, ("supervised",)),
    ), preset="digits"),
    "table4": Experiment("Table 4: ImageNet-like images, 50 classes", (
        Row("pretext + k-means", (), step("kmeans_embeddings"), KMEANS),
        Row("SCAN loss", (), step("cluster"), SCAN),
        Row("SCAN loss + self-label", (), step("selflabel"), SELFLABEL),
    ), preset="tiny_imagenet_50"),
    "tableS1": Experiment("Table S1: twice as many clusters as classes, many-to-one", (
        Row("as many clusters as classes", (), step("selflabel"), SELFLABEL),
        Row("twice as many, many-to-one", doubled, many_to_one, DOUBLED),
        Row("twice as many, one-to-one", doubled, step("selflabel")),
    )),
    "purity": Experiment("Figure 2: how many of an image's nearest neighbours are of its class", (
        line("SimCLR, train", (), PURITY[0], PURITY_ENDS),
        line("SimCLR, validation", (), PURITY[1], PURITY_ENDS),
        line("instance discrimination, train", pretext("instance_discrimination"), PURITY[0], PURITY_ENDS),
        line("rotation, train", pretext("rotation"), PURITY[0], PURITY_ENDS),
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
        Row(str(k), (("cluster.neighbors", k),), step("selflabel"), NEIGHBORS.get(k, {}))
        for k in (0, 5, 10, 20, 50)
    ), axis="K"),
    "smoothing": Experiment("Embeddings averaged with their nearest ones before neighbours are mined", tuple(
        Row(f"with {nearest}" if nearest else "as they are", (("neighbors.smoothing", nearest),), smoothed)
        for nearest in (0, 5, 20, 50)
    )),
    "oracle": Experiment("Figure 8: no false positives among the neighbours (uses labels)", tuple(
        Row(str(k), (), labelled, {}, ("oracle", "--neighbors", str(k))) for k in (5, 20, 50)
    ), axis="K"),
    "entropy": Experiment("The entropy's weight λ", tuple(
        Row(f"{value:g}", (("cluster.entropy_weight", value),), step("cluster")) for value in (1.0, 2.0, 5.0, 7.0, 10.0)
    ), axis="λ"),
}  # fmt: skip
