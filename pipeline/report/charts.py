"""The charts of the report. Byte-stable: no time, no random ids."""

import io
from collections import Counter
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

plt.rcParams.update({
    "svg.hashsalt": "scan",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a class may be called $$
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
MAX_NAMED = 25  # rows or columns of the confusion; beyond, it is a picture alone
MAX_POINTS = 200  # a side of the picture
MAX_NAME = 16  # characters of a class's name
# What the loss of each pretext method is, for people.
PRETEXT_LOSSES = {
    "simclr": "NT-Xent of the two views",
    "moco": "InfoNCE of a query with its key, against the queue",
    "instance_discrimination": "NCE of each image with its entry in the memory bank",
    "rotation": "Cross-entropy of which of four rotations was applied",
    "byol": "Squared distance of the prediction to what the slow encoder makes of the other view, both ways",
}


def draw_charts(
    plots: dict[str, list[dict[str, Any]]], names: dict[int, str], clusters: int, method: str
) -> list[dict[str, str]]:
    """Title, what it shows, and an SVG, for every plot that has data. ``method`` is the pretext's."""
    charts = [
        _lines("Pretext loss", f"{PRETEXT_LOSSES.get(method, '')}, mean of each epoch.", plots["pretext"],
               {"loss": ""}),
        _lines("Spread of the embeddings",
               "Effective rank of a batch: over how many dimensions the embeddings are spread. A fall towards 1 is "
               "collapse: all images embed alike.",
               plots["pretext"], {"effective_rank": ""}, from_zero=True),
        _lines(
            "SCAN loss",
            "Consistency minus λ times entropy. The model kept is the head and epoch with the lowest validation loss; "
            "validation uses no augmentation, so its loss lies lower.",
            plots["cluster"], {"loss": "train, mean of the heads", "val_loss": "val, best head"},
        ),
        _lines(
            "Confident training images",
            "Those whose likeliest cluster is above the threshold; self-labelling ends when they grow no more.",
            plots["selflabel"], {"confident": ""}, from_zero=True,
        ),
        _lines("Stability of the clusters in self-labelling",
               "Share of validation images in the same cluster as an epoch before. It nears 1 as the clusters settle.",
               plots["selflabel"], {"agreement": ""}),
        _alive(plots["selflabel"], clusters),
        _lines("Accuracy after each epoch of the SCAN loss", "On validation images, from the assignments stored by "
               "the stage. No choice was made by it.", plots["accuracy_cluster"], {"acc": ""}),
        _lines("Accuracy after each epoch of self-labelling", "Epoch 0 is the model it started from.",
               plots["accuracy_selflabel"], {"acc": ""}),
        _surest(plots["surest"]),
        _confusion(plots["confusion"], names, clusters),
        _purity(plots["purity"]),
        _sizes(plots["sizes"]),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _lines(
    title: str, text: str, rows: list[dict[str, Any]], series: dict[str, str], from_zero: bool = False
) -> dict[str, str]:
    """Columns of ``rows`` by epoch, with their names in the legend; nothing where there are none."""
    if not rows or not series.keys() <= rows[0].keys():
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    epochs = [int(row["epoch"]) for row in rows]
    for (column, label), colour in zip(series.items(), (BLUE, ORANGE), strict=False):
        axis.plot(epochs, [float(row[column]) for row in rows], color=colour, label=label, linewidth=1.5,
                  marker="o" if len(rows) == 1 else None)  # fmt: skip
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if from_zero:
        axis.set_ylim(bottom=0)
    if len(series) > 1:
        axis.legend()
    return {"title": title, "text": text, "svg": _svg(figure)}


def _alive(rows: list[dict[str, Any]], clusters: int) -> dict[str, str]:
    """Only where some cluster was empty: a line at the top says nothing."""
    if all(int(row["clusters_alive"]) == clusters for row in rows):
        return {}
    text = f"Of {clusters}, on validation images, after each epoch of self-labelling."
    return _lines("Clusters in use", text, rows, {"clusters_alive": ""}, from_zero=True)


def _surest(rows: list[dict[str, Any]]) -> dict[str, str]:
    if not rows:
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    for column, label, colour in (("cluster", "SCAN loss", BLUE), ("selflabel", "+ self-label", ORANGE)):
        accuracies = [row[column] for row in rows]
        axis.plot([row["percent"] for row in rows], accuracies, color=colour, label=label, linewidth=1.5)
    axis.set(xlabel="% of the images, the surest first", ylabel="ACC", xlim=(0, 100))
    axis.legend()
    text = "How many are right of the surest images, by the probability of their cluster; at 100 % it is all of them."
    return {"title": "Accuracy of the surest images", "text": text, "svg": _svg(figure)}


def _confusion(rows: list[dict[str, Any]], names: dict[int, str], clusters: int) -> dict[str, str]:
    if not rows:
        return {}
    pairs = Counter((row["actual"], row["predicted"]) for row in rows)
    actual, predicted, matched = confusion_order(pairs, names, clusters)
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
    # Of many, each is too small to be seen: small shares are darkened.
    norm, extent = PowerNorm(1 if few else 0.5, 0, 1), (-0.5, len(predicted) - 0.5, len(actual) - 0.5, -0.5)
    axis.imshow(points, cmap="Blues", norm=norm, extent=extent, aspect="auto", interpolation="nearest")
    axis.grid(False)
    for edge, size, line in ((matched, len(predicted), axis.axvline), (matched, len(actual), axis.axhline)):
        if edge < size:
            line(edge - 0.5, color=ORANGE, linewidth=0.8)
    text = "Clusters matched to classes one to one, on the images that are reported on; darker: more of the class."
    if matched < len(predicted):
        text += " Right of the line: clusters left without a class, by their commonest."
    if matched < len(actual):
        text += " Below the line: classes left without a cluster."
    if block > 1:
        text += f" Each point is the largest of {block}×{block}."
    if few:
        size = 7 if max(counts.shape) <= 12 else 5
        across, down = ([short_name(name) for name in order] for order in (predicted, actual))
        axis.set(xlabel="class matched to the cluster", ylabel="class")
        axis.set_xticks(range(len(across)), across, rotation=90 if max(map(len, across)) > 3 else 0, fontsize=size + 1)
        axis.set_yticks(range(len(down)), down, fontsize=size + 1)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=colour)
    else:
        axis.set(xlabel=f"{len(predicted)} clusters", ylabel=f"{len(actual)} classes, by name", xticks=[], yticks=[])
    return {"title": "Confusion", "text": text, "svg": _svg(figure)}


def short_name(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def confusion_order(
    pairs: Counter[tuple[str, str]], names: dict[int, str], clusters: int
) -> tuple[list[str], list[str], int]:
    """Rows, columns, and how many of both are matched and come first, by name, so that they form the diagonal.

    ``pairs`` counts (class, class matched to the cluster or "cluster N"). Classes without a cluster follow by name,
    clusters without a class by the row of their commonest class.
    """
    classes = {actual for actual, _ in pairs}
    matched = sorted(set(names.values()) & classes)
    actual = matched + sorted(classes - set(matched))
    place = {name: row for row, name in enumerate(actual)}
    commonest: dict[str, int] = {}
    for (one, other), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        commonest.setdefault(other, place[one])
    spare = [f"cluster {cluster}" for cluster in range(clusters) if cluster not in names]
    spare.sort(key=lambda name: commonest.get(name, len(actual)))
    return actual, matched + spare, len(matched)


def _purity(rows: list[dict[str, Any]]) -> dict[str, str]:
    if not rows:
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    for split, colour in (("train", BLUE), ("val", ORANGE)):
        mine = [row for row in rows if row["split"] == split]
        axis.plot([row["k"] for row in mine], [row["purity"] for row in mine], "o-", color=colour, label=split)
    axis.set(xlabel="neighbours", ylabel="purity", ylim=(None, 1.0))
    axis.legend()
    text = "Share of mined neighbours that are of the image's own class."
    return {"title": "Purity of the neighbours", "text": text, "svg": _svg(figure)}


def _sizes(rows: list[dict[str, Any]]) -> dict[str, str]:
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    many = len({row["cluster"] for row in rows}) > MAX_CLUSTERS_DRAWN
    for split, colour, offset in (("train", BLUE, -0.2), ("val", ORANGE, 0.2)):
        mine = [row for row in rows if row["split"] == split]
        total = max(sum(row["images"] for row in mine), 1)
        shares = [100 * row["images"] / total for row in mine]
        if many:
            axis.plot(range(1, len(shares) + 1), sorted(shares, reverse=True), color=colour, label=split)
        else:
            axis.bar([row["cluster"] + offset for row in mine], shares, width=0.4, color=colour, label=split)
    axis.set(xlabel="clusters, the largest first" if many else "cluster", ylabel="% of the images")
    if many:
        axis.set_ylim(0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    text = "Share of each split's images in each cluster" + (", sorted in each split." if many else ".")
    return {"title": "Cluster sizes", "text": text, "svg": _svg(figure)}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
