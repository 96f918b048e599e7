"""The charts of groups: which classes they hold, how large and how alike they are, and how many there should be."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from pipeline.report.drawing import BLUE, MAX_CLUSTERS_DRAWN, ORANGE, Chart, Rows, chart_of, short_name

MAX_NAMED = 25  # rows or columns of the confusion matrix; a larger one is drawn without numbers and names
MAX_POINTS = 200  # a side of its picture


def confusion(rows: Rows, names: dict[int, str], numbers: Sequence[int]) -> Chart:
    """Classes against groups; empty without labels."""
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
    return chart_of("Confusion matrix", text, figure)


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


def sizes(rows: Rows, numbers: Sequence[int]) -> Chart:
    """The share of each split that each group has."""
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
    return chart_of("Group sizes", text, figure)


def tree(rows: Rows, names: dict[int, str], numbers: Sequence[int]) -> Chart:
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
    return chart_of(
        "Which groups are alike",
        "The most similar groups merge first, at the left. To read many groups "
        "as few, take together what has merged left of a line of your choice.",
        figure,
    )


def numbers_tried(rows: Rows, groups: dict[str, Any]) -> Chart:
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
    return chart_of(
        "How many groups",
        "How well separated the groups of the neighbor graph are if it is divided into so "
        "many. The number was estimated from this curve, without labels.",
        figure,
    )
