"""What went where, as a picture: a flow from the groups of A to those of B, or, of many groups, a matrix."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from pipeline.comparing.difference import Difference
from pipeline.report.drawing import BLUE, ORANGE
from pipeline.report.group_charts import MAX_NAMED

WIDTH = 4.5  # inches between both sides of a flow
GRAY = "#555555"
BARS = 3.5  # inches of all bars of one side together
LINE, GAP = 0.17, 0.05  # inches: a line of text, and the least that is between two bars
BAR = 0.02  # the width of a bar, as a share of WIDTH
CELL = 0.12  # inches of a matrix's cell that has a name
MAX_DRAWN = 100  # rows or columns of a matrix that have names
LEAST, SMALL = 2.0, 6.0  # inches of a side of a matrix at least, and if it has no names
DOTS = 150  # per inch
LONGEST = 24  # characters of a group's title
MOST, OTHERS = "where a group went on", "all others"

Titles = tuple[list[str], list[str]]  # of the groups of A and of B


def draw_picture(found: Difference, path: Path) -> None:
    """Writes a PNG file, all of it or nothing: a flow for up to ``MAX_NAMED`` groups on each side, else a matrix."""
    rows, columns = order(found.counts)
    a, b = (
        [short(outcome.titled(groups[place]), LONGEST) for place in places]
        for outcome, groups, places in zip((found.a, found.b), found.groups, (rows, columns), strict=True)
    )
    # Of a long path the end says more.
    heads = f"A: {short(found.a.title[::-1], LONGEST)[::-1]}", f"B: {short(found.b.title[::-1], LONGEST)[::-1]}"
    counts = found.counts[np.ix_(rows, columns)]
    if max(counts.shape) <= MAX_NAMED:
        on = {(fate.group, part) for fate in found.fates for part, _ in fate.parts}
        main = np.array([[(found.groups[0][r], found.groups[1][c]) in on for c in columns] for r in rows])
        figure = flow(counts, main, (a, b), heads)
    else:
        figure = matrix(counts, (a, b), heads)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=DOTS, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    partial.replace(path)


def order(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of ``counts`` (A,B) in an order in which what has most images in common is near each other."""
    place = np.empty(counts.shape[1])
    place[np.argsort(-counts.sum(axis=0), kind="stable")] = np.arange(counts.shape[1])
    rows = np.lexsort((-counts.max(axis=1), place[counts.argmax(axis=1)]))  # by its largest part, the largest first
    # Of the group of which it has the largest share, not of the largest group, which has most images in many.
    shares = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
    columns = np.lexsort((-counts.max(axis=0), shares.argmax(axis=0)))
    return rows, columns


def short(name: str, longest: int) -> str:
    """``name`` in at most ``longest`` characters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def flow(counts: np.ndarray, main: np.ndarray, titles: Titles, heads: tuple[str, ...]) -> Figure:
    """Bars of the groups at both sides, and bands of the images between them.

    ``counts`` (A,B) images; where ``main`` (A,B) is true, a group has gone on.
    """
    sizes = counts.sum(axis=1), counts.sum(axis=0)
    per_image = BARS / counts.sum()
    slots = [np.maximum(size * per_image + GAP, LINE) for size in sizes]
    height = max(slot.sum() for slot in slots)
    figure, axis = plt.subplots(figsize=(WIDTH, height))
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(height, 0))
    figure.subplots_adjust(0, 0, 1, 1)
    tops = []
    for size, slot, names, x, side in zip(sizes, slots, titles, (0, 1 - BAR), ("right", "left"), strict=True):
        slot = slot + (height - slot.sum()) / len(slot)  # both sides are as high
        middle = np.cumsum(slot) - slot / 2
        tops.append(middle - size * per_image / 2)
        axis.bar(
            x, size * per_image, BAR, tops[-1], color=GRAY, linewidth=0.8, edgecolor=GRAY, align="edge"
        )  # one bar for each group
        for name, count, y in zip(names, size.tolist(), middle, strict=True):
            axis.text(-BAR if side == "right" else 1 + BAR, y, f"{name}  ({count:,})", ha=side, va="center", fontsize=8)
    for head, x, side in zip(heads, (0, 1), ("right", "left"), strict=True):
        axis.text(x, -LINE / 2, head, ha=side, va="bottom", fontsize=9, fontweight="bold")
    _bands(axis, counts * per_image, main, *tops)
    handles = [Rectangle((0, 0), 1, 1, color=color, alpha=0.5, linewidth=0) for color in (BLUE, ORANGE)]
    axis.legend(handles, (MOST, OTHERS), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=8)
    return figure


def _bands(axis: Axes, widths: np.ndarray, main: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """A band of ``widths`` (A,B) for each pair of groups, whose bars start at ``left`` (A,) and ``right`` (B,)."""
    start = left[:, None] + np.cumsum(widths, axis=1) - widths
    end = right + np.cumsum(widths, axis=0) - widths
    x, bend = (BAR, 1 - BAR), 0.5
    codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.CLOSEPOLY]
    for row, column in sorted(np.argwhere(widths).tolist(), key=lambda pair: -widths[tuple(pair)]):
        one, other, width = start[row, column], end[row, column], widths[row, column]
        points = [
            (x[0], one), (bend, one), (bend, other), (x[1], other),
            (x[1], other + width), (bend, other + width), (bend, one + width), (x[0], one + width), (x[0], one),
        ]  # fmt: skip
        color = BLUE if main[row, column] else ORANGE
        axis.add_patch(PathPatch(Curve(points, codes), facecolor=color, alpha=0.5, linewidth=0))


def matrix(counts: np.ndarray, titles: Titles, heads: tuple[str, ...]) -> Figure:
    """A row for each group of A, a column for each of B; a cell is dark if much of the row's group is there."""
    named = max(counts.shape) <= MAX_DRAWN
    down, across = (max(CELL * size, LEAST) if named else SMALL for size in counts.shape)
    figure, axis = plt.subplots(figsize=(across, down))
    figure.subplots_adjust(0, 0, 1, 1)
    # A cell is small, so that small shares are drawn darker.
    axis.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axis.grid(False)
    axis.set(xlabel=f"{heads[1]}, {counts.shape[1]} groups", ylabel=f"{heads[0]}, {counts.shape[0]} groups")
    axis.set_title("Darker: more of the group of A is in the group of B", fontsize=9, loc="left")
    if named:
        axis.set_xticks(range(counts.shape[1]), titles[1], rotation=90, fontsize=6)
        axis.set_yticks(range(counts.shape[0]), titles[0], fontsize=6)
        axis.tick_params(length=0)
    else:
        axis.set(xticks=[], yticks=[])
    return figure
