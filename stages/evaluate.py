"""evaluate: what came out. The one stage besides prepare that reads labels."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.stage import Stage, command, flatten, run
from pipeline.tracking.packaging import environment, requirements

SPLITS = ("train", "val")
EXAMPLES = 4  # images logged with the model


def evaluate(stage: Stage) -> None:
    """Score clusters against labels where there are any; write reports/ and complete the run in MLflow."""
    from pipeline.report.page import write_report
    from pipeline.report.samples import draw_neighbors, draw_samples
    from scan_core.compute.device import configure_compute
    from scan_core.evaluation.probes import probe_scores
    from scan_core.evaluation.quality import quality_scores
    from scan_core.evaluation.scores import (
        accuracy_of_surest,
        kmeans_scores,
        model_scores,
        predicted_classes,
        purity_scores,
    )
    from scan_core.models.files import load_model
    from scan_core.models.inference import log_probabilities, small_pixels

    params = stage.params
    # What is reported on: the images held out, or all of them, of which val is then a part.
    reported = "train" if params.data.protocol == "all" else "val"
    compute = stage.use(configure_compute(params.precision, stage.device))
    images, rows, stats = stage.images(compute)
    labels = artifacts.load_array(artifacts.LABELS / "labels.npy", "int64", (stats["count"],))
    classes: list[str] = artifacts.load_json(artifacts.LABELS / "classes.json")
    kept = artifacts.load_json(artifacts.MODELS / "selflabel.json")
    split_rows = {split: rows[split].numpy() for split in SPLITS}
    split_labels = {split: labels[split_rows[split]] for split in SPLITS}
    clusters = params.cluster.num_clusters

    metrics: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    probabilities: dict[str, np.ndarray] = {}
    surest: dict[str, list[tuple[int, float]]] = {}
    for name in ("cluster", "selflabel"):
        model, _ = load_model(artifacts.MODELS / f"{name}.safetensors")
        for split in SPLITS:
            log_p = log_probabilities(model.to(compute.device), images, rows[split], compute)[0]
            probabilities[split] = log_p.exp().cpu().numpy()
            metrics[split][name] = model_scores(split_labels[split], probabilities[split], params.selflabel.threshold)
        surest[name] = list(accuracy_of_surest(split_labels[reported], probabilities[reported]))
    embeddings = {
        split: artifacts.load_array(artifacts.EMBEDDINGS / f"{split}.npy", "float32", (len(rows[split]), None))
        for split in SPLITS
    }
    flat = {split: small_pixels(images, rows[split]).numpy() for split in SPLITS}
    for name, features in {"kmeans_pixels": flat, "kmeans_embeddings": embeddings}.items():
        splits = {split: (features[split], split_labels[split]) for split in SPLITS}
        for split, scores in kmeans_scores(features["train"], splits, clusters, params.evaluate.kmeans_runs).items():
            metrics[split][name] = scores
    heads = artifacts.load_array(artifacts.ASSIGNMENTS / "heads.npy", "int32", (None, len(rows["val"])))
    nearest = {split: artifacts.load_neighbors(split, len(rows[split])) for split in SPLITS}
    for split in SPLITS:
        metrics[split]["neighbors"] = purity_scores(split_labels[split], nearest[split])
        metrics[split]["quality"] = quality_scores(
            probabilities[split].argmax(axis=1), embeddings[split], nearest[split][:, : params.cluster.val_neighbors],
            heads if split == "val" else None,
        )  # fmt: skip
    if params.evaluate.probes:
        apart = ~np.isin(split_rows["train"], split_rows["val"])  # under protocol all, val is a part of train
        probes = probe_scores(
            embeddings["train"][apart], split_labels["train"][apart], embeddings["val"], split_labels["val"]
        )
        if probes:
            metrics["val"]["uses_labels"] = probes
    artifacts.save_json(stage.out(artifacts.METRICS), metrics)

    def pixels_of(positions: np.ndarray) -> np.ndarray:
        """(n,height,width,channels) uint8 of positions in what is reported on."""
        return images.windows(rows[reported][positions]).permute(0, 2, 3, 1).cpu().numpy()

    log_scores(stage, metrics, pixels_of(np.arange(min(EXAMPLES, len(rows[reported])))))

    listed = ("train",) if reported == "train" else SPLITS
    write_predictions(
        stage.out(artifacts.PREDICTIONS),
        np.concatenate([split_rows[split] for split in listed]),
        np.concatenate([probabilities[split] for split in listed]),
    )
    matched = predicted_classes(split_labels[reported], probabilities[reported].argmax(axis=1), clusters)
    names = {cluster: classes[label] for cluster, label in matched.items()}
    plots = write_plots(stage, metrics, reported, split_labels, probabilities, surest, names, classes)

    draw_samples(stage.out(artifacts.SAMPLES), pixels_of, probabilities[reported], names)
    draw_neighbors(stage.out(artifacts.NEIGHBOR_SAMPLES), pixels_of, nearest[reported])
    write_report(
        stage.out(artifacts.REPORT), params, stats, metrics, reported, kept, names, plots,
        stage.staged(artifacts.SAMPLES), stage.staged(artifacts.NEIGHBOR_SAMPLES),
    )  # fmt: skip

    log_files(stage)


def write_predictions(path: Path, rows: np.ndarray, probabilities: np.ndarray) -> None:
    """A table with the two likeliest clusters of each of ``rows`` (N,); ``probabilities`` is (N,C)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scan_core.evaluation.metrics import likeliest

    items = pq.read_table(artifacts.require(artifacts.ITEMS / "items.parquet"))
    ranked = likeliest(probabilities, 2)
    surest = np.take_along_axis(probabilities, ranked, axis=1)  # (N,2)
    predictions = items.take(pa.array(rows))
    for column, name in enumerate(("", "runner_up")):
        predictions = predictions.append_column(name or "cluster", pa.array(ranked[:, column]))
        predictions = predictions.append_column(f"{name}_probability".lstrip("_"), pa.array(surest[:, column]))
    pq.write_table(predictions.sort_by("id"), path)


def write_plots(
    stage: Stage,
    metrics: dict[str, dict[str, Any]],
    reported: str,
    labels: dict[str, np.ndarray],
    probabilities: dict[str, np.ndarray],
    surest: dict[str, list[tuple[int, float]]],
    names: dict[int, str],
    classes: list[str],
) -> dict[str, list[dict[str, Any]]]:
    """The plots as data, for ``dvc plots`` and for the report: file name → rows."""
    from scan_core.evaluation.scores import PURITY_AT, accuracy_by_epoch

    clusters = probabilities["val"].shape[1]
    assigned = {split: values.argmax(axis=1) for split, values in probabilities.items()}
    plots: dict[str, list[dict[str, Any]]] = {}
    for name in ("cluster", "selflabel"):
        epochs = artifacts.load_array(artifacts.ASSIGNMENTS / f"{name}.npy", "int32", (None, len(labels["val"])))
        first = 1 if name == "cluster" else 0  # self-labelling also stores what it started from
        plots[f"accuracy_{name}"] = [
            {"epoch": epoch + first, "acc": acc} for epoch, acc in accuracy_by_epoch(labels["val"], epochs, clusters)
        ]
    plots["confusion"] = [
        {"actual": classes[label], "predicted": names.get(cluster, f"cluster {cluster}")}
        for label, cluster in zip(labels[reported].tolist(), assigned[reported].tolist(), strict=True)
        if label >= 0
    ]
    plots["surest"] = [
        {"percent": percent, "cluster": before, "selflabel": after}
        for (percent, before), (_, after) in zip(surest["cluster"], surest["selflabel"], strict=True)
    ]
    plots["purity"] = [
        {"k": k, "split": split, "purity": metrics[split]["neighbors"][f"purity_{k}"]}
        for split in SPLITS
        for k in PURITY_AT
        if f"purity_{k}" in metrics[split]["neighbors"]
    ]
    plots["sizes"] = [
        {"cluster": cluster, "split": split, "images": int((assigned[split] == cluster).sum())}
        for split in SPLITS
        for cluster in range(clusters)
    ]
    columns = {
        "accuracy_cluster": ["epoch", "acc"],
        "accuracy_selflabel": ["epoch", "acc"],
        "confusion": ["actual", "predicted"],
        "surest": ["percent", "cluster", "selflabel"],
        "purity": ["k", "split", "purity"],
        "sizes": ["cluster", "split", "images"],
    }
    for name, table in plots.items():
        artifacts.save_csv(stage.out(artifacts.PLOTS / f"{name}.csv"), table, columns[name])
    for name in ("pretext", "cluster", "selflabel"):
        plots[name] = list(artifacts.load_csv(artifacts.PLOTS / f"{name}.csv"))
    return plots


def log_scores(stage: Stage, metrics: dict[str, dict[str, Any]], example: np.ndarray) -> None:
    """Gives the run's row in MLflow its scores and the packaged model, which MLflow takes in while charts are drawn."""
    tracker = stage.tracker
    scores = {key: float(value) for key, value in flatten(metrics).items()}
    tracker.event("metrics", values=scores, step=0, parent=True)
    encoded = io.BytesIO()
    np.save(encoded, example)
    tracker.event(
        "model",
        weights=tracker.copy(artifacts.MODELS / "selflabel.safetensors"),
        code=[tracker.copy(Path("scan_core"))],
        example=tracker.save("example.npy", encoded.getvalue()),
        requirements=requirements(stage.params.backbone.name),
        name=f"scan-{stage.params.data.name}",
    )


def log_files(stage: Stage) -> None:
    """Completes the run's row in MLflow: report, plots, environment, and which executions made it."""
    tracker = stage.tracker
    pictures = (artifacts.SAMPLES, artifacts.NEIGHBOR_SAMPLES)
    for path in (artifacts.METRICS, artifacts.PREDICTIONS, artifacts.REPORT, *pictures, artifacts.PLOTS):
        tracker.artifact(stage.staged(path), parent=True)
    tracker.text("environment.json", json.dumps(environment(), indent=2, sort_keys=True), parent=True)
    stage.log_completion()


app = command("evaluate", evaluate)

if __name__ == "__main__":
    run(app)
