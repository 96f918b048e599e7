"""The charts of the report as SVG. They hold no time and no random id, so that equal data gives equal bytes."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.artifacts import step_titles

plt.rcParams.update({
    "svg.hashsalt": "scan",
    "svg.fonttype": "none",  # text stays text, which the reader's browser shows in any script
    "text.parse_math": False,  # the name of a class may be $$
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
})  # fmt: skip

BLUE, ORANGE = "#2563ab", "#d9822b"
MAX_CLUSTERS_DRAWN = 50
MAX_NAMED = 25  # rows or columns of the confusion matrix; a larger one is drawn without numbers and names
MAX_POINTS = 200  # a side of its picture
MAX_NAME = 16  # characters of a class name
MIN_RANGE = 5  # percent on an axis: in a smaller range noise looks like a trend
PRETEXT_LOSSES = {
    "simclr": "NT-Xent loss between the two views of an image",
    "moco": "InfoNCE loss of each query with its key, against the keys in the queue",
    "instance_discrimination": "NCE loss of each image with its entry in the memory bank",
    "rotation": "Cross-entropy of predicting which of four rotations was applied",
    "adapted": "Cross-entropy of the groups on which methods agree, and of sure predictions for other images",
    "byol": "Squared distance between a view's prediction and the momentum encoder's projection of the other view",
}

Rows = list[dict[str, Any]]  # of a plot's CSV file; numbers may be text
Chart = dict[str, str]  # title, text and svg; empty if there is nothing to draw


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
        _numbers(plots["numbers"], groups),
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
        _confusion(plots["confusion"], names, numbers),
        _purity(plots["purity"]),
        _sizes(plots["sizes"], numbers),
        _tree(plots["tree"], names, numbers),
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
    return _chart(title, text, figure)


def _clusters_used(rows: Rows, clusters: int) -> Chart:
    """Empty if no cluster was ever empty: the line would be at the top everywhere."""
    if all(int(row["clusters_used"]) == clusters for row in rows):
        return {}
    text = f"The number of clusters that hold a validation image, of {clusters}, after each epoch of self-labeling."
    return _lines("Clusters in use", text, rows, {"clusters_used": ""}, ylabel="clusters", from_zero=True)


def _confusion(rows: Rows, names: dict[int, str], numbers: Sequence[int]) -> Chart:
    if not rows:
        return {}
    pairs = Counter((row["actual"], row["predicted"]) for row in rows)
    actual, predicted, matched = confusion_order(pairs, names, len(numbers))
    row_of, column_of = ({name: place for place, name in enumerate(order)} for order in (actual, predicted))
    counts = np.zeros((len(actual), len(predicted)), dtype=int)
    for (one, other), count in pairs.items():
        counts[row_of[one], column_of[other]] = count
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    shares = counts / counts.sum(axis=1, keepdims=True)
    few = max(counts.shape) <= MAX_NAMED
    block = -(-max(counts.shape) // MAX_POINTS)
    points = np.maximum.reduceat(np.maximum.reduceat(shares, range(0, shares.shape[0], block)),
                                 range(0, shares.shape[1], block), axis=1)  # fmt: skip
    # A cell of a large matrix is too small to be seen, so small shares are drawn darker.
    norm, extent = PowerNorm(1 if few else 0.5, 0, 1), (-0.5, len(predicted) - 0.5, len(actual) - 0.5, -0.5)
    axis.imshow(points, cmap="Blues", norm=norm, extent=extent, aspect="auto", interpolation="nearest")
    axis.grid(False)
    for edge, size, line in ((matched, len(predicted), axis.axvline), (matched, len(actual), axis.axhline)):
        if edge < size:
            line(edge - 0.5, color=ORANGE, linewidth=0.8)
    text = "Each row is a class, each column a group, under the class it is matched to. Darker: more of the class."
    if matched < len(predicted):
        text += " Right of the line: groups left without a class, ordered by their most frequent class."
    if matched < len(actual):
        text += " Below the line: classes left without a group."
    if block > 1:
        text += f" Each point shows the largest of {block}×{block} cells."
    if few:
        size = 7 if max(counts.shape) <= 12 else 5
        without = [f"group {numbers[int(name.removeprefix('cluster '))]}" for name in predicted[matched:]]
        across, down = ([short_name(name) for name in order] for order in (predicted[:matched] + without, actual))
        axis.set(xlabel="class matched to the group", ylabel="class")
        axis.set_xticks(range(len(across)), across, rotation=90 if max(map(len, across)) > 3 else 0, fontsize=size + 1)
        axis.set_yticks(range(len(down)), down, fontsize=size + 1)
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=color)
    else:
        axis.set(xlabel=f"{len(predicted)} groups", ylabel=f"{len(actual)} classes, by name", xticks=[], yticks=[])
    return _chart("Confusion matrix", text, figure)


def short_name(name: str) -> str:
    """``name`` in at most ``MAX_NAME`` characters."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def confusion_order(
    pairs: Counter[tuple[str, str]], names: dict[int, str], clusters: int
) -> tuple[list[str], list[str], int]:
    """Rows, columns, and how many of each are matched. Matched ones come first, by name, and form the diagonal.

    ``pairs`` counts (class, class matched to the cluster or "cluster N"). Classes without a cluster follow by name,
    clusters without a class by the row of their most frequent class.
    """
    classes = {actual for actual, _ in pairs}
    matched = sorted(set(names.values()) & classes)
    actual = matched + sorted(classes - set(matched))
    place = {name: row for row, name in enumerate(actual)}
    row_of: dict[str, int] = {}  # of the most frequent class of each column
    for (one, other), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        row_of.setdefault(other, place[one])
    unmatched = [f"cluster {cluster}" for cluster in range(clusters) if cluster not in names]
    unmatched.sort(key=lambda name: row_of.get(name, len(actual)))
    return actual, matched + unmatched, len(matched)


def _purity(rows: Rows) -> Chart:
    drawn = [{name: float("nan") if value == "" else value for name, value in row.items()} for row in rows]
    return _lines("Purity of the neighbors", "The share of an image's k nearest neighbors that are of its own class.",
                  drawn, {"train": "train", "val": "val"}, x="k", xlabel="k neighbors", ylabel="purity in %",
                  percent=True, marker="o")  # fmt: skip


def _sizes(rows: Rows, numbers: Sequence[int]) -> Chart:
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    many = len(rows) > MAX_CLUSTERS_DRAWN
    for split, color, offset in (("train", BLUE, -0.2), ("val", ORANGE, 0.2)):
        total = max(sum(row[split] for row in rows), 1)
        shares = [100 * row[split] / total for row in rows]
        if many:
            axis.plot(range(1, len(shares) + 1), sorted(shares, reverse=True), color=color, label=split)
        else:
            axis.bar([numbers[row["cluster"]] + offset for row in rows], shares, width=0.4, color=color, label=split)
    axis.set(xlabel="groups, the largest first" if many else "group", ylabel="% of the images")
    if many:
        axis.set_ylim(0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    text = "The share of each split's images in each group" + (", sorted within each split." if many else ".")
    return _chart("Group sizes", text, figure)


def _tree(rows: Rows, names: dict[int, str], numbers: Sequence[int]) -> Chart:
    """Empty if there are fewer than three groups, or too many to be told apart."""
    groups = len(rows) + 1
    if not 3 <= groups <= MAX_CLUSTERS_DRAWN:
        return {}
    clusters = len(numbers)
    joined = {clusters + number: row for number, row in enumerate(rows)}
    heights, order = dict[int, float](), list[int]()

    def place(node: int) -> float:
        """Draws the node's branches; returns the height of its line."""
        if node not in joined:
            order.append(node)
            heights[node] = float(len(order) - 1)
            return heights[node]
        row = joined[node]
        children = [int(row["first"]), int(row["second"])]
        ends = [place(child) for child in children]
        at = float(row["similarity"])
        for child, end in zip(children, ends, strict=True):
            start = float(joined[child]["similarity"]) if child in joined else left
            axis.plot([start, at], [end, end], color=BLUE, linewidth=1.2)
        axis.plot([at, at], ends, color=BLUE, linewidth=1.2)
        return sum(ends) / 2

    most, least = (float(row["similarity"]) for row in (rows[0], rows[-1]))
    left = max(most, least) + 0.06 * max(most - least, 0.01)
    figure, axis = plt.subplots(figsize=(4.6, max(2.8, 0.19 * groups + 0.8)))
    place(clusters + len(rows) - 1)
    labels = [f"{numbers[node]} {short_name(names[node])}" if node in names else str(numbers[node]) for node in order]
    axis.set_yticks(range(groups), labels, fontsize=8 if groups <= 25 else 6)
    axis.set(xlabel="mean similarity of their images", ylim=(groups - 0.5, -0.5))
    axis.set_xlim(left, min(most, least) - 0.06 * max(most - least, 0.01))
    axis.grid(axis="y", visible=False)
    return _chart(
        "Which groups are alike",
        "The most similar groups merge first, at the left. To read many groups "
        "as few, take together what has merged left of a line of your choice.",
        figure,
    )


def _numbers(rows: Rows, groups: dict[str, Any]) -> Chart:
    """The criterion at each number of groups that was tried; empty if the number was given."""
    if not rows:
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    numbers = [int(row["groups"]) for row in rows]
    axis.axvspan(
        groups["low"], groups["high"], color=BLUE, alpha=0.12, label=f"plausible: {groups['low']} to {groups['high']}"
    )
    axis.axvline(groups["number"], color=ORANGE, linewidth=1.2, label=f"taken: {groups['number']}")
    axis.plot(numbers, [float(row["score"]) for row in rows], color=BLUE, marker=".", linewidth=1.5)
    axis.set_xscale("log")
    ticks = [number for number in (2, 5, 10, 20, 50, 100, 200) if number <= numbers[-1]]
    axis.set_xticks(ticks, [str(number) for number in ticks])
    axis.minorticks_off()
    axis.set(xlabel="groups", ylabel="separation")
    axis.legend()
    return _chart(
        "How many groups",
        "How well separated the groups of the neighbor graph are if it is divided into so "
        "many. The number was estimated from this curve, without labels.",
        figure,
    )


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """Names are drawn without a warning for each character that no font has here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _chart(title: str, text: str, figure: Figure) -> Chart:
    buffer = io.StringIO()
    with any_script():
        figure.tight_layout()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return {"title": title, "text": text, "svg": svg[svg.index("<svg") :]}
