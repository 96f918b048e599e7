"""evaluate: scores, predictions and the report. The only stage besides prepare that reads labels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.stage import Stage
from pipeline.tracking.results import log_files, log_scores, log_summary

if TYPE_CHECKING:
    from torch import Tensor

    from scan_core.compute.device import Compute
    from scan_core.evaluation.scores import SplitData
    from scan_core.images.store import Images

SPLITS = ("train", "val")
MODELS = ("cluster", "selflabel")  # the stages whose models are scored
EXAMPLES = 4  # images logged with the model


def evaluate(stage: Stage) -> None:
    """Score the clusters, against labels if there are any; write reports/ and complete the run in MLflow."""
    from pipeline.report.tables import reported_split
    from pipeline.review.report import write_report
    from scan_core.compute.device import configure_compute
    from scan_core.evaluation.scores import score_splits

    params = stage.params
    reported = reported_split(params.data.protocol)
    compute = stage.use(configure_compute(params.precision, stage.device))
    images, rows, stats = stage.images(compute)
    splits = load_splits(images, rows, stats["count"], compute)
    metrics = score_splits(
        splits, artifacts.load_number(), params.selflabel.threshold, params.cluster.val_neighbors,
        params.evaluate.kmeans_runs, params.evaluate.probes,
    )  # fmt: skip

    def pixels_of(positions: np.ndarray) -> np.ndarray:
        """(n,height,width,channels) uint8 of ``positions`` (n,) in the reported split."""
        return images.crops(rows[reported][positions]).permute(0, 2, 3, 1).cpu().numpy()

    artifacts.save_json(stage.out(artifacts.METRICS), metrics)
    verdict, states = judge(stage, splits, reported)
    few = headline(metrics, verdict, reported)
    artifacts.save_json(stage.out(artifacts.HEADLINE), few)
    write_predictions(stage.out(artifacts.PREDICTIONS), splits, states, places_on_map(splits, reported), reported)
    about = {"scan.verdict": verdict["word"], **{f"scan.{name}": f"{value:.4g}" for name, value in few.items()}}
    log_scores(stage, metrics, stats, pixels_of(np.arange(min(EXAMPLES, len(rows[reported])))), about)
    write_plots(stage, splits, metrics, pixels_of)
    write_report(stage.out(artifacts.REPORT), params, stage.now)
    log_summary(stage, few, verdict, {split: len(rows[split]) for split in SPLITS})
    log_files(stage)


def load_splits(images: "Images", rows: "dict[str, Tensor]", count: int, compute: "Compute") -> "dict[str, SplitData]":
    """The artifacts of train and val, and what both models predict for their images; ``count`` images are stored."""
    from scan_core.evaluation.scores import Prediction, SplitData
    from scan_core.models.files import is_of_frozen, load_frozen_head, load_model
    from scan_core.models.inference import log_probabilities, probabilities_of, small_pixels

    labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (count,))
    labeled = bool((labels >= 0).any())
    predictions: dict[str, dict[str, Prediction]] = {split: {} for split in SPLITS}
    embeddings = {
        split: artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (len(rows[split]), None))
        for split in SPLITS
    }
    firsts = {split: artifacts.load_first(split, len(rows[split])) for split in SPLITS}
    for name in MODELS:
        path = artifacts.MODELS / f"{name}.safetensors"
        if is_of_frozen(path):  # its network has seen each image once, for the embeddings
            head = load_frozen_head(path)
            found = {split: probabilities_of(head, embeddings[split]) for split in SPLITS}  # (N,C)
        else:
            model = load_model(path)[0].to(compute.device)
            log_p = {split: log_probabilities(model, images, rows[split], compute)[0] for split in SPLITS}
            found = {split: each.exp().cpu().numpy() for split, each in log_p.items()}
        for split in SPLITS:  # copies are where their first is
            predictions[split][name] = Prediction.of(found[split][firsts[split]])
    heads = artifacts.load_array(artifacts.ASSIGNMENTS / "heads.npy", "int32", (None, len(rows["val"])))
    splits = {}
    for split in SPLITS:
        size, index = len(rows[split]), rows[split].numpy()
        splits[split] = SplitData(
            rows=index,
            labels=labels[index],
            pixels=small_pixels(images, rows[split]).numpy() if labeled else np.empty((size, 0), np.float32),
            embeddings=embeddings[split],
            neighbors=artifacts.load_neighbors(split, size),
            predictions=predictions[split],
            heads=heads if split == "val" else None,
        )
    return splits


def judge(stage: Stage, splits: "dict[str, SplitData]", reported: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Writes and returns the verdict on the groups, and returns the state of each image by split. No label is seen.

    Also writes what tells the state of new images.
    """
    from scan_core.evaluation.belonging import fit_belonging, judge_images
    from scan_core.evaluation.verdict import judge_groups
    from scan_core.models.files import save_belonging

    train, near = splits["train"], {}
    for split, data in splits.items():
        shape = (len(data.rows), None)
        near[split] = (
            artifacts.load_array(artifacts.EMBEDDINGS / f"{split}_bank_similarity.npy", "float32", shape),
            artifacts.load_array(artifacts.EMBEDDINGS / f"{split}_bank.npy", "int64", shape),
        )
    distinct, number = np.unique(artifacts.load_first("train", len(train.rows))), artifacts.load_number()
    found = judge_groups(train.embeddings[distinct], train.final.cluster[distinct], number, stage.params.seed)
    bank = artifacts.load_array(artifacts.EMBEDDINGS / "bank.npy", "float16", (None, None))
    kept = distinct[: len(bank)]
    fitted = fit_belonging(near["train"][0][kept], train.final.cluster[kept], found)
    projected = stage.params.embed.features == "projector"
    lengths = artifacts.load_array(artifacts.EMBEDDINGS / "bank_lengths.npy", "float32", (len(bank), None))
    save_belonging(stage.out(artifacts.BELONGING), fitted, bank, lengths, projected)
    states = {split: judge_images(fitted, *near[split], data.final.cluster) for split, data in splits.items()}
    verdict = asdict(found) | {"images": dict(Counter(states[reported].tolist()))}
    artifacts.save_json(stage.out(artifacts.VERDICT), verdict)
    return verdict, states


def places_on_map(splits: "dict[str, SplitData]", reported: str) -> np.ndarray:
    """(N,2) float32 in [0,1]: the map of the images that have predictions, in the order of ``write_predictions``."""
    from scan_core.evaluation.layout import joined_neighbors, layout

    train, val = splits["train"], splits["val"]
    if reported == "train":
        return layout(train.embeddings, train.neighbors)
    bank = artifacts.load_array(artifacts.EMBEDDINGS / "bank.npy", "float16", (None, None), mmap=True)
    of_bank = np.unique(artifacts.load_first("train", len(train.rows)))[: len(bank)]
    near = artifacts.load_array(artifacts.EMBEDDINGS / "val_bank.npy", "int64", (len(val.rows), None))
    neighbors = joined_neighbors(train.neighbors, val.neighbors, of_bank[near])
    return layout(np.concatenate([train.embeddings, val.embeddings]), neighbors)


def headline(metrics: dict[str, dict[str, Any]], verdict: dict[str, Any], reported: str) -> dict[str, float]:
    """The numbers by which runs are compared: against labels if there are any, and without."""
    from scan_core.evaluation.belonging import NOWHERE, SURE

    scores, quality = metrics[reported], metrics["val"]["quality"] | metrics[reported]["quality"]
    found = {name: scores["selflabel"][name] for name in ("acc", "nmi", "ari") if name in scores["selflabel"]}
    found |= {"kmeans_acc": scores["kmeans_embeddings"]["acc"]} if found else {}
    states = verdict["images"]
    total = max(sum(states.values()), 1)
    found |= {"groups": len(verdict["groups"]), "strong_share": verdict["figures"].get("strong_share", 0.0)}
    found |= {"sure": states.get(SURE, 0) / total, "fits_nowhere": states.get(NOWHERE, 0) / total}
    kept = {"neighbor_agreement": "neighbor_agreement", "heads_ari": "head_agreement"}
    return found | {new: quality[name] for name, new in kept.items() if name in quality}


def write_predictions(
    path: Path, splits: "dict[str, SplitData]", states: dict[str, np.ndarray], places: np.ndarray, reported: str
) -> None:
    """One row per image: its item, its two most probable clusters, its state, its place on the map.

    Files that are no images follow. Those have their finding, such as rejected, in place of a split, and neither id nor
    cluster.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # If all images are reported on, they are those of train, and val is a part of them.
    names = ["train"] if reported == "train" else list(splits)
    parts = [splits[name] for name in names]
    items = pq.read_table(artifacts.require(artifacts.ITEMS / "items.parquet"))
    table = items.take(pa.array(np.concatenate([data.rows for data in parts])))
    clusters = np.concatenate([data.final.clusters for data in parts])
    probabilities = np.concatenate([data.final.probabilities for data in parts])
    for rank, (cluster, probability) in enumerate(artifacts.PREDICTED):
        table = table.append_column(cluster, pa.array(clusters[:, rank]))
        table = table.append_column(probability, pa.array(probabilities[:, rank]))
    table = table.append_column("state", pa.array(np.concatenate([states[name] for name in names])))
    for axis, name in enumerate(("x", "y")):
        table = table.append_column(name, pa.array(places[:, axis]))
    stored = set(items["source"].to_pylist())
    left_out = [row for row in artifacts.load_csv(artifacts.ITEMS / "findings.csv") if row["source"] not in stored]
    others = {"source": [row["source"] for row in left_out], "split": [row["kind"] for row in left_out]}
    columns = [
        pa.array(others.get(name, [None] * len(left_out)), table.schema.field(name).type) for name in table.column_names
    ]
    pq.write_table(pa.concat_tables([table.sort_by("id"), pa.table(columns, schema=table.schema)]), path)


def write_plots(
    stage: Stage,
    splits: "dict[str, SplitData]",
    metrics: dict[str, dict[str, Any]],
    pixels_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    """The data of the plots, and the pictures of clusters and neighbors."""
    from pipeline.groups.numbering import numbers_of_run
    from pipeline.report.samples import draw_neighbors, draw_samples
    from pipeline.report.tables import PLOT_COLUMNS, plot_tables, reported_split, without_markup
    from scan_core.evaluation.scores import predicted_classes

    params, data = stage.params, splits[reported_split(stage.params.data.protocol)]
    val = len(splits["val"].rows)
    classes: list[str] = artifacts.load_json(artifacts.LABELS / "classes.json")
    groups = artifacts.load_json(artifacts.GROUPS)
    matched = predicted_classes(data.labels, data.final, groups["number"])
    names = {cluster: classes[label] for cluster, label in matched.items()}
    assignments = {
        name: artifacts.load_array(artifacts.ASSIGNMENTS / f"{name}.npy", "int32", (None, val)) for name in MODELS
    }
    frozen = params.cluster.method == "frozen"
    candidates = artifacts.load_csv(artifacts.PLOTS / "cluster_heads.csv") if frozen else []
    plots = plot_tables(params, groups, splits, assignments, metrics, names, classes, candidates)
    for name, columns in PLOT_COLUMNS.items():
        artifacts.save_csv(stage.out(artifacts.PLOTS / f"{name}.csv"), without_markup(plots[name]), columns)
    numbers = numbers_of_run(stage.staged(artifacts.PREDICTIONS))
    draw_samples(stage.out(artifacts.SAMPLES), pixels_of, data.final, names, numbers)
    draw_neighbors(stage.out(artifacts.NEIGHBOR_SAMPLES), pixels_of, data.neighbors)


app = command("evaluate", evaluate)

if __name__ == "__main__":
    run(app)
