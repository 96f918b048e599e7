"""Each stage by itself, in a tiny copy of the real project."""

import contextlib
import csv
import errno
import json
import math
import os
import signal
import sys
from pathlib import Path

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
    error_of,
    files,
    half_done,
    make_project,
    report_of,
    run,
    run_stage,
    run_stages,
    set_params,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which all stages have run."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    run_stages(project, "source", *STAGES)
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


def array(project, path):
    return np.load(project / "data" / f"{path}.npy")


def both_splits(project):
    """The rows of each split, their labels and embeddings."""
    rows = {split: array(project, f"images/{split}") for split in ("train", "val")}
    labels = array(project, "labels/labels")
    return rows, {split: labels[rows[split]] for split in rows}, {s: array(project, f"embeddings/{s}") for s in rows}


def predicted(project):
    """Each split's (N,) final clusters, in the order of its rows."""
    clusters = np.array(pq.read_table(project / "reports" / "predictions.parquet").sort_by("id")["cluster"])
    return {split: clusters[rows] for split, rows in both_splits(project)[0].items()}


def show(project):
    """What ``scan show`` prints."""
    return run(project, sys.executable, "-m", "pipeline.cli", "show").stdout


def test_the_stages_write_exactly_their_outputs(finished):
    assert files(finished) == OUTPUTS
    assert not [path for path in (finished / ".scan" / "outputs").rglob("*") if path.is_file()]
    assert not list((finished / ".scan" / "resume").rglob("*.pt"))


def test_metrics_hold_every_step_and_measure(finished):
    measures = {"neighbor_agreement", "silhouette", "linear_predictability"}
    steps = {"kmeans_pixels", "kmeans_embeddings", "cluster", "selflabel"}
    assert list(metrics(finished)) == ["train", "val"]
    for split, values in metrics(finished).items():
        assert set(values) == steps | {"neighbors", "quality"}, "labels were used without being asked for"
        assert set(values["quality"]) == measures | ({"heads_ari"} if split == "val" else set())
        wanted = {"acc", "nmi", "ari", "ami", "top5", "clusters_used", "confident_share"}
        assert set(values["cluster"]) == set(values["selflabel"]) == wanted
        assert {"acc", "acc_std", "nmi_std", "ari_std", "ami_std"} <= set(values["kmeans_pixels"])
        assert set(values["neighbors"]) == {f"purity_{k}" for k in (1, 5, 10, 20)}


def test_quality_is_that_of_the_final_clusters(finished):
    heads, embeddings = array(finished, "assignments/heads"), both_splits(finished)[2]
    for split, clusters in predicted(finished).items():
        neighbors = array(finished, f"neighbors/{split}")[:, :5]  # cluster.val_neighbors
        wanted = quality_scores(clusters, embeddings[split], neighbors, heads if split == "val" else None)
        assert metrics(finished)[split]["quality"] == pytest.approx(wanted)


def test_probes_use_labels_if_evaluate_probes_is_true_and_change_nothing_else(project):
    set_params(project, {"evaluate": {"probes": True}})
    before = metrics(project)
    run_stage(project, "evaluate")
    after, scores = metrics(project), report_of(project)["more"]["scores"]
    probes = after["val"].pop("uses_labels")
    assert after == before
    _, labels, embeddings = both_splits(project)
    wanted = probe_scores(embeddings["train"], labels["train"], embeddings["val"], labels["val"])
    assert probes == pytest.approx(wanted) and probes["knn_acc"] > 0.5
    assert [value for title, value in scores if "fitted with labels, on validation images:" in title] == [
        f"{100 * probes[name]:.1f} %" for name in ("knn_acc", "linear_probe_acc")
    ]
    assert "labels used, on embeddings: nearest neighbors" in show(project)
    first = read(project, OUTPUTS)
    run_stage(project, "evaluate")
    assert read(project, OUTPUTS) == first


def test_predictions_have_one_row_per_item(finished):
    table = pq.read_table(finished / "reports" / "predictions.parquet").to_pydict()
    columns = ["id", "source", "split", "content", "cluster", "probability", "runner_up", "runner_up_probability"]
    assert list(table) == [*columns, "state", "x", "y"] and set(table["state"]) <= {"sure", "to check", "fits nowhere"}
    assert 0 == min(table["x"]) <= max(table["x"]) == 1 and 0 == min(table["y"]) <= max(table["y"]) == 1
    assert sorted(table["source"]) == [f"digits/{row:04d}" for row in range(1797)]
    assert table["split"].count("val") == 342
    assert all(a >= b for a, b in zip(table["probability"], table["runner_up_probability"], strict=True))
    assert all(a != b for a, b in zip(table["cluster"], table["runner_up"], strict=True))


def test_without_pictures_none_go_to_mlflow_nor_names_of_files(project):
    set_params(project, {"evaluate": {"pictures": False}})
    run_stage(project, "evaluate")
    spool = max((project / ".scan" / "tracking").glob("*-evaluate-*"))
    names = {path.name for path in (spool / "files").rglob("*") if path.is_file()}
    assert "report.html" in names and not [name for name in names if name.endswith(".png")]
    (logged,) = (spool / "files").rglob("predictions.parquet")
    assert "source" not in pq.read_schema(logged).names and "content" in pq.read_schema(logged).names
    assert "source" in pq.read_schema(project / "reports" / "predictions.parquet").names and files(project) == OUTPUTS
    whole = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
    assert b"digits/00" not in whole and b"clusters.png" not in whole
    assert len(set(json.loads((spool / "example.json").read_text())["image"])) == 1, "they are black"


def plot(project, name):
    """The rows of a plot's data, as text."""
    with (project / "reports" / "plots" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("step", "first"), [("cluster", 1), ("selflabel", 0)])
def test_the_accuracy_plotted_is_that_of_each_epoch_s_clusters(finished, step, first):
    """Epoch 0 of self-labeling is the model that it starts from."""
    labels = both_splits(finished)[1]["val"]
    epochs = array(finished, f"assignments/{step}")
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
    run_stages(project, "cluster", "evaluate")
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
    labels, rows = both_splits(finished)[1], plot(finished, "purity")
    assert [int(row["k"]) for row in rows] == [1, 5, 10, 20]
    for split in ("train", "val"):
        same = labels[split][array(finished, f"neighbors/{split}")] == labels[split][:, None]
        assert [float(row[split]) for row in rows] == pytest.approx([same[:, :k].mean() for k in (1, 5, 10, 20)])


def test_the_sizes_plotted_are_those_of_the_final_clusters(finished):
    rows = plot(finished, "sizes")
    assert [int(row["cluster"]) for row in rows] == list(range(10))
    for split, clusters in predicted(finished).items():
        assert [int(row[split]) for row in rows] == np.bincount(clusters, minlength=10).tolist()


def test_more_images_than_exact_rows_are_mined_with_the_recall_that_is_wanted_and_logged(project):
    """The 1,455 of train; val's 342 are searched exactly, as before."""
    exact = {split: array(project, f"neighbors/{split}") for split in ("train", "val")}
    set_params(project, {"neighbors": {"exact_rows": 1000, "recall": 0.9}})
    run_stage(project, "neighbors")
    spool = max((project / ".scan" / "tracking").glob("*-neighbors-*/events.jsonl"))
    events = map(json.loads, spool.read_text().splitlines())
    logged = {key: value for event in events if event["event"] == "metrics" for key, value in event["values"].items()}
    found = {split: array(project, f"neighbors/{split}") for split in exact}
    shared = [len(set(one) & set(other)) / 20 for one, other in zip(exact["train"], found["train"], strict=True)]
    assert 0.9 <= logged["train_recall"] < 1 and logged["val_recall"] == 1
    assert np.mean(shared) == pytest.approx(logged["train_recall"], abs=0.02)
    assert np.array_equal(found["val"], exact["val"])


@pytest.mark.parametrize("stage", ["prepare", "evaluate"])
def test_a_second_run_gives_the_same_bytes(project, stage):
    before = read(project, OUTPUTS)
    run_stage(project, stage)
    assert [path for path, data in read(project, OUTPUTS).items() if before[path] != data] == []


def test_training_reads_no_labels(project):
    """Nor names of files, nor anything that is left of an earlier run; and a second run gives the same bytes."""
    before = read(project, OUTPUTS)
    kept = {path for path in OUTPUTS if path.startswith(("data/images/", *SOURCE_OUTPUTS))}
    for path in OUTPUTS - kept:
        (project / path).unlink()
    run_stages(project, "pretext", "embed", "neighbors", "groups", "cluster", "selflabel")
    folders = ("data/embeddings/", "data/neighbors/", "data/groups.json", "data/assignments/", "models/")
    histories = {f"reports/plots/{name}.csv" for name in ("pretext", "cluster", "cluster_heads", "selflabel")}
    made, of_evaluate = read(project, files(project) - kept), {"models/belonging.safetensors"}
    assert set(made) == {path for path in OUTPUTS if path.startswith(folders)} - of_evaluate | histories
    assert [path for path in made if made[path] != before[path]] == []


def test_without_labels_everything_runs_and_scores_that_need_labels_are_absent(project):
    np.save(project / "data" / "labels" / "labels.npy", np.full(1797, -1))
    (project / "data" / "labels" / "classes.json").write_text("[]")
    set_params(project, {"evaluate": {"probes": True}})
    quality = metrics(project)["val"]["quality"]
    run_stage(project, "evaluate")
    values = metrics(project)
    assert set(values["val"]["selflabel"]) == {"clusters_used", "confident_share"}
    assert values["val"]["neighbors"] == {} and "uses_labels" not in values["val"]
    assert values["val"]["quality"] == quality
    report = report_of(project)
    said = json.dumps([report["more"]["scores"], report["more"]["charts"], report["groups"]]).lower()
    assert "accuracy" not in said and "clusters in use" in said and "neighbor agreement" in said
    assert report["images"]["label"] == [] and not report["run"]["labels"] and "fitted with labels" not in said
    assert files(project) == OUTPUTS
    said = show(project)
    assert "ACC" not in said and "labels used" not in said
    assert f"without labels: neighbor agreement {quality['neighbor_agreement']:.1%}, linear predictability" in said


def test_other_counts_of_clusters_than_of_classes(project):
    """With more clusters than classes there are two accuracies, with fewer there is one."""
    for count, many in ((14, True), (3, False)):
        set_params(project, {"cluster": {"num_clusters": count}})
        run_stages(project, "groups", "cluster", "selflabel", "evaluate")
        for step in ("kmeans_pixels", "cluster", "selflabel"):
            assert ("acc_many_to_one" in metrics(project)["val"][step]) is many
        page = json.dumps(report_of(project)["more"]["scores"])
        assert ("many to one" in page) is many and f"With {count} groups for 10 classes" in page
        said = show(project)
        assert ("many to one" in said) is many and "AMI" in said
        assert ("top5" in metrics(project)["val"]["selflabel"]) is many


def test_without_pretext_and_self_labeling_and_with_one_head_the_rest_is_there(project):
    change = {"pretext": {"method": "none"}, "cluster": {"heads": 1, "epochs": 1}, "selflabel": {"epochs": 0}}
    set_params(project, change)
    run_stages(project, *STAGES[1:])
    assert files(project) == OUTPUTS
    assert (project / "reports" / "plots" / "pretext.csv").read_text() == "epoch\n"
    values = metrics(project)["val"]
    assert values["cluster"] == values["selflabel"] and "heads_ari" not in values["quality"]
    page = json.dumps(report_of(project)["more"])
    absent = ("Pretext loss", "Spread of the embeddings", "Confident training images", "Stability", "Head agreement")
    assert [title for title in absent if title in page] == []
    assert "SCAN loss" in page and "Accuracy after each epoch of self-labeling" in page


def test_protocol_all_trains_on_and_reports_every_image_but_scores_probes_on_a_tenth(project):
    set_params(project, {"data": {"protocol": "all"}, "evaluate": {"probes": True}})
    run_stages(project, *STAGES)
    assert [len(array(project, f"images/{split}")) for split in ("pretext", "train", "val")] == [1797, 1797, 179]
    table = pq.read_table(project / "reports" / "predictions.parquet").to_pydict()
    assert table["id"] == list(range(1797)) and set(table["split"]) == {"train"}
    report = json.dumps(report_of(project)["more"])
    assert "All images, in %" in report and "Validation images, in %" not in report
    assert "fitted with labels, on the tenth:" in report and "uses_labels" not in metrics(project)["train"]
    rows, labels, embeddings = both_splits(project)
    fit = ~np.isin(rows["train"], rows["val"])
    wanted = probe_scores(embeddings["train"][fit], labels["train"][fit], embeddings["val"], labels["val"])
    assert metrics(project)["val"]["uses_labels"] == pytest.approx(wanted)
    said = show(project)
    assert "All images, in %" in said and f"{100 * metrics(project)['train']['selflabel']['acc']:.1f}" in said


def test_in_several_shards_everything_comes_out_the_same(project, finished):
    set_params(project, {"data": {"shard_rows": 700}})
    run_stages(project, *STAGES)
    shards = sorted(path.name for path in (project / "data" / "images").glob("pixels-*"))
    assert shards == ["pixels-00000.npy", "pixels-00001.npy", "pixels-00002.npy"]
    same = {path for path in OUTPUTS if not path.startswith("data/images") and path != "reports/report.html"}
    assert {path for path in same if (project / path).read_bytes() != (finished / path).read_bytes()} == set()


WRITTEN = {
    "pretext": ("models/pretext.safetensors", "/pretext.csv"),
    "cluster": ("/cluster.safetensors", "assignments/cluster.npy", "plots/cluster.csv", "plots/cluster_heads.csv"),
    "selflabel": ("selflabel.safetensors", "models/selflabel.json", "assignments/selflabel.npy", "/selflabel.csv"),
}


def take(project, stage):
    """What a stage of training has written, by path; it is gone."""
    whole = read(project, [path for path in OUTPUTS if path.endswith(WRITTEN[stage])])
    for path in whole:
        (project / path).unlink()
    return whole


@pytest.mark.parametrize("stage", WRITTEN)
def test_killed_in_the_middle_of_its_one_epoch_and_run_again_gives_the_same_bytes(project, stage):
    set_params(project, {stage: {"epochs": 1, "batch_size": 16}})
    run_stage(project, stage)
    whole = take(project, stage)
    process = half_done(project, f"python -m stages.{stage}")
    process.kill()
    process.communicate()
    assert not (project / f"models/{stage}.safetensors").exists(), "it had finished before the kill"
    assert "resuming after step" in run_stage(project, stage).stderr
    assert read(project, whole) == whole


@pytest.mark.parametrize("stage", WRITTEN)
def test_what_waits_for_the_same_thing_takes_over_its_last_epoch(project, stage, monkeypatch):
    original, others = ScratchFolder.__init__, []

    def awaited(self, *arguments):
        original(self, *arguments)
        others.append(FileLock(self.folder.with_suffix(f".waiting-{len(others)}")))
        others[-1].acquire(timeout=0)

    monkeypatch.setattr(ScratchFolder, "__init__", awaited)
    run_stage(project, stage)
    whole = take(project, stage)
    again = run_stage(project, stage)
    assert "resuming after epoch" in again.stderr and " epoch " not in again.stderr.split("resuming after epoch")[1]
    assert read(project, whole) == whole


@pytest.mark.parametrize(("owner", "name"), [(Stage, "finish"), (Tracker, "close")], ids=["outputs", "records"])
def test_what_is_finished_stays_so_when_its_last_step_is_interrupted(project, monkeypatch, owner, name):
    before, original = read(project, OUTPUTS), getattr(owner, name)
    (project / "data" / "embeddings" / "val.npy").unlink()

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job in the background
    try:
        done = run_stage(project, "embed", check=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, heard)
    assert done.exit_code == 0 and "embed     done in" in done.stderr and "error" not in done.stderr
    assert ("warning: its records in MLflow may be incomplete (interrupted)" in done.stderr) == (owner is Tracker)
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
        assert error_of(project, "embed").startswith("embed: error: another embed runs in ") and half.exists()
    run_stage(project, "embed")
    assert not half.exists()


def test_a_changed_setting_does_not_resume(project):
    set_params(project, {"pretext": {"epochs": 12}})
    process = half_done(project, "python -m stages.pretext")
    process.kill()
    process.communicate()
    set_params(project, {"pretext": {"epochs": 3}})
    assert "resuming" not in run_stage(project, "pretext").stderr
    assert list((project / ".scan" / "resume").rglob("state-*.pt")), "the other run's state was lost"


BAD_INPUT = [
    ("neighbors", {"neighbors": {"k": 342}}, "neighbors.k is 342, but there are 342 images; at most 341"),
    ("cluster", {"cluster": {"num_clusters": 1}}, "cluster.num_clusters is 1"),
    ("pretext", {"pretext": {"batch_size": 1456}}, "pretext.batch_size is 1456, but there are 1455 images"),
    ("cluster", {"cluster": {"batch_size": 2000}}, "cluster.batch_size is 2000"),
    ("selflabel", {"selflabel": {"batch_size": 2000}}, "selflabel.batch_size is 2000"),
    ("pretext", {"pretext": {"optimizer": {"name": "sgd", "lr": 1e30}}}, "is nan in epoch"),
    # Said before the pretext task is trained, not after it.
    ("pretext", {"neighbors": {"k": 342}}, "neighbors.k is 342, but val, in which they are mined, has 342 images"),
    ("pretext", {"cluster": {"batch_size": 2000}}, "cluster.batch_size is 2000"),
    ("pretext", {"selflabel": {"batch_size": 2000}}, "selflabel.batch_size is 2000"),
]


@pytest.mark.parametrize(("stage", "change", "said"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_settings_end_in_one_line_and_leave_earlier_outputs(project, stage, change, said):
    before = read(project, OUTPUTS)
    set_params(project, change)
    assert said in error_of(project, stage)
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
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    del tensors["backbone.convs.0.weight"]
    save_file(tensors, path, metadata=metadata)


BROKEN = [
    ("embed", drop("models/pretext.safetensors"), "models/pretext.safetensors is missing"),
    ("neighbors", drop("data/embeddings/val.npy"), "data/embeddings/val.npy is missing; make it with: dvc repro embed"),
    ("cluster", rewrite("data/neighbors/train.npy", np.zeros((7, 20), np.int64)), "int64 (1455, any) is needed"),
    ("neighbors", rewrite("data/embeddings/train.npy", np.zeros((9, 4), np.float64)), "train.npy is float64 (9, 4)"),
    ("neighbors", rewrite("data/embeddings/train.npy", np.zeros((1455, 4), np.float32)), "first row 0 with 0"),
    ("evaluate", rewrite("data/labels/labels.npy", np.zeros(3, np.int64)), "data/labels/labels.npy is int64 (3,)"),
    ("embed", cut_weights, "the network alone has backbone.convs.0.weight"),
]


@pytest.mark.parametrize(("stage", "damage", "said"), BROKEN, ids=range(len(BROKEN)))
def test_broken_artifacts_end_in_one_line(project, stage, damage, said):
    damage(project)
    assert said in error_of(project, stage)
    assert "Traceback" in run_stage(project, stage, "--debug", check=False).stderr


@pytest.mark.parametrize("stage", STAGES)
def test_help_says_what_the_stage_does(finished, stage):
    said = run_stage(finished, stage, "--help").stdout
    assert "--debug" in said and len(said.split()) > 10
