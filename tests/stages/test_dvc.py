"""The whole pipeline under git, DVC and MLflow, tiny: what reruns, what is restored, what a user compares."""

import json

import numpy as np
import pytest

from pipeline.tracking.spool import spools, tracking_address
from tests.project import OUTPUTS, STAGES, files, make_dvc_project, permuted_labels, run, set_params, stages_run

pytestmark = pytest.mark.slow

LATER = ["cluster", "selflabel", "evaluate"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose pipeline has run under ``dvc repro`` and is committed. The tests go on from one another."""
    folder = make_dvc_project(tmp_path_factory.mktemp("dvc") / "project")
    done = run(folder, "dvc", "repro")
    assert stages_run(done.stdout) == list(STAGES)
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "ran")
    return folder


def client_of(project):
    import mlflow

    address = tracking_address(project)
    client = mlflow.MlflowClient(address, address)
    return client, client.get_experiment_by_name("project").experiment_id


def rows(project, kind):
    client, experiment = client_of(project)
    return client.search_runs([experiment], f"tags.`scan.kind` = '{kind}'")


def test_repro_writes_all_outputs_and_delivers_all_records(project):
    assert files(project) == OUTPUTS
    assert spools(project) == []


def test_the_row_in_mlflow_is_complete(project):
    (parent,) = rows(project, "pipeline")
    client, _ = client_of(project)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["cluster.neighbors"] == "5" and parent.data.params["pretext.optimizer.lr"]
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    assert parent.data.metrics["val.selflabel.acc"] == metrics["val"]["selflabel"]["acc"]
    for stage in STAGES:
        assert parent.data.tags[f"scan.made_by.{stage}"], stage
    assert {"pretext.loss", "cluster.best_val_loss", "selflabel.confident"} <= set(parent.data.metrics)
    assert parent.data.tags["scan.dvc_lock_sha256"]
    few = json.loads((project / "reports" / "headline.json").read_text())
    assert {name: parent.data.metrics[f"headline/{name}"] for name in few} == few
    assert parent.info.run_name == f"10 groups · ACC {100 * few['acc']:.1f} · project"
    assert {"mlflow.user", "mlflow.source.git.commit", "mlflow.source.git.branch"} <= set(parent.data.tags)
    assert parent.info.run_id in parent.data.tags["mlflow.note.content"]
    (used,) = parent.inputs.dataset_inputs
    assert used.dataset.name == "project" and json.loads(used.dataset.profile)["num_rows"] == 1797
    curve = client.get_metric_history(parent.info.run_id, "pretext.loss")
    assert [metric.step for metric in curve] == [1, 2, 3], "the pipeline's row has the curves"
    about = client.get_experiment_by_name("project").tags
    assert about["mlflow.experimentKind"] == "custom_model_development" and "headline" in about["mlflow.note.content"]
    logged = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    pages = {"metrics.json", "report.html", "clusters.png", "neighbors.png", "plots"}
    assert pages | {"environment.json", "dvc.lock"} <= logged
    children = {run.data.tags["scan.stage"]: run for run in rows(project, "stage")}
    assert set(children) == set(STAGES)
    history = client.get_metric_history(children["pretext"].info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]


def test_the_registered_model_gives_the_predictions(project, monkeypatch):
    import mlflow
    import pyarrow.parquet as pq

    client, _ = client_of(project)
    (version,) = client.search_model_versions("name = 'project'")
    few = json.loads((project / "reports" / "headline.json").read_text())
    assert version.tags["scan.acc"] == f"{few['acc']:.4g}" and len(version.tags["scan.sha256"]) == 64
    assert {"scan.verdict", "scan.commit", "scan.data"} <= set(version.tags)
    assert client.get_model_version_by_alias("project", "candidate").version == version.version
    assert "clusters.png" in version.description and f"models:/project/{version.version}" in version.description
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_address(project))
    mlflow.set_tracking_uri(tracking_address(project))
    model = mlflow.pyfunc.load_model(f"models:/project/{version.version}")
    assert {"cluster", "probability"} <= set(model.metadata.signature.outputs.input_names())
    assert model.metadata.saved_input_example_info is not None
    pixels = np.load(project / "data" / "images" / "pixels-00000.npy")
    table = pq.read_table(project / "reports" / "predictions.parquet").to_pydict()
    predicted = model.predict(pixels[table["id"]])
    assert predicted["cluster"].tolist() == table["cluster"]
    np.testing.assert_allclose(predicted["probability"], table["probability"], atol=1e-5)


def test_a_second_repro_runs_nothing_logs_nothing_and_leaves_git_clean(project):
    before = len(rows(project, "stage"))
    done = run(project, "dvc", "repro")
    assert stages_run(done.stdout) == []
    assert run(project, "git", "status", "--porcelain").stdout == ""
    assert len(rows(project, "stage")) == before


def test_an_experiment_reruns_only_what_its_setting_reaches(project):
    done = run(project, "dvc", "exp", "run", "-n", "fewer", "-S", "cluster.neighbors=3")
    assert stages_run(done.stdout) == LATER
    first, second = sorted(rows(project, "pipeline"), key=lambda row: row.info.start_time)
    assert (first.data.params["cluster.neighbors"], second.data.params["cluster.neighbors"]) == ("5", "3")
    assert set(first.data.metrics) == set(second.data.metrics), "rows of the UI do not compare"
    for stage in ("prepare", "pretext", "embed", "neighbors"):  # restored: the row points at who made them
        assert second.data.tags[f"scan.made_by.{stage}"] == first.data.tags[f"scan.made_by.{stage}"]
    assert second.data.metrics["pretext.loss"] == first.data.metrics["pretext.loss"]


def test_dvc_shows_and_compares_the_experiment(project):
    shown = run(project, "dvc", "exp", "show", "--csv").stdout
    assert "fewer" in shown and ",acc," in shown and "cluster.neighbors" in shown
    difference = json.loads(run(project, "dvc", "metrics", "diff", "--all", "--json").stdout)
    assert "acc" in difference["reports/headline.json"] and len(difference["reports/headline.json"]) <= 12
    parameters = json.loads(run(project, "dvc", "params", "diff", "--json").stdout)
    assert parameters["params.yaml"]["cluster.neighbors"] == {"old": 5, "new": 3, "diff": -2}
    run(project, "dvc", "plots", "diff", "HEAD", "-o", "dvc_plots")
    page = (project / "dvc_plots" / "index.html").read_text()
    for name in ("Pretext loss", "SCAN loss", "Confident training images", "Confusion", "Cluster sizes"):
        assert name in page


def test_going_back_restores_without_running(project):
    run(project, "git", "checkout", "-q", "--", "params.yaml", "dvc.lock")
    before = len(rows(project, "stage"))
    done = run(project, "dvc", "repro")
    assert stages_run(done.stdout) == [] and "is cached" in done.stdout
    assert len(rows(project, "stage")) == before
    assert run(project, "git", "status", "--porcelain").stdout == ""


def test_permuted_labels_rerun_prepare_and_evaluate_only(project, tmp_path):
    before = {path: (project / path).read_bytes() for path in OUTPUTS if not path.startswith("reports/")}
    path = permuted_labels(tmp_path / "path")
    run(project, "dvc", "repro", "--force", "--single-item", "prepare", PYTHONPATH=path)
    assert stages_run(run(project, "dvc", "repro").stdout) == ["evaluate"]
    changed = [path for path, data in before.items() if (project / path).read_bytes() != data]
    assert changed == ["data/labels/labels.npy"]
    run(project, "dvc", "repro", "--force", "--single-item", "prepare")
    run(project, "dvc", "repro")
    assert run(project, "git", "status", "--porcelain").stdout == ""


def test_a_wrong_setting_stops_repro_at_its_stage_and_earlier_outputs_come_back(project):
    before = {path: (project / path).read_bytes() for path in OUTPUTS}
    set_params(project, {"cluster": {"heads": 0}})
    failed = run(project, "dvc", "repro", check=False)
    assert failed.returncode != 0 and "cluster.heads is 0" in failed.stderr
    run(project, "git", "checkout", "-q", "--", "params.yaml")
    assert stages_run(run(project, "dvc", "repro").stdout) == []
    assert {path: (project / path).read_bytes() for path in OUTPUTS} == before


FEW = {
    "data": {"name": "folder", "path": "photos", "size": 8, "val_fraction": 0.25},
    "pretext": {"epochs": 1, "batch_size": 16},
    "neighbors": {"k": 5},
    "cluster": {"num_clusters": 2, "epochs": 1, "neighbors": 3, "val_neighbors": 3, "batch_size": 16},
    "selflabel": {"epochs": 1, "batch_size": 16},
}


def repro(project):
    """The stages that ``dvc repro`` executes, without waiting for MLflow."""
    return stages_run(run(project, "dvc", "repro", SCAN_TRACKING="spool").stdout)


def change(project, file, *replaced):
    text = (project / file).read_text(encoding="utf-8")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new, 1)
    (project / file).write_text(text, encoding="utf-8")


def test_a_text_in_the_code_reruns_nothing_and_a_number_reruns_from_its_stage(project, tmp_path):
    """Nor does a clone without any output, in which the lock is checked against the code."""
    other = ('"""', '"""Otherwise said. '), ("mined; lower it", "mined, so lower it")
    change(project, "scan_core/clustering/scan.py", *other)
    change(project, "scan_core/models/networks.py", ("\n\n\n", "\n\n\n# A comment.\n"))
    assert repro(project) == []
    run(project, "git", "commit", "-qam", "texts")
    run(tmp_path, "git", "clone", "-q", str(project), "clone")

    def check_lock():
        run(tmp_path / "clone", "dvc", "repro", "source")
        return run(tmp_path / "clone", "dvc", "repro", "--allow-missing", "--dry", check=False)

    checked = check_lock()
    assert checked.returncode == 0 and stages_run(checked.stdout) == []
    for folder in (project, tmp_path / "clone"):
        change(folder, "scan_core/clustering/scan.py", ("* imbalance(log_p, prior)", "* imbalance(log_p, prior) * 2"))
    checked = check_lock()
    assert checked.returncode != 0 and "failed to reproduce 'cluster'" in checked.stderr
    assert repro(project)[0] == "cluster"
    run(project, "git", "checkout", "-q", "--", "scan_core", "dvc.lock")
    assert repro(project) == []


def test_class_folders_are_labels_only_and_a_changed_folder_is_noticed(tmp_path):
    """Moved or renamed, prepare and evaluate rerun, and what training reads stays; another image reruns everything."""
    from PIL import Image

    project = make_dvc_project(tmp_path / "project", FEW)
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = project / "photos" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    assert repro(project) == list(STAGES)
    assert repro(project) == []
    read_by_training = [path for path in OUTPUTS if path.startswith(("data/images", "models"))]
    before = {path: (project / path).read_bytes() for path in read_by_training}
    labels = (project / "data" / "labels" / "labels.npy").read_bytes()

    (project / "photos" / "cats" / "1.png").rename(project / "photos" / "dogs" / "1.png")
    assert repro(project) == ["prepare", "evaluate"]
    assert (project / "data" / "labels" / "labels.npy").read_bytes() != labels
    (project / "photos" / "dogs").rename(project / "photos" / "a dog's life")
    assert repro(project) == ["prepare", "evaluate"]
    assert json.loads((project / "data" / "labels" / "classes.json").read_text()) == ["a dog's life", "cats"]
    assert {path: (project / path).read_bytes() for path in read_by_training} == before

    Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(project / "photos" / "new.png")
    assert repro(project) == list(STAGES)
    assert (project / "data" / "labels" / "labels.npy").read_bytes().count(b"\xff" * 8) == 1, "it lies in no class"
