"""What the report says in numbers: the rows of each plot, and the tables of scores."""

from collections.abc import Iterable
from dataclasses import astuple
from itertools import repeat
from typing import Any

import numpy as np

from pipeline.params import Params
from scan_core.evaluation.scores import COVERAGES, PURITY_AT, SplitData, accuracy_at_coverage, accuracy_by_epoch
from scan_core.evaluation.tree import merge_tree

Metrics = dict[str, dict[str, Any]]  # by split and step

MEASURES = {
    "acc": "ACC",
    "acc_many_to_one": "ACC, many to one",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "top5": "top 5",
    "clusters_used": "clusters in use",
    "confident_share": "confident",
}
QUALITY = {  # name, meaning, and whether the score is a share
    "heads_ari": (
        "Head agreement (ARI)",
        "How similar the clusters are that heads find from different starting weights. 1: the same; 0: chance. A low "
        "value says that the data can be divided in other ways, too. A high value does not say that these are the "
        "clusters you want.",
        False,
    ),
    "neighbor_agreement": (
        "Neighbor agreement",
        "The share of an image's nearest neighbors that are in its cluster. Higher is better. Well below 100%, "
        "clusters separate images that look alike.",
        True,
    ),
    "silhouette": (
        "Silhouette",
        "How much closer an image's embedding is to its own cluster than to the nearest other cluster, from -1 to 1. "
        "Below 0, images would fit another cluster better. Compare it only between runs with the same embeddings.",
        False,
    ),
    "linear_predictability": (
        "Linear predictability",
        "The share of images whose cluster a linear model, fitted on other images, predicts from the embedding. "
        "Higher is better. Near chance, the clusters do not follow the embeddings.",
        True,
    ),
}
PROBES = {"knn_acc": "Nearest neighbors (20, weighted)", "linear_probe_acc": "Linear probe (logistic regression)"}
# What the two splits are under each data.protocol.
SPLIT_TITLES = {
    "split": {"val": "Validation images", "train": "Training images"},
    "all": {"val": "The tenth by which models were chosen", "train": "All images"},
}
SHORT_TITLES = {"split": {"val": "validation", "train": "training"}, "all": {"val": "the tenth", "train": "all"}}
PLOT_COLUMNS = {  # of the CSV file of each plot
    "accuracy_cluster": ["epoch", "acc"],
    "accuracy_selflabel": ["epoch", "acc"],
    "accuracy_at_coverage": ["coverage", "cluster", "selflabel"],
    "confusion": ["actual", "predicted"],
    "purity": ["k", "train", "val"],
    "candidates": ["head", "method", "agreement", "kept", "acc"],
    "sizes": ["cluster", "train", "val"],
    "tree": ["first", "second", "similarity", "images"],
    "numbers": ["groups", "score", "silhouette", "silhouette_by_group", "agreement", "largest", "smallest"],
}


def reported_split(protocol: str) -> str:
    """The split that the report is about: the images held out, or all images under the protocol ``all``."""
    return "train" if protocol == "all" else "val"


def plot_tables(
    params: Params,
    groups: dict[str, Any],
    splits: dict[str, SplitData],
    assignments: dict[str, np.ndarray],
    metrics: Metrics,
    names: dict[int, str],
    classes: list[str],
    candidates: list[dict[str, str]],
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each of ``PLOT_COLUMNS``; what needs labels is empty without labels.

    ``assignments`` are the (epochs,N) clusters of val after each epoch, ``names`` the classes matched to clusters,
    ``classes`` the names of the labels, and ``candidates`` what cluster says of each head, if it clustered embeddings.
    """
    clusters, data = groups["number"], splits[reported_split(params.data.protocol)]
    by_epoch = {name: accuracy_by_epoch(splits["val"].labels, each, clusters) for name, each in assignments.items()}
    heads = splits["val"].heads
    accuracies = accuracy_by_epoch(splits["val"].labels, heads, clusters) if candidates and heads is not None else []
    curves = [accuracy_at_coverage(data.labels, prediction, clusters) for prediction in data.predictions.values()]
    pairs = zip(data.labels.tolist(), data.final.cluster.tolist(), strict=True)
    sizes = {split: np.bincount(each.final.cluster, minlength=clusters).tolist() for split, each in splits.items()}
    tables: dict[str, Iterable[tuple[Any, ...]]] = {
        "accuracy_cluster": enumerate(by_epoch["cluster"], 1),
        "accuracy_selflabel": enumerate(by_epoch["selflabel"]),  # epoch 0: the clusters that self-labeling starts from
        "accuracy_at_coverage": zip(COVERAGES, *curves, strict=False),  # the curves are empty without labels
        "confusion": [
            (classes[label], names.get(cluster, f"cluster {cluster}")) for label, cluster in pairs if label >= 0
        ],
        "purity": [
            (k, *(metrics[split]["neighbors"].get(f"purity_{k}", "") for split in ("train", "val")))
            for k in PURITY_AT
            if any(f"purity_{k}" in metrics[split]["neighbors"] for split in splits)
        ],
        "candidates": [(*row.values(), acc) for row, acc in zip(candidates, accuracies or repeat(""), strict=False)],
        "tree": [astuple(merge) for merge in merge_tree(data.embeddings, data.final.cluster, clusters)],
        "numbers": [tuple(row[name] for name in PLOT_COLUMNS["numbers"]) for row in groups.get("tried", [])],
        "sizes": zip(range(clusters), sizes["train"], sizes["val"], strict=True),
    }
    return {name: [dict(zip(PLOT_COLUMNS[name], row, strict=True)) for row in rows] for name, rows in tables.items()}


def score_table(scores: dict[str, Any], titles: dict[str, str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The column titles, and for each step of ``titles`` its name and cells, of one split's ``scores``."""
    measures = [measure for measure in MEASURES if any(measure in scores[step] for step in titles)]
    scored = {step: label for step, label in titles.items() if scores[step]}  # k-means has no scores without labels
    rows = [(label, [score_cell(scores[step], measure) for measure in measures]) for step, label in scored.items()]
    return [MEASURES[measure] for measure in measures], rows


def candidate_table(rows: list[dict[str, Any]]) -> list[tuple[str, bool, list[str]]]:
    """For each method its name, whether it was kept, and the means of its heads' agreement and ACC, if known."""
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        heads = [row for row in rows if row["method"] == method]
        cells = []
        for column in ("agreement", "acc"):
            values = [100 * float(row[column]) for row in heads if row[column] != ""]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells += [f"{np.mean(values):.1f}{spread}"] if values else []
        name = f"{method} ({len(heads)} heads)" if len(heads) > 1 else method
        table.append((name, any(row["kept"] == "1" for row in heads), cells))
    return table


def score_cell(scores: dict[str, float], measure: str) -> str:
    """``81.4 ± 6.5`` in percent, the count of clusters in use as it is; a dash if ``scores`` lack the measure."""
    if measure not in scores:
        return "–"
    value, spread = scores[measure], scores.get(f"{measure}_std")
    if measure == "clusters_used":
        return f"{value:g} ± {spread:.1f}" if spread else f"{value:g}"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def quality_table(
    metrics: Metrics, splits: tuple[str, str], sizes: list[dict[str, Any]]
) -> list[tuple[str, str, list[str]]]:
    """Name, meaning, and the cells of both ``splits`` and of chance, for each score that either split has.

    Chance is the score of random clusters of the same sizes as those of the first split.
    """
    images = [row[splits[0]] for row in sizes]
    shares = [count / max(sum(images), 1) for count in images]
    chance = {"neighbor_agreement": sum(share**2 for share in shares), "linear_predictability": max(shares)}
    table = []
    for score, (name, meaning, is_share) in QUALITY.items():
        values = [metrics[split]["quality"].get(score) for split in splits]
        if values != [None, None]:
            cells = [quality_cell(value, is_share) for value in (*values, chance.get(score, 0.0))]
            table.append((name, meaning, cells))
    return table


def quality_cell(value: float | None, is_share: bool) -> str:
    """``93.1%`` for a share, ``0.931`` for another score; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if is_share else f"{value:.3f}" if value else "0"


def without_markup(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` without ``<`` in their texts: DVC puts them as they are into its page of plots, where it may be code."""
    return [{key: value.replace("<", "‹") if isinstance(value, str) else value for key, value in row.items()}
            for row in rows]  # fmt: skip
