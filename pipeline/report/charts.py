"""The charts of the report, from the data of its plots."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from pipeline.artifacts import step_titles
from pipeline.report.drawing import BLUE, ORANGE, Chart, Rows, chart_of
from pipeline.report.group_charts import confusion, numbers_tried, sizes, tree

MIN_RANGE = 5  # percent on an axis: in a smaller range noise looks like a trend
PRETEXT_LOSSES = {
    "simclr": "NT-Xent loss between the two views of an image",
    "moco": "InfoNCE loss of each query with its key, against the keys in the queue",
    "instance_discrimination": "NCE loss of each image with its entry in the memory bank",
    "rotation": "Cross-entropy of predicting which of four rotations was applied",
    "adapted": "Cross-entropy of the groups on which methods agree, and of sure predictions for other images",
    "byol": "Squared distance between a view's prediction and the momentum encoder's projection of the other view",
}


def draw_charts(
    plots: dict[str, Rows], names: dict[int, str], groups: dict[str, Any], method: str, numbers: Sequence[int]
) -> list[Chart]:
    """One chart for every plot that has data.

    ``names`` are the classes matched to clusters, ``groups`` is what the stage groups has found, ``method`` is that of
    the pretext task, ``numbers`` (C,) are those of the groups that clusters are shown as.
    """
    clusters = groups["number"]
    pretext, selflabel, titles = plots["pretext"], plots["selflabel"], step_titles(plots["candidates"])
    if plots["candidates"]:  # nothing was trained for epochs
        plots = plots | {"accuracy_cluster": [], "accuracy_selflabel": []}
    charts = [
        numbers_tried(plots["numbers"], groups),
        _lines("Pretext loss", f"{PRETEXT_LOSSES.get(method, '')}, mean over each epoch.", pretext, {"loss": ""}),
        _lines("Spread of the embeddings",
               "The effective rank: over how many dimensions the embeddings of a batch spread. A fall toward 1 is a "
               "collapse: all images get the same embedding.",
               pretext, {"effective_rank": ""}, ylabel="dimensions", from_zero=True),
        _lines("SCAN loss",
               "The consistency loss minus λ times the entropy. The model kept is the head and epoch with the lowest "
               "validation loss. Validation images are not augmented, so their loss is lower.",
               plots["cluster"], {"loss": "train, mean over heads", "val_loss": "val, best head"}),
        _lines("Confident training images",
               "The number of training images whose most probable cluster has a probability above the threshold. "
               "Self-labeling ends when the number stops growing.",
               selflabel, {"confident": ""}, ylabel="images", from_zero=True),
        _lines("Stability of the clusters in self-labeling",
               "The share of validation images that stay in their cluster from one epoch to the next. It approaches "
               "100% as the clusters settle.",
               selflabel, {"agreement": ""}, ylabel="% of the images", percent=True),
        _clusters_used(selflabel, clusters),
        _lines("Accuracy after each epoch of the SCAN loss",
               "The accuracy on validation images, computed afterward from stored clusters. No choice depends on it.",
               plots["accuracy_cluster"], {"acc": ""}, ylabel="ACC in %", percent=True),
        _lines("Accuracy after each epoch of self-labeling",
               "The accuracy on validation images. Epoch 0 is the model from before self-labeling.",
               plots["accuracy_selflabel"], {"acc": ""}, ylabel="ACC in %", percent=True),
        _lines("Accuracy at coverage",
               "The accuracy on that share of the images whose clusters are most probable. At 100% coverage it is the "
               "accuracy on all images.",
               plots["accuracy_at_coverage"],
               {name: titles[name] for name in ("cluster", "selflabel") if name in titles},
               x="coverage", xlabel="coverage: % of the images, the most confident first", ylabel="ACC in %",
               percent=True),
        confusion(plots["confusion"], names, numbers),
        _purity(plots["purity"]),
        sizes(plots["sizes"], numbers),
        tree(plots["tree"], names, numbers),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _lines(
    title: str, text: str, rows: Rows, series: dict[str, str], *, x: str = "epoch", xlabel: str = "",
    ylabel: str = "loss", from_zero: bool = False, percent: bool = False, marker: str | None = None,
) -> Chart:  # fmt: skip
    """Up to two columns of ``rows`` over column ``x``; ``series`` is column → name in the legend.

    ``percent``: the values are shares. Empty if there are no rows or a column is missing.
    """
    if not rows or not series.keys() <= rows[0].keys():
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    # The second line is dashed, so that both are seen if they are equal.
    for (column, label), color, style in zip(series.items(), (BLUE, ORANGE), ("-", "--"), strict=False):
        values = [(100 if percent else 1) * float(row[column]) for row in rows]
        axis.plot([int(row[x]) for row in rows], values, color=color, label=label, linestyle=style, linewidth=1.5,
                  marker=marker or ("o" if len(rows) == 1 else None))  # fmt: skip
    axis.set(xlabel=xlabel or x, ylabel=ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    low, high = axis.get_ylim()
    if from_zero:
        axis.set_ylim(0, 1.05 * high)
    elif percent:
        spare = max(MIN_RANGE - (high - low), 0) / 2
        axis.set_ylim(low - spare, min(high + spare, 101))
    if len(series) > 1:
        axis.legend()
    return chart_of(title, text, figure)


def _clusters_used(rows: Rows, clusters: int) -> Chart:
    """Empty if no cluster was ever empty: the line would be at the top everywhere."""
    if all(int(row["clusters_used"]) == clusters for row in rows):
        return {}
    text = f"The number of clusters that hold a validation image, of {clusters}, after each epoch of self-labeling."
    return _lines("Clusters in use", text, rows, {"clusters_used": ""}, ylabel="clusters", from_zero=True)


def _purity(rows: Rows) -> Chart:
    drawn = [{name: float("nan") if value == "" else value for name, value in row.items()} for row in rows]
    return _lines("Purity of the neighbors", "The share of an image's k nearest neighbors that are of its own class.",
                  drawn, {"train": "train", "val": "val"}, x="k", xlabel="k neighbors", ylabel="purity in %",
                  percent=True, marker="o")  # fmt: skip
