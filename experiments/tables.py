"""What each table and figure of the paper compares, and its published numbers: ACC, or ACC / NMI / ARI, in percent.

A row says what its run changes in the preset, and which numbers of the result it shows. ``(c)`` marks published numbers
that were cited from memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.runs import SWEEP, Result, Run
from pipeline.params import Params
from scan_core.clustering.settings import known_number
from scan_core.pretext.settings import FrozenPretext, NoPretext

Changes = tuple[tuple[str, Any], ...]
Curve = Callable[[Result], list[tuple[float, float]]]

# The paper's column for each preset. A preset of NEAREST is no data set of the paper, and shows the nearest column as a
# reminder of what was found there.
COLUMNS = {
    "cifar10": "CIFAR-10", "cifar100_20": "CIFAR-100-20", "stl10": "STL-10", "imagenet_50": "ImageNet-50",
    "imagenet_100": "ImageNet-100", "imagenet_200": "ImageNet-200", "imagenet_1000": "ImageNet-1000",
}  # fmt: skip
NEAREST = {"digits": "cifar10", "digits_quick": "cifar10", "cifar10_cpu": "cifar10", "tiny_imagenet_50": "imagenet_50"}


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a figure."""

    label: str
    changes: Changes | Callable[[Params], Changes] = ()  # a function if they depend on the preset's settings
    value: Callable[[Result], dict[str, float]] = lambda result: scores(result, "selflabel")
    published: dict[str, str] = field(default_factory=dict)  # by column
    labeled: tuple[str, ...] = ()  # as in ``Run``
    curve: Curve | None = None  # the points of a line, in a figure with one line per row

    def run(self, preset: str, seed: int) -> Run:
        """The row's run of a preset."""
        changes = self.changes(Run(preset, seed).params()) if callable(self.changes) else self.changes
        return Run(preset, seed, changes, self.labeled)


@dataclass(frozen=True)
class Experiment:
    """A table, or a figure whose rows are its points or its lines."""

    title: str
    rows: tuple[Row, ...]
    preset: str = SWEEP
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    x_label: str = ""  # empty for a table
    y_label: str = "ACC, %"

    def published(self, preset: str) -> tuple[str, list[str]]:
        """The heading of the paper's column for ``preset`` and each row's number or ""; no heading without numbers."""
        column = NEAREST.get(preset, preset)
        numbers = [row.published.get(column, "") for row in self.rows]
        measures = "ACC / NMI / ARI" if any("/" in number for number in numbers) else "ACC"
        return (f"{COLUMNS[column]}, paper ({measures})" if any(numbers) else ""), numbers


def scores(result: Result, step: str) -> dict[str, float]:
    """ACC, NMI and ARI on validation images of ``kmeans_pixels``, ``kmeans_embeddings``, ``cluster``, ``selflabel``."""
    return {name: result.metrics["val"][step][name] for name in ("acc", "nmi", "ari")}


def many_to_one(result: Result) -> dict[str, float]:
    """The paper's measure for more clusters than classes."""
    return {**scores(result, "selflabel"), "acc": result.metrics["val"]["selflabel"]["acc_many_to_one"]}


def purity_and_scores(result: Result) -> dict[str, float]:
    """The share of an image's 20 nearest neighbors that are of its class, and the scores that follow."""
    purity = result.metrics["train"]["neighbors"]["purity_20"]
    return {"20 nearest of the class, train": purity, **scores(result, "selflabel")}


def last_epoch(result: Result) -> dict[str, float]:
    """ACC after the last epoch of self-labeling, whether the guard kept that model or not."""
    return {"acc": float(result.curves["accuracy_selflabel"][-1]["acc"])}


def labeled_scores(result: Result) -> dict[str, float]:
    """The scores that a command with labels measured."""
    return result.labeled


def scores_of(step: str) -> Callable[[Result], dict[str, float]]:
    """``scores`` of one step."""
    return lambda result: scores(result, step)


def curve(name: str, x: str, y: str, split: str = "") -> Curve:
    """Two columns of a run's plot data, from the rows of ``split`` if that is given."""
    return lambda result: [
        (float(row[x]), float(row[y])) for row in result.curves[name] if not split or row["split"] == split
    ]


def line(
    label: str,
    changes: Changes | Callable[[Params], Changes],
    points: Curve,
    ends: tuple[str, str] = ("first epoch", "last epoch"),
) -> Row:
    """A row that is a line. Its table has the values at both ends of the line, under the headings ``ends``."""

    def values(result: Result) -> dict[str, float]:
        (_, first), *_, (_, last) = points(result)
        return {ends[0]: first, ends[1]: last}

    return Row(label, changes, values, curve=points)


WEAK, STRONG = "pretext", "selflabel"  # the steps of a preset that have SimCLR's views and strong views


def with_views(cluster: str, selflabel: str) -> Callable[[Params], Changes]:
    """The two training steps with the preset's SimCLR views or its strong views."""

    def changes(preset: Params) -> Changes:
        assert not isinstance(preset.pretext, NoPretext | FrozenPretext)
        views = {WEAK: preset.pretext.augmentation, STRONG: preset.selflabel.augmentation}
        return (
            ("cluster.augmentation", views[cluster].model_dump(mode="json")),
            ("selflabel.augmentation", views[selflabel].model_dump(mode="json")),
        )

    return changes


def with_pretext(method: str) -> Callable[[Params], Changes]:
    """Another pretext task."""

    def changes(preset: Params) -> Changes:
        made: Changes = (("pretext.method", method),)
        if method in ("rotation", "none"):  # they have no projector
            made += (("embed.features", "backbone"),)
        # 1,437 digits in batches of 512 are two steps per epoch: too few for momentum encoders, and for rotation.
        if preset.data.name == "digits" and method in ("rotation", "moco", "byol"):
            made += (("pretext.batch_size", 128),)
        if method == "rotation":  # it sees four views of each image, the others see two
            made += (("pretext.epochs", preset.pretext.trained_epochs // 2),)
        return made

    return changes


def twice_the_clusters(preset: Params) -> Changes:
    """Twice as many clusters."""
    return (("cluster.num_clusters", 2 * known_number(preset.cluster)),)


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
SUPERVISED = {"cifar10": "93.8 / 86.2 / 87.0", "cifar100_20": "80.0 / 68.0 / 63.2", "stl10": "80.6 / 65.9 / 63.1"}
NEIGHBORS = {
    0: {"cifar10": "56.3", "cifar100_20": "24.6", "stl10": "47.7"},
    5: {"cifar10": "79.3", "cifar100_20": "41.1", "stl10": "69.8"},
}  # fmt: skip
PURITY = [curve("purity", "k", "purity", split) for split in ("train", "val")]
PURITY_ENDS = ("nearest one", "50 nearest")
ACCURACY = curve("accuracy_selflabel", "epoch", "acc")

EXPERIMENTS = {
    "table1": Experiment("Table 1: what each step adds", (
        Row("pretext + k-means", (), scores_of("kmeans_embeddings"), KMEANS),
        Row("SCAN loss, SimCLR's augmentation", with_views(WEAK, WEAK), scores_of("cluster"), {"cifar10": "78.7"}),
        Row("… and self-labeling with the same, no guard", with_views(WEAK, WEAK), last_epoch, COLLAPSED),
        Row("… and self-labeling with the strong one, no guard", with_views(WEAK, STRONG), last_epoch, RECOVERED),
        Row("SCAN loss, strong augmentation", with_views(STRONG, STRONG), scores_of("cluster"), SCAN),
        Row("… and self-labeling with the same, no guard", with_views(STRONG, STRONG), last_epoch, SELFLABEL),
    )),
    "table2": Experiment("Table 2: the pretext task", (
        Row("rotation (RotNet)", with_pretext("rotation"), published={"cifar10": "74.3"}),
        Row("instance discrimination (NCE)", with_pretext("instance_discrimination"), published={"cifar10": "83.5"}),
        Row("SimCLR", with_pretext("simclr"), published={"cifar10": "87.6"}),
        Row("MoCo v2", with_pretext("moco")),
        Row("BYOL", with_pretext("byol")),
        Row("none: a network at its random start", with_pretext("none")),
    )),
    "table3": Experiment("Table 3: the method, its baselines and its bounds", (
        Row("k-means on pixels", (), scores_of("kmeans_pixels")),
        Row("pretext + k-means", (), scores_of("kmeans_embeddings"), KMEANS),
        Row("SCAN loss", (), scores_of("cluster"), SCAN),
        Row("SCAN loss + self-label", (), scores_of("selflabel"), SELFLABEL),
        Row("supervised (uses labels)", (), labeled_scores, SUPERVISED, ("supervised",)),
    ), preset="digits"),
    "table4": Experiment("Table 4: ImageNet-like images, 50 classes", (
        Row("pretext + k-means", (), scores_of("kmeans_embeddings"), KMEANS),
        Row("SCAN loss", (), scores_of("cluster"), SCAN),
        Row("SCAN loss + self-label", (), scores_of("selflabel"), SELFLABEL),
    ), preset="tiny_imagenet_50"),
    "tableS1": Experiment("Table S1: twice as many clusters as classes, many-to-one", (
        Row("as many clusters as classes", (), scores_of("selflabel"), SELFLABEL),
        Row("twice as many, many-to-one", twice_the_clusters, many_to_one, DOUBLED),
        Row("twice as many, one-to-one", twice_the_clusters, scores_of("selflabel")),
    )),
    "purity": Experiment("Figure 2: how many of an image's nearest neighbors are of its class", (
        line("SimCLR, train", (), PURITY[0], PURITY_ENDS),
        line("SimCLR, validation", (), PURITY[1], PURITY_ENDS),
        line("instance discrimination, train", with_pretext("instance_discrimination"), PURITY[0], PURITY_ENDS),
        line("rotation, train", with_pretext("rotation"), PURITY[0], PURITY_ENDS),
    ), x_label="nearest neighbors", y_label="of the image's class, %"),
    "confident": Experiment("Figure 4: self-labeling by epoch", (
        line("ACC, validation", (), ACCURACY),
        line("confident, share of train", (), curve("selflabel", "epoch", "confident_share")),
    ), preset="digits", x_label="epoch", y_label="%"),
    "accuracy_at_coverage": Experiment("Accuracy at coverage", (
        line("SCAN loss", (), curve("accuracy_at_coverage", "coverage", "cluster"), ("5 % coverage", "100 %")),
        line("SCAN loss + self-label", (), curve("accuracy_at_coverage", "coverage", "selflabel"),
             ("5 % coverage", "100 %")),
    ), preset="digits", x_label="coverage: % of the validation images, the most confident first"),
    "augmentation": Experiment("Figure 5: self-labeling with SimCLR's or strong augmentation", (
        line("SimCLR's", with_views(WEAK, WEAK), ACCURACY),
        line("strong", with_views(WEAK, STRONG), ACCURACY),
    ), x_label="epoch"),
    "threshold": Experiment("Figure 6: self-labeling's threshold", tuple(
        Row(f"{value:g}", (("selflabel.threshold", value),), last_epoch) for value in (0.5, 0.8, 0.9, 0.95, 0.99)
    ), x_label="threshold"),
    "neighbors": Experiment("Figure 7: the number of neighbors K", tuple(
        Row(str(k), (("cluster.neighbors", k),), scores_of("selflabel"), NEIGHBORS.get(k, {}))
        for k in (0, 5, 10, 20, 50)
    ), x_label="K"),
    "smoothing": Experiment("Embeddings averaged with their nearest ones before neighbors are mined", tuple(
        Row(f"with {nearest}" if nearest else "as they are", (("neighbors.smoothing", nearest),), purity_and_scores)
        for nearest in (0, 5, 20, 50)
    )),
    "oracle": Experiment("Figure 8: no false positives among the neighbors (uses labels)", tuple(
        Row(str(k), (), labeled_scores, {}, ("oracle", "--neighbors", str(k))) for k in (5, 20, 50)
    ), x_label="K"),
    "entropy": Experiment("The entropy's weight λ", tuple(
        Row(f"{value:g}", (("cluster.entropy_weight", value),), scores_of("cluster"))
        for value in (1.0, 2.0, 5.0, 7.0, 10.0)
    ), x_label="λ"),
}  # fmt: skip
