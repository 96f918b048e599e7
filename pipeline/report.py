"""The report page and the picture of the clusters. Byte-stable: no time, no random ids."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.artifacts import STEPS
from pipeline.params import Params

plt.rcParams.update({
    "svg.hashsalt": "scan",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
})  # fmt: skip

BLUE, ORANGE = "#2563ab", "#d9822b"
SAMPLES_EACH = 12
MAX_CLUSTERS_DRAWN = 50
MEASURES = {
    "acc": "ACC",
    "acc_many_to_one": "ACC, many to one",
    "nmi": "NMI",
    "ari": "ARI",
    "ami": "AMI",
    "top5": "top 5",
    "clusters_alive": "clusters alive",
    "confident_share": "confident",
}
# What the two splits are under each protocol, for people.
SPLIT_TITLES = {
    "split": {"val": "Validation images", "train": "Training images"},
    "all": {"val": "The tenth by which models were chosen", "train": "All images"},
}


def draw_samples(
    path: Path, pixels_of: Callable[[np.ndarray], np.ndarray], probabilities: np.ndarray, names: dict[int, str]
) -> None:
    """A PNG with one row a cluster: its most confident images, from left to right.

    ``pixels_of`` gives (n,height,width,channels) uint8 for (n,) rows of ``probabilities`` (N,C).
    """
    clusters = probabilities.argmax(axis=1)
    sizes = np.bincount(clusters, minlength=probabilities.shape[1])
    shown = [int(cluster) for cluster in np.argsort(-sizes, kind="stable")[:MAX_CLUSTERS_DRAWN] if sizes[cluster]]
    if names:
        shown.sort(key=lambda cluster: (cluster not in names, names.get(cluster, ""), cluster))
    figure, axes = plt.subplots(
        len(shown), SAMPLES_EACH, figsize=(SAMPLES_EACH * 0.55 + 1.9, len(shown) * 0.58), squeeze=False
    )
    for row, cluster in enumerate(shown):
        members = np.flatnonzero(clusters == cluster)
        best = members[np.argsort(-probabilities[members, cluster], kind="stable")][:SAMPLES_EACH]
        pictures = pixels_of(best)
        for column, axis in enumerate(axes[row]):
            axis.axis("off")
            if column < len(best):
                image = pictures[column]
                axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        title = f"cluster {cluster}" + (f", class {names[cluster]}" if cluster in names else "")
        text = f"{title}\n{sizes[cluster]:,} images"
        axes[row, 0].text(-0.35, 0.5, text, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(
        left=1.75 / figure.get_figwidth(), right=0.99, top=0.99, bottom=0.01, wspace=0.06, hspace=0.1
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def write_report(
    path: Path,
    params: Params,
    stats: dict[str, Any],
    metrics: dict[str, dict[str, Any]],
    reported: str,
    kept: dict[str, str],
    names: dict[int, str],
    plots: dict[str, list[dict[str, Any]]],
    samples: Path,
) -> None:
    """One HTML page that needs no other file."""
    template = jinja2.Template(
        Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    tables = {
        split: [(label, [_cell(metrics[split][step], measure) for measure in _measures(metrics[split])])
                for step, label in STEPS.items()]
        for split in (reported, "val" if reported == "train" else "train")
    }  # fmt: skip
    page = template.render(
        params=params.model_dump(mode="json"),
        stats=stats,
        kept=kept,
        headline=metrics[reported]["selflabel"],
        baseline=metrics[reported]["kmeans_pixels"],
        titles=SPLIT_TITLES[params.data.protocol],
        columns={split: [MEASURES[measure] for measure in _measures(metrics[split])] for split in tables},
        tables=tables,
        samples=base64.b64encode(samples.read_bytes()).decode(),
        charts=_charts(plots, names, params.cluster.num_clusters),
    )
    path.write_text(page, encoding="utf-8")


def _measures(scores: dict[str, Any]) -> list[str]:
    return [measure for measure in MEASURES if any(measure in scores[step] for step in STEPS)]


def _cell(scores: dict[str, float], measure: str) -> str:
    if measure not in scores:
        return "–"
    value = scores[measure]
    text = f"{value:g}" if measure == "clusters_alive" else f"{100 * value:.1f}"
    spread = scores.get(f"{measure}_std")
    if spread is None or (measure == "clusters_alive" and spread == 0):
        return text
    return f"{text} ± {spread:.1f}" if measure == "clusters_alive" else f"{text} ± {100 * spread:.1f}"


def _charts(plots: dict[str, list[dict[str, Any]]], names: dict[int, str], clusters: int) -> list[dict[str, str]]:
    """Title, what it shows, and an SVG, for every plot that has data."""
    charts = [
        _lines("Pretext loss", "NT-Xent of the two views, mean of each epoch.", plots["pretext"], {"loss": "train"}),
        _lines(
            "SCAN loss",
            "Consistency minus λ times entropy. The model kept is the head and epoch with the lowest validation loss; "
            "validation uses no augmentation, so its loss lies lower.",
            plots["cluster"], {"loss": "train, mean of the heads", "val_loss": "val, best head"},
        ),
        _lines(
            "Confident training images",
            "Those whose likeliest cluster is above the threshold; self-labelling ends when they grow no more.",
            plots["selflabel"], {"confident": ""},
        ),
        _lines("Accuracy after each epoch of the SCAN loss", "On validation images, from the assignments stored by "
               "the stage. No choice was made by it.", plots["accuracy_cluster"], {"acc": ""}),
        _lines("Accuracy after each epoch of self-labelling", "Epoch 0 is the model it started from.",
               plots["accuracy_selflabel"], {"acc": ""}),
        _confusion(plots["confusion"], names, clusters),
        _purity(plots["purity"]),
        _sizes(plots["sizes"]),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _lines(title: str, text: str, rows: list[dict[str, Any]], series: dict[str, str]) -> dict[str, str]:
    if not rows:
        return {}
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    epochs = [int(row["epoch"]) for row in rows]
    for (column, label), colour in zip(series.items(), (BLUE, ORANGE), strict=False):
        axis.plot(epochs, [float(row[column]) for row in rows], color=colour, label=label, linewidth=1.5,
                  marker="o" if len(rows) == 1 else None)  # fmt: skip
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(series) > 1:
        axis.legend()
    return {"title": title, "text": text, "svg": _svg(figure)}


def _confusion(rows: list[dict[str, Any]], names: dict[int, str], clusters: int) -> dict[str, str]:
    if not rows:
        return {}
    actual = sorted({row["actual"] for row in rows})
    predicted = sorted(set(names.values())) + [f"cluster {c}" for c in range(clusters) if c not in names]
    counts = np.zeros((len(actual), len(predicted)), dtype=int)
    for row in rows:
        counts[actual.index(row["actual"]), predicted.index(row["predicted"])] += 1
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    axis.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    axis.set(xlabel="class matched to the cluster", ylabel="class")
    few = max(counts.shape) <= 25
    if few:
        axis.set_xticks(range(len(predicted)), predicted, rotation=90 if max(map(len, predicted)) > 3 else 0)
        axis.set_yticks(range(len(actual)), actual)
        for i, j in zip(*np.nonzero(counts), strict=True):
            dark = counts[i, j] > counts[i].sum() / 2
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    text = "Clusters matched to classes one to one, on the images that are reported on."
    return {"title": "Confusion", "text": text, "svg": _svg(figure)}


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
    for split, colour, offset in (("train", BLUE, -0.2), ("val", ORANGE, 0.2)):
        mine = [row for row in rows if row["split"] == split]
        total = max(sum(row["images"] for row in mine), 1)
        shares = [100 * row["images"] / total for row in mine]
        axis.bar([row["cluster"] + offset for row in mine], shares, width=0.4, color=colour, label=split)
    axis.set(xlabel="cluster", ylabel="% of the images")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return {"title": "Cluster sizes", "text": "Share of each split's images in each cluster.", "svg": _svg(figure)}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
