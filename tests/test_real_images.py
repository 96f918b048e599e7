"""Real photographs, their labels withheld, through the whole pipeline: a small network, few epochs.

``SCAN_TEST_IMAGES`` names the folder with cifar10-jpeg.tar.xz and tiny-imagenet-50.tar.xz; without it these tests skip.
"""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.project import OUTPUTS, STAGES, files, make_dvc_project, report_of, run, stages_run

pytestmark = pytest.mark.reproduction

SMALL = {
    "precision": "auto",
    "backbone": {"name": "convnet", "width": 8},
    "pretext": {"epochs": 1, "batch_size": 512, "projection": 32},
    "neighbors": {"k": 20},
    "cluster": {"epochs": 1, "heads": 2, "neighbors": 10, "batch_size": 512},
    "selflabel": {"epochs": 1, "batch_size": 512, "threshold": 0.3},
    "evaluate": {"kmeans_runs": 2},
}
ARCHIVES = [("cifar10-jpeg", 32, 10, 50_000, 10_000), ("tiny-imagenet-50", 64, 50, 25_000, 2_500)]


@pytest.mark.parametrize(("name", "size", "clusters", "train", "val"), ARCHIVES, ids=[each[0] for each in ARCHIVES])
def test_an_archive_goes_through_all_stages_without_labels(tmp_path, name, size, clusters, train, val):
    folder = os.environ.get("SCAN_TEST_IMAGES")
    archive = Path(folder or "", f"{name}.tar.xz").resolve()
    if not folder or not archive.exists():
        pytest.skip(f"set SCAN_TEST_IMAGES to the folder that holds {name}.tar.xz")
    data = {"name": "archive", "path": str(archive), "labels": "none", "size": size}
    changes = {**SMALL, "data": data, "cluster": {**SMALL["cluster"], "num_clusters": clusters}}
    project = make_dvc_project(tmp_path / "project", changes)
    done = run(project, "dvc", "repro", SCAN_THREADS="2")
    assert stages_run(done.stdout) == list(STAGES)
    assert files(project) == OUTPUTS
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    assert set(metrics["val"]["selflabel"]) == {"clusters_used", "confident_share"}
    assert metrics["val"]["neighbors"] == {}
    table = pq.read_table(project / "reports" / "predictions.parquet").to_pydict()
    assert (table["split"].count("train"), table["split"].count("val")) == (train, val)
    assert set(table["cluster"]) <= set(range(clusters))
    assert "accuracy" not in json.dumps(report_of(project)["more"]["scores"]).lower()
    assert stages_run(run(project, "dvc", "repro").stdout) == []
