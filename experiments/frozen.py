"""Frozen networks in place of a trained one: what each method finds on their features, and how well one is kept.

The networks were trained on ImageNet's labels, so strictly these are no results of clustering without labels.
"""

from typing import Any

from scipy.stats import spearmanr

from experiments.runs import Result
from experiments.tables import Changes, Experiment, Row


def by_method(result: Result) -> dict[str, float]:
    """ACC on validation images of what each method proposed, a mean over its heads, and of what was kept.

    ``best`` is the best single head, which only labels can find. ``rank correlation`` is that of the heads' agreement,
    by which one was kept, with their ACC (Spearman).
    """
    heads = result.curves["candidates"]
    accuracy = [float(row["acc"]) for row in heads]
    found = {"k-means, one start": result.metrics["val"]["kmeans_embeddings"]["acc"]}
    for method in dict.fromkeys(row["method"] for row in heads):
        each = [acc for row, acc in zip(heads, accuracy, strict=True) if row["method"] == method]
        found[method] = sum(each) / len(each)
    (kept,) = (acc for row, acc in zip(heads, accuracy, strict=True) if row["kept"] == "1")
    rank = spearmanr([float(row["agreement"]) for row in heads], accuracy).statistic
    return {**found, "kept": kept, "best": max(accuracy), "rank correlation": float(rank)}


def spaces(*named: tuple[str, int]) -> Changes:
    """Frozen networks by name, each with the pixels that it sees."""
    return (("embed.spaces", [{"weights": name, "side": side, "mirror": False} for name, side in named]),)


def in_place_of_training(clusters: dict[str, Any]) -> Changes:
    """What turns a preset that trains a network into one of frozen networks."""
    return (("pretext", {"method": "frozen"}), ("cluster", {"method": "frozen", **clusters}), ("selflabel.epochs", 0))


LITE0, LITE2 = "efficientnet_lite0", "efficientnet_lite2"
LIKE_THE_PRESETS = {"num_clusters": 10, "heads": 16, "entropy_weight": 2.0, "batch_size": 512}

FROZEN_EXPERIMENTS = {
    "frozen_tiny_imagenet_50": Experiment("Tiny ImageNet, 50 classes, by frozen networks", (
        Row("lite0 at 128 pixels", spaces((LITE0, 128)), by_method),
        Row("lite0 at 128 and lite2 at 160 pixels", spaces((LITE0, 128), (LITE2, 160)), by_method),
    ), preset="tiny_imagenet_50_frozen"),
    "frozen_cifar10": Experiment("CIFAR-10 by frozen networks", (
        Row("lite0 at 128 pixels", spaces((LITE0, 128)), by_method),
        Row("lite0 and lite2 at 128 pixels", spaces((LITE0, 128), (LITE2, 128)), by_method),
    ), preset="cifar10_frozen", seeds=tuple(range(10))),
    "frozen_digits": Experiment("The digits by frozen networks, which have seen none", (
        Row("lite0 at 128 pixels", (*in_place_of_training(LIKE_THE_PRESETS), *spaces((LITE0, 128))), by_method),
    ), preset="digits"),
}  # fmt: skip
