"""Each stage by itself, in a tiny copy of the real project."""

import contextlib
import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from pipeline.resume import ScratchFolder
from pipeline.stage import Stage
from pipeline.tracking.spool import Tracker
from scan_core.compute.device import configure_compute
from scan_core.evaluation.metrics import accuracy, match_clusters
from scan_core.evaluation.probes import probe_scores
from scan_core.evaluation.quality import quality_scores
from scan_core.models.files import load_model
from scan_core.models.inference import log_probabilities
from tests.project import (
    OUTPUTS,
    SOURCE_OUTPUTS,
    STAGES,
    environment,
    files,
    make_project,
    permuted_labels,
    run,
    run_stage,
    set_params,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which all seven stages have run."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    for stage in ("source", *STAGES):
        run_stage(project, stage)
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it that a test may break."""
    run(finished, "cp", "-r", ".", str(tmp_path / "project"))
    return tmp_path / "project"


def metrics(project):
    return json.loads((project / "reports" / "metrics.json").read_text())


def read(project, paths):
    return {path: (project / path).read_bytes() for path in paths}


def test_the_stages_write_exactly_their_outputs(finished):
    assert files(finished) == OUTPUTS
    assert not [path for path in (finished / ".scan" / "outputs").rglob("*") if path.is_file()]
    assert not list((finished / ".scan" / "resume").rglob("*.pt"))


def test_metrics_hold_every_step_and_measure(finished):
    values = metrics(finished)
    for split in ("train", "val"):
        steps = {"kmeans_pixels", "kmeans_embeddings", "cluster", "selflabel"}
        assert set(values[split]) == steps | {"neighbors", "quality"}, "labels were used without being asked for"
        measures = {"neighbor_agreement", "silhouette", "linear_predictability"}
        assert set(values[split]["quality"]) == measures | ({"heads_ari"} if split == "val" else set())
        for step in ("cluster", "selflabel"):
            wanted = {"acc", "nmi", "ari", "ami", "top5", "clusters_used", "confident_share"}
            assert set(values[split][step]) == wanted
        assert {"acc", "acc_std", "nmi_std", "ari_std", "ami_std"} <= set(values[split]["kmeans_pixels"])
        assert set(values[split]["neighbors"]) == {f"purity_{k}" for k in (1, 5, 10, 20)}


def test_quality_is_that_of_the_final_clusters(finished):
    table = pq.read_table(finished / "reports" / "predictions.parquet").to_pydict()
    cluster_of = dict(zip(table["id"], table["cluster"], strict=True))
    heads = np.load(finished / "data" / "assignments" / "heads.npy")
    for split in ("train", "val"):
        rows = np.load(finished / "data" / "images" / f"{split}.npy")
        clusters = np.array([cluster_of[row] for row in rows.tolist()])
        embeddings = np.load(finished / "data" / "embeddings" / f"{split}.npy")
        neighbors = np.load(finished / "data" / "neighbors" / f"{split}.npy")[:, :5]  # cluster.val_neighbors
        wanted = quality_scores(clusters, embeddings, neighbors, heads if split == "val" else None)
        assert metrics(finished)[split]["quality"] == pytest.approx(wanted)


def test_probes_use_labels_if_evaluate_probes_is_true_and_change_nothing_else(project):
    set_params(project, {"evaluate": {"probes": True}})
    before = metrics(project)
    run_stage(project, "evaluate")
    after, page = metrics(project), (project / "reports" / "report.html").read_text()
    probes = after["val"].pop("uses_labels")
    assert after == before
    _, labels, embeddings = both_splits(project)
    wanted = probe_scores(embeddings["train"], labels["train"], embeddings["val"], labels["val"])
    assert probes == pytest.approx(wanted) and probes["knn_acc"] > 0.5
    assert "Labels were used here" in page and f"{100 * probes['knn_acc']:.1f}%" in page
    said = run(project, sys.executable, "-m", "pipeline.cli", "show").stdout
    assert "labels used, on embeddings: nearest neighbors" in said
    first = read(project, OUTPUTS)
    run_stage(project, "evaluate")
    assert read(project, OUTPUTS) == first


def both_splits(project):
    rows = {split: np.load(project / "data" / "images" / f"{split}.npy") for split in ("train", "val")}
    labels = np.load(project / "data" / "labels" / "labels.npy")
    embeddings = {split: np.load(project / "data" / "embeddings" / f"{split}.npy") for split in rows}
    return rows, {split: labels[rows[split]] for split in rows}, embeddings


def test_predictions_have_one_row_per_item(finished):
    table = pq.read_table(finished / "reports" / "predictions.parquet").to_pydict()
    assert list(table) == ["id", "source", "split", "cluster", "probability", "runner_up", "runner_up_probability"]
    assert sorted(table["source"]) == [f"digits/{row:04d}" for row in range(1797)]
    assert table["split"].count("val") == 342
    assert all(a >= b for a, b in zip(table["probability"], table["runner_up_probability"], strict=True))
    assert all(a != b for a, b in zip(table["cluster"], table["runner_up"], strict=True))


def predicted(project):
    """Each split's (N,) final clusters, in the order of its rows."""
    clusters = np.array(pq.read_table(project / "reports" / "predictions.parquet").sort_by("id")["cluster"])
    return {split: clusters[rows] for split, rows in both_splits(project)[0].items()}


def plot(project, name):
    """The rows of a plot's data, as text."""
    with (project / "reports" / "plots" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("step", "first"), [("cluster", 1), ("selflabel", 0)])
def test_the_accuracy_plotted_is_that_of_each_epoch_s_clusters(finished, step, first):
    """Epoch 0 of self-labeling is the model that it starts from."""
    labels = both_splits(finished)[1]["val"]
    epochs = np.load(finished / "data" / "assignments" / f"{step}.npy")
    assert len(epochs) == 3 - first
    wanted = [(epoch, pytest.approx(accuracy(labels, each, 10))) for epoch, each in enumerate(epochs, first)]
    assert [(int(row["epoch"]), float(row["acc"])) for row in plot(finished, f"accuracy_{step}")] == wanted


def accuracy_at_coverage(project, step):
    """Of a saved model on the most confident 5, 10, … 100 % of val; clusters are matched on all of val."""
    labels = both_splits(project)[1]["val"]
    with contextlib.chdir(project):
        compute = configure_compute("fp32", "cpu")
        images, rows, _ = Stage.images(compute)
        model, _ = load_model(Path("models") / f"{step}.safetensors")
        probabilities = log_probabilities(model, images, rows["val"], compute)[0].exp().numpy()
    clusters = probabilities.argmax(axis=1)
    classes = match_clusters(labels, clusters, 10)
    correct = np.array([classes[cluster] == label for cluster, label in zip(clusters, labels, strict=True)])
    correct = correct[np.argsort(-probabilities.max(axis=1), kind="stable")]
    return [correct[: math.ceil(percent * len(correct) / 100)].mean() for percent in range(5, 101, 5)]


def test_the_accuracy_at_coverage_plotted_is_each_model_s_own(project):
    """If self-labeling is rejected, both models are the same. Here that of cluster is another, trained for longer."""
    set_params(project, {"cluster": {"epochs": 4}})
    for stage in ("cluster", "evaluate"):
        run_stage(project, stage)
    rows = plot(project, "accuracy_at_coverage")
    before, after = (accuracy_at_coverage(project, step) for step in ("cluster", "selflabel"))
    assert [int(row["coverage"]) for row in rows] == list(range(5, 101, 5)) and before != after
    assert [float(row["cluster"]) for row in rows] == pytest.approx(before)
    assert [float(row["selflabel"]) for row in rows] == pytest.approx(after)


def test_the_confusion_plotted_has_val_s_classes_and_a_name_for_each_cluster(finished):
    """As many images as possible are in a cluster with the name of their class."""
    labels, clusters = both_splits(finished)[1]["val"], predicted(finished)["val"]
    classes = json.loads((finished / "data" / "labels" / "classes.json").read_text())
    rows = plot(finished, "confusion")
    actual, names = [row["actual"] for row in rows], [row["predicted"] for row in rows]
    assert actual == [classes[label] for label in labels]
    assert len(set(zip(clusters, names, strict=True))) == len(set(clusters)) == len(set(names))
    assert np.mean(np.array(actual) == np.array(names)) == pytest.approx(accuracy(labels, clusters, 10))


def test_the_purity_plotted_is_the_share_of_neighbors_of_the_image_s_class(finished):
    labels, wanted = both_splits(finished)[1], []
    for split in ("train", "val"):
        nearest = np.load(finished / "data" / "neighbors" / f"{split}.npy")
        same = labels[split][nearest] == labels[split][:, None]
        wanted += [(k, split, pytest.approx(same[:, :k].mean())) for k in (1, 5, 10, 20)]
    assert [(int(row["k"]), row["split"], float(row["purity"])) for row in plot(finished, "purity")] == wanted


def test_the_sizes_plotted_are_those_of_the_final_clusters(finished):
    wanted = [
        (cluster, split, np.count_nonzero(clusters == cluster))
        for split, clusters in predicted(finished).items()
        for cluster in range(10)
    ]
    assert [(int(row["cluster"]), row["split"], int(row["images"])) for row in plot(finished, "sizes")] == wanted


def test_neighbors_are_mined_inside_their_split_without_the_image_itself(finished):
    for split, count in (("train", 1455), ("val", 342)):
        neighbors = np.load(finished / "data" / "neighbors" / f"{split}.npy")
        assert neighbors.shape == (count, 20) and neighbors.dtype == np.int64
        assert neighbors.min() >= 0 and neighbors.max() < count
        assert not (neighbors == np.arange(count)[:, None]).any()


def test_more_images_than_exact_rows_are_mined_with_the_recall_that_is_wanted_and_logged(project):
    """The 1,455 of train; val's 342 are searched exactly, as before."""
    exact = {split: np.load(project / "data" / "neighbors" / f"{split}.npy") for split in ("train", "val")}
    set_params(project, {"neighbors": {"exact_rows": 1000, "recall": 0.9}})
    run_stage(project, "neighbors")
    logged = {}
    for spool in sorted((project / ".scan" / "tracking").glob("*-neighbors-*/events.jsonl"))[-1:]:
        for event in map(json.loads, spool.read_text().splitlines()):
            logged |= event["values"] if event["event"] == "metrics" else {}
    found = {split: np.load(project / "data" / "neighbors" / f"{split}.npy") for split in exact}
    shared = np.mean(
        [len(set(one) & set(other)) / 20 for one, other in zip(exact["train"], found["train"], strict=True)]
    )
    assert 0.9 <= logged["train_recall"] < 1 and logged["val_recall"] == 1
    assert shared == pytest.approx(logged["train_recall"], abs=0.02)
    assert np.array_equal(found["val"], exact["val"])
    assert found["train"].min() >= 0 and not (found["train"] == np.arange(1455)[:, None]).any()


@pytest.mark.parametrize("stage", ["prepare", "pretext", "embed", "neighbors", "cluster", "selflabel", "evaluate"])
def test_a_second_run_gives_the_same_bytes(project, stage):
    before = read(project, OUTPUTS)
    run_stage(project, stage)
    after = read(project, OUTPUTS)
    assert [path for path in OUTPUTS if before[path] != after[path]] == []


def test_permuted_labels_change_no_byte_that_training_reads(project, tmp_path):
    secret = {path for path in OUTPUTS if path.startswith("data/labels/")}
    before = read(project, OUTPUTS)
    path = permuted_labels(tmp_path / "path")
    run(project, sys.executable, "-m", "stages.prepare", PYTHONPATH=path, SCAN_TRACKING="spool")
    after = read(project, OUTPUTS)
    assert {path for path in OUTPUTS if before[path] != after[path]} == {"data/labels/labels.npy"} <= secret


def test_training_reads_no_labels(project):
    """Nor names of files, nor anything that is left of an earlier run: of prepare's outputs the images alone."""
    before = read(project, OUTPUTS)
    kept = {path for path in OUTPUTS if path.startswith(("data/images/", *SOURCE_OUTPUTS))}
    for path in OUTPUTS - kept:
        (project / path).unlink()
    for stage in ("pretext", "embed", "neighbors", "cluster", "selflabel"):
        run_stage(project, stage)
    folders = ("data/embeddings/", "data/neighbors/", "data/assignments/", "models/")
    histories = {f"reports/plots/{name}.csv" for name in ("pretext", "cluster", "cluster_heads", "selflabel")}
    made = read(project, files(project) - kept)
    assert set(made) == {path for path in OUTPUTS if path.startswith(folders)} | histories
    assert [path for path in made if made[path] != before[path]] == []


def test_without_labels_everything_runs_and_scores_that_need_labels_are_absent(project):
    labels = np.load(project / "data" / "labels" / "labels.npy")
    np.save(project / "data" / "labels" / "labels.npy", np.full_like(labels, -1))
    (project / "data" / "labels" / "classes.json").write_text("[]")
    set_params(project, {"evaluate": {"probes": True}})
    quality = metrics(project)["val"]["quality"]
    run_stage(project, "evaluate")
    values = metrics(project)
    assert set(values["val"]["selflabel"]) == {"clusters_used", "confident_share"}
    assert values["val"]["neighbors"] == {} and "uses_labels" not in values["val"]
    assert values["val"]["quality"] == quality
    report = (project / "reports" / "report.html").read_text()
    assert "accuracy" not in report.lower() and "clusters in use" in report
    assert "Quality without labels" in report and "Labels were used" not in report
    assert files(project) == OUTPUTS
    said = run(project, sys.executable, "-m", "pipeline.cli", "show").stdout
    assert "ACC" not in said and "labels used" not in said
    assert f"without labels: neighbor agreement {quality['neighbor_agreement']:.1%}, linear predictability" in said


def test_other_counts_of_clusters_than_of_classes(project):
    """With more clusters than classes there are two accuracies, with fewer there is one."""
    for count, many in ((14, True), (3, False)):
        set_params(project, {"cluster": {"num_clusters": count}})
        for stage in ("cluster", "selflabel", "evaluate"):
            run_stage(project, stage)
        for step in ("kmeans_pixels", "cluster", "selflabel"):
            assert ("acc_many_to_one" in metrics(project)["val"][step]) is many
        page = (project / "reports" / "report.html").read_text()
        assert ("many to one" in page) is many and f"With {count} clusters for 10 classes" in page
        said = run(project, sys.executable, "-m", "pipeline.cli", "show").stdout
        assert ("many to one" in said) is many and "AMI" in said
        assert ("top5" in metrics(project)["val"]["selflabel"]) is many


def test_without_pretext_and_self_labeling_and_with_one_head_the_rest_is_there(project):
    change = {"pretext": {"method": "none"}, "cluster": {"heads": 1, "epochs": 1}, "selflabel": {"epochs": 0}}
    set_params(project, change)
    for stage in STAGES[1:]:
        run_stage(project, stage)
    assert files(project) == OUTPUTS
    assert (project / "reports" / "plots" / "pretext.csv").read_text() == "epoch\n"
    values = metrics(project)["val"]
    assert values["cluster"] == values["selflabel"] and "heads_ari" not in values["quality"]
    page = (project / "reports" / "report.html").read_text()
    absent = ("Pretext loss", "Spread of the embeddings", "Confident training images", "Stability", "Head agreement")
    assert [title for title in absent if title in page] == []
    assert "SCAN loss" in page and "Accuracy after each epoch of self-labeling" in page


def test_protocol_all_trains_on_and_reports_every_image(project):
    set_params(project, {"data": {"protocol": "all"}})
    for stage in STAGES:
        run_stage(project, stage)
    rows = {split: np.load(project / "data" / "images" / f"{split}.npy") for split in ("pretext", "train", "val")}
    assert len(rows["train"]) == len(rows["pretext"]) == 1797 and len(rows["val"]) == 179
    table = pq.read_table(project / "reports" / "predictions.parquet").to_pydict()
    assert table["id"] == list(range(1797)) and set(table["split"]) == {"train"}
    report = (project / "reports" / "report.html").read_text()
    assert "All images" in report and "accuracy on all images" in report and "alidation accuracy" not in report
    said = run(project, sys.executable, "-m", "pipeline.cli", "show").stdout
    assert "All images, in %" in said and f"{100 * metrics(project)['train']['selflabel']['acc']:.1f}" in said


def test_probes_under_protocol_all_are_scored_on_images_they_were_not_fitted_on(project):
    set_params(project, {"data": {"protocol": "all"}, "evaluate": {"probes": True}})
    for stage in STAGES:
        run_stage(project, stage)
    rows, labels, embeddings = both_splits(project)
    fit = ~np.isin(rows["train"], rows["val"])
    assert fit.sum() == 1797 - 179
    wanted = probe_scores(embeddings["train"][fit], labels["train"][fit], embeddings["val"], labels["val"])
    assert metrics(project)["val"]["uses_labels"] == pytest.approx(wanted)
    assert "uses_labels" not in metrics(project)["train"]
    page = (project / "reports" / "report.html").read_text()
    assert "accuracy on the tenth" in page


def test_in_several_shards_everything_comes_out_the_same(project, finished):
    set_params(project, {"data": {"shard_rows": 700}})
    for stage in STAGES:
        run_stage(project, stage)
    shards = sorted(path.name for path in (project / "data" / "images").glob("pixels-*"))
    assert shards == ["pixels-00000.npy", "pixels-00001.npy", "pixels-00002.npy"]
    same = {path for path in OUTPUTS if not path.startswith("data/images") and path != "reports/report.html"}
    assert {path for path in same if (project / path).read_bytes() != (finished / path).read_bytes()} == set()


def test_the_jpeg_store_goes_through_all_stages(project):
    set_params(project, {"data": {"store": "jpeg", "size": 16, "view": 12}})
    (project / "data" / "images" / "pixels-00000.npy").unlink()
    for stage in STAGES:
        run_stage(project, stage)
    stored = {"data/images/jpeg-00000.bin", "data/images/jpeg-00000.npy"}
    assert files(project) == OUTPUTS - {"data/images/pixels-00000.npy"} | stored
    assert json.loads((project / "data" / "images" / "stats.json").read_text())["view"] == 12
    assert metrics(project)["val"]["kmeans_pixels"]["acc"] > 0.5, "these are still digits"


WRITTEN = {
    "pretext": ("models/pretext.safetensors", "/pretext.csv"),
    "cluster": (
        "models/cluster.safetensors",
        "assignments/cluster.npy",
        "plots/cluster.csv",
        "plots/cluster_heads.csv",
    ),
    "selflabel": ("selflabel.safetensors", "models/selflabel.json", "assignments/selflabel.npy", "/selflabel.csv"),
}


@pytest.mark.parametrize("stage", ["pretext", "cluster", "selflabel"])
def test_killed_in_the_middle_of_its_one_epoch_and_run_again_gives_the_same_bytes(project, stage):
    set_params(project, {stage: {"epochs": 1, "batch_size": 16}})
    run_stage(project, stage)
    outputs = [path for path in OUTPUTS if path.endswith(WRITTEN[stage])]
    whole = read(project, outputs)
    for path in outputs:
        (project / path).unlink()

    env = environment(SCAN_TRACKING="spool", SCAN_SAVE_SECONDS="0", PYTHONUNBUFFERED="1")
    command = [sys.executable, "-m", f"stages.{stage}"]
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    saved = project / ".scan" / "resume"
    while not list(saved.rglob("state-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, "no state was saved before the end"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project / f"models/{stage}.safetensors").exists(), "it had finished before the kill"

    again = run_stage(project, stage)
    assert "resuming after step" in again.stderr
    assert read(project, outputs) == whole


@pytest.mark.parametrize("stage", ["pretext", "cluster", "selflabel"])
def test_what_waits_for_the_same_thing_takes_over_its_last_epoch(project, stage, monkeypatch):
    outputs = [path for path in OUTPUTS if path.endswith(WRITTEN[stage])]
    original, others = ScratchFolder.__init__, []

    def awaited(self, *arguments):
        original(self, *arguments)
        others.append(FileLock(self.folder.with_suffix(f".waiting-{len(others)}")))
        others[-1].acquire(timeout=0)

    monkeypatch.setattr(ScratchFolder, "__init__", awaited)
    run_stage(project, stage)
    whole = read(project, outputs)
    for path in outputs:
        (project / path).unlink()
    again = run_stage(project, stage)
    assert "resuming after epoch" in again.stderr and " epoch " not in again.stderr.split("resuming after epoch")[1]
    assert read(project, outputs) == whole


@pytest.mark.parametrize("when", ["while outputs are moved", "while MLflow is waited for"])
def test_what_is_finished_stays_so_when_it_is_interrupted(project, monkeypatch, when):
    before = read(project, OUTPUTS)
    (project / "data" / "embeddings" / "val.npy").unlink()
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
    finish, close = Stage.finish, Tracker.close

    def interrupted(original):
        def call(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            original(*arguments)

        return call

    if when == "while outputs are moved":
        monkeypatch.setattr(Stage, "finish", interrupted(finish))
    else:
        monkeypatch.setattr(Tracker, "close", interrupted(close))
    try:
        done = run_stage(project, "embed", check=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, heard)
    assert done.exit_code == 0 and "embed     done in" in done.stderr and "error" not in done.stderr
    assert ("warning: its records in MLflow may be incomplete (interrupted)" in done.stderr) == ("MLflow" in when)
    assert read(project, OUTPUTS) == before


@pytest.mark.parametrize(("stage", "output"), [("prepare", "images/stats.json"), ("embed", "embeddings/val.npy")])
def test_outputs_may_lie_on_another_disk(project, monkeypatch, stage, output):
    before, rename, refused = read(project, OUTPUTS), os.replace, []
    place = project / "data" / output
    place.with_name(f".{place.name}.partial").write_text("half")  # what a copy that was killed has left

    def across(source, target):
        if ".scan/outputs" in str(source):
            refused.append(source)
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", across)
    run_stage(project, stage)
    assert refused and read(project, OUTPUTS) == before
    assert not list(project.glob("data/**/.*.partial"))


def test_a_stage_that_is_at_work_is_left_alone(project):
    """A second one in the same folder would write the same outputs, and take the first one's unfinished ones away."""
    half = project / ".scan" / "outputs" / "embed" / "data" / "embeddings" / "train.npy"
    half.parent.mkdir(parents=True)
    half.touch()
    with FileLock(project / ".scan" / "embed.lock"):
        second = run_stage(project, "embed", check=False)
    assert second.exit_code == 1 and half.exists()
    assert second.stderr.startswith("embed: error: another embed runs in ")
    run_stage(project, "embed")
    assert not half.exists()


def test_a_changed_setting_does_not_resume(project):
    set_params(project, {"pretext": {"epochs": 12}})
    env = environment(SCAN_TRACKING="spool", SCAN_SAVE_SECONDS="0")
    process = subprocess.Popen([sys.executable, "-m", "stages.pretext"], cwd=project, env=env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((project / ".scan" / "resume").rglob("state-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    set_params(project, {"pretext": {"epochs": 3}})
    assert "resuming" not in run_stage(project, "pretext").stderr
    assert list((project / ".scan" / "resume").rglob("state-*.pt")), "the other run's state was lost"


BAD_INPUT = [
    ("neighbors", {"neighbors": {"k": 342}}, "neighbors.k is 342, but there are 342 images; at most 341"),
    ("cluster", {"cluster": {"num_clusters": 1}}, "cluster.num_clusters is 1"),
    (
        "cluster",
        {"cluster": {"neighbors": 21}},
        "cluster.neighbors is 21; at most neighbors.k, 20, is allowed",
    ),
    ("pretext", {"pretext": {"batch_size": 1456}}, "pretext.batch_size is 1456, but there are 1455 images"),
    ("cluster", {"cluster": {"batch_size": 2000}}, "cluster.batch_size is 2000"),
    # Said before the pretext task is trained, not after it.
    (
        "pretext",
        {"neighbors": {"k": 342}},
        "neighbors.k is 342, but val, in which they are mined, has 342 images",
    ),
    ("pretext", {"cluster": {"batch_size": 2000}}, "cluster.batch_size is 2000"),
    ("pretext", {"selflabel": {"batch_size": 2000}}, "selflabel.batch_size is 2000"),
    ("selflabel", {"selflabel": {"batch_size": 2000}}, "selflabel.batch_size is 2000"),
    ("pretext", {"pretext": {"optimizer": {"name": "sgd", "lr": 1e30}}}, "is nan in epoch"),
    ("evaluate", {"evaluate": {"kmeans_runs": 1}}, "evaluate.kmeans_runs is 1"),
]


@pytest.mark.parametrize(("given", "found"), [(None, "p/datasets"), ("mine", "p/mine"), ("/mine", "/mine")])
def test_named_sets_lie_in_the_project_also_where_an_experiment_runs_in_a_copy(monkeypatch, tmp_path, given, found):
    monkeypatch.delenv("SCAN_DATA", raising=False)
    if given:
        monkeypatch.setenv("SCAN_DATA", given)
    assert Stage.data_home.fget(SimpleNamespace(root=tmp_path / "p")) == tmp_path / found


@pytest.mark.parametrize(("stage", "change", "said"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_settings_end_in_one_line_and_leave_earlier_outputs(project, stage, change, said):
    before = read(project, OUTPUTS)
    set_params(project, change)
    done = run_stage(project, stage, check=False)
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.exit_code == 1 and len(errors) == 1
    assert errors[0].startswith(f"{stage}: error: ") and said in errors[0]
    assert "Traceback" not in done.stderr
    assert read(project, OUTPUTS) == before


def drop(path):
    return lambda project: (project / path).unlink()


def rewrite(path, array):
    return lambda project: np.save(project / path, array)


def cut_weights(project):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = project / "models" / "pretext.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del tensors["backbone.convs.0.weight"]
    save_file(tensors, path, metadata=metadata)


BROKEN = [
    ("embed", drop("models/pretext.safetensors"), "models/pretext.safetensors is missing"),
    ("neighbors", drop("data/embeddings/val.npy"), "data/embeddings/val.npy is missing; make it with: dvc repro embed"),
    ("cluster", rewrite("data/neighbors/train.npy", np.zeros((7, 20), np.int64)), "int64 (1455, any) is needed"),
    ("neighbors", rewrite("data/embeddings/train.npy", np.zeros((9, 4), np.float64)), "train.npy is float64 (9, 4)"),
    ("neighbors", rewrite("data/embeddings/train.npy", np.zeros((90, 4), np.float32)), "first row 0 with 0"),
    ("evaluate", rewrite("data/labels/labels.npy", np.zeros(3, np.int64)), "data/labels/labels.npy is int64 (3,)"),
    ("embed", cut_weights, "backbone.convs.0.weight is missing"),
]


@pytest.mark.parametrize(("stage", "damage", "said"), BROKEN, ids=range(len(BROKEN)))
def test_broken_artifacts_end_in_one_line(project, stage, damage, said):
    damage(project)
    done = run_stage(project, stage, check=False)
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert done.exit_code == 1 and len(errors) == 1 and said in errors[0]
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_stage(project, stage, "--debug", check=False).stderr


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_the_stage_does(finished, stage):
    said = run_stage(finished, stage, "--help").stdout
    assert "--debug" in said and len(said.split()) > 10
