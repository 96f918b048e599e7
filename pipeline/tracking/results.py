"""What evaluate sends to the run's row in MLflow: scores, model, description, files."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import scan_core
from pipeline import artifacts
from pipeline.fingerprint import git_commit
from pipeline.groups.file import model_digest
from pipeline.stage import Stage, flatten
from pipeline.tracking.checked import MODEL
from pipeline.tracking.execution import model_name, project_name
from pipeline.tracking.packaging import environment, example_of, groups_of, images_of, requirements


def log_scores(
    stage: Stage,
    metrics: dict[str, dict[str, Any]],
    stats: dict[str, Any],
    example: np.ndarray,
    about: dict[str, str],
) -> None:
    """Sends the scores and the packaged model to the run's row in MLflow, which takes them in while charts are drawn.

    ``example`` (n,height,width,channels) uint8 becomes the model's input example, ``about`` says how good it is. If the
    images are to stay here, it is black.
    """
    if not stage.params.evaluate.pictures:
        example = np.zeros_like(example)
    params, tracker, networks = stage.params, stage.tracker, artifacts.EMBEDDINGS / "networks"
    scores = {key: float(value) for key, value in flatten(metrics).items()}
    tracker.event("metrics", values=scores, step=0, parent=True)
    paths = {"model": artifacts.MODELS / "selflabel.safetensors", "belonging": stage.staged(artifacts.BELONGING)}
    paths |= {"networks": networks} if networks.exists() else {"pretext": artifacts.MODELS / "pretext.safetensors"}
    texts = {"images": images_of(stats, params.data.max_pixels, params.precision)}
    if groups := groups_of(stage.staged(artifacts.PREDICTIONS)):
        texts["groups"] = groups
    # Of frozen networks the model has the hashes.
    contents = [path.read_bytes() for name, path in paths.items() if name != "networks"] + list(texts.values())
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    about = about | {"scan.sha256": digest, "scan.commit": git_commit(), "scan.data": source_digest()}
    about[MODEL] = model_digest()
    files = {name: tracker.copy(path) for name, path in paths.items()}
    files |= {name: tracker.save(f"{name}.json", text) for name, text in texts.items()}
    tracker.event(
        "model",
        files=files,
        code=[tracker.copy(Path(scan_core.__file__).parent)],
        example=tracker.save("example.json", example_of(example)),
        requirements=requirements(params.backbone.name, networks.exists()),
        name=model_name(stage.root),
        about=about,
    )


def source_digest() -> str:
    """Which images were read: 16 characters."""
    source = artifacts.load_json(artifacts.SOURCE)
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]


def log_summary(stage: Stage, few: dict[str, float], verdict: dict[str, Any], counts: dict[str, int]) -> None:
    """Says in the run's row in MLflow what came out: its name, its headline, its images, a description."""
    from pipeline.report.words import what_to_try, why

    tracker, groups, project = stage.tracker, artifacts.load_json(artifacts.GROUPS), project_name(stage.root)
    tracker.event("metrics", values={f"headline/{name}": value for name, value in few.items()}, step=0, parent=True)
    said = f"ACC {100 * few['acc']:.1f}" if "acc" in few else verdict["word"]
    name = f"{groups['number']} groups · {said} · {project}"  # MLflow's table shows 22 characters of it
    tracker.event("tags", values={"mlflow.runName": name, "scan.verdict": verdict["word"]}, parent=True)
    data = stage.params.data
    where = data.path if data.path and stage.params.evaluate.pictures else data.name
    counts = {"num_rows": sum(counts.values()), **counts}
    tracker.event("dataset", name=project, digest=source_digest(), source=where, counts=counts)
    table = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in few.items())
    tried = what_to_try(verdict, groups)
    lines = [f"**{verdict['word'].upper()}**: {why(verdict)}." + (f" To try: {tried}." if tried else ""), ""]
    lines += ["| | |", "| --- | --- |", table]
    lines += ["", "![groups](get-artifact?path=clusters.png&run_uuid={run})"] * stage.params.evaluate.pictures
    tracker.event("note", text="\n".join(lines))


def log_files(stage: Stage) -> None:
    """Completes the run's row in MLflow: report, plots, environment, and the executions that made the run."""
    tracker, predictions = stage.tracker, stage.staged(artifacts.PREDICTIONS)
    logged = [stage.staged(each) for each in (artifacts.METRICS, artifacts.VERDICT, artifacts.REPORT, artifacts.PLOTS)]
    if stage.params.evaluate.pictures:
        logged += [predictions, *map(stage.staged, (artifacts.SAMPLES, artifacts.NEIGHBOR_SAMPLES))]
    for path in logged:
        tracker.artifact(path, parent=True)
    if not stage.params.evaluate.pictures:
        with tempfile.TemporaryDirectory() as folder:
            nameless = Path(folder) / predictions.name
            pq.write_table(pq.read_table(predictions).drop_columns(["source"]), nameless)
            tracker.artifact(nameless, parent=True)
    tracker.text("environment.json", json.dumps(environment(), indent=2, sort_keys=True), parent=True)
    stage.log_completion()
