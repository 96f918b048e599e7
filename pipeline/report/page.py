"""The report page: one HTML file that needs no other. Byte-stable: no time, no random ids."""

import base64
from pathlib import Path
from typing import Any

import jinja2

from pipeline.artifacts import STEPS
from pipeline.params import Params
from pipeline.report.charts import MAX_CLUSTERS_DRAWN, draw_charts

MEASURES = {
    "acc": "ACC",
    "acc_many_to_one": "ACC, many to one",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "top5": "top 5",
    "clusters_alive": "clusters alive",
    "confident_share": "confident",
}
# What needs no label: name, what it says, whether it is a share.
QUALITY = {
    "heads_ari": (
        "Agreement of the heads, ARI",
        "Whether heads that started apart find the same groups. 1: the same; 0: alike by chance only. Low says that "
        "the data can be cut in other ways as well; high does not say that the groups are the ones wanted.",
        False,
    ),
    "neighbor_consistency": (
        "Neighbours together",
        "How many of each image's mined neighbours are in its cluster. The higher, the "
        "better; well below 100 %, clusters cut through what looks alike.",
        True,
    ),
    "silhouette": (
        "Silhouette",
        "How much nearer an image's embedding is to its own cluster than to the next one, -1 to 1. Below 0 it would "
        "fit another cluster better. For comparing runs that share the embeddings: others have another scale.",
        False,
    ),
    "linear_predictability": (
        "Told by a linear model",
        "Images whose cluster a linear model, fitted on others, tells from the frozen embedding. The higher, the "
        "better; near chance, clusters do not follow the embeddings.",
        True,
    ),
}
PROBES = {"knn_acc": "nearest neighbours (20, weighted)", "linear_probe_acc": "linear probe (logistic regression)"}
# What the two splits are under each protocol, for people.
SPLIT_TITLES = {
    "split": {"val": "Validation images", "train": "Training images"},
    "all": {"val": "The tenth by which models were chosen", "train": "All images"},
}
SHORT_TITLES = {"split": {"val": "validation", "train": "training"}, "all": {"val": "the tenth", "train": "all"}}


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
    neighbors: Path,
) -> None:
    """Fills in report.html.j2."""
    template = jinja2.Template(
        Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    splits = (reported, "val" if reported == "train" else "train")
    tables = {
        split: [(label, [_cell(metrics[split][step], measure) for measure in _measures(metrics[split])])
                for step, label in STEPS.items()]
        for split in splits
    }  # fmt: skip
    page = template.render(
        params=params.model_dump(mode="json"),
        stats=stats,
        kept=kept,
        headline=metrics[reported]["selflabel"],
        baseline=metrics[reported]["kmeans_pixels"],
        titles=SPLIT_TITLES[params.data.protocol],
        short_titles=[SHORT_TITLES[params.data.protocol][split] for split in splits],
        columns={split: [MEASURES[measure] for measure in _measures(metrics[split])] for split in tables},
        tables=tables,
        classes=len({row["actual"] for row in plots["confusion"]}),
        quality=quality_table(metrics, splits, plots["sizes"]),
        probes=[(label, f"{100 * metrics['val']['uses_labels'][name]:.1f} %") for name, label in PROBES.items()]
        if "uses_labels" in metrics["val"]
        else [],
        drawn=MAX_CLUSTERS_DRAWN,
        samples=_encoded(samples),
        neighbors=_encoded(neighbors),
        charts=draw_charts(plots, names, params.cluster.num_clusters, params.pretext.method),
    )
    path.write_text(page, encoding="utf-8")


def _encoded(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()


def quality_table(
    metrics: dict[str, dict[str, Any]], splits: tuple[str, str], sizes: list[dict[str, Any]]
) -> list[tuple[str, str, list[str]]]:
    """Name, meaning, and the cells of both ``splits`` and of chance, of each measure that either has.

    Chance is that of clusters of the same sizes in the first split, drawn without looking.
    """
    images = [row["images"] for row in sizes if row["split"] == splits[0]]
    shares = [count / max(sum(images), 1) for count in images]
    chance = {"neighbor_consistency": sum(share**2 for share in shares), "linear_predictability": max(shares)}
    table = []
    for measure, (name, meaning, is_share) in QUALITY.items():
        found = [metrics[split]["quality"].get(measure) for split in splits]
        if found != [None, None]:
            cells = [quality_cell(value, is_share) for value in (*found, chance.get(measure, 0.0))]
            table.append((name, meaning, cells))
    return table


def quality_cell(value: float | None, is_share: bool) -> str:
    """``93.1 %`` of a share, ``0.931`` of another measure; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_share else f"{value:.3f}" if value else "0"


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
