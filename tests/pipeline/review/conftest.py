"""A finished run of which the files exist that the page is made of."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.params import read_params
from pipeline.presets import find_preset, preset_text
from pipeline.report.page import PLOT_COLUMNS
from pipeline.review.images import StoredImages
from pipeline.review.more import PLOTS
from tests.pipeline.groups.conftest import write_run
from tests.project import ROOT

SIDE = 24
CLUSTERS = [0] * 10 + [1] * 7 + [2] * 5 + [None]
WORDS = ["strong", "weak", "none"]


def directions(seed=0):
    """Unit vectors (22,4) near the axis of each image's cluster."""
    found = np.eye(4)[[cluster for cluster in CLUSTERS if cluster is not None]]
    found = found + np.random.default_rng(seed).normal(0, 0.15, found.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write_whole_run(folder, labels=None):
    """Photos of one color each in ``folder``, and what stages make of them."""
    count = sum(cluster is not None for cluster in CLUSTERS)
    write_run(CLUSTERS, points=directions())
    table = pq.read_table(artifacts.PREDICTIONS)
    probability = pa.array(
        [None if each is None else 0.5 + 0.02 * row for row, each in enumerate(CLUSTERS)], pa.float32()
    )
    states = [None if each is None else ("to check" if row % 4 == 0 else "sure") for row, each in enumerate(CLUSTERS)]
    states[21] = "fits nowhere"
    for name, column in (("probability", probability), ("state", pa.array(states))):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, artifacts.PREDICTIONS)
    pixels = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    pixels[:] = (np.arange(count) * 10)[:, None, None, None]
    artifacts.save_array(artifacts.IMAGES / "pixels-00000.npy", pixels)
    stats = {"count": count, "store": "array", "size": SIDE, "view": SIDE, "channels": 3, "rows": [count]}
    artifacts.save_json(artifacts.IMAGES / "stats.json", {**stats, "mean": [0.5] * 3, "std": [0.5] * 3})
    copies = np.arange(count)
    copies[[3, 4]] = 2
    artifacts.save_array(artifacts.IMAGES / "copies.npy", copies)
    artifacts.save_array(artifacts.LABELS / "labels.npy", np.full(count, -1) if labels is None else np.array(labels))
    artifacts.save_json(artifacts.LABELS / "classes.json", ["cat", "dog"])
    artifacts.save_findings(artifacts.ITEMS / "findings.csv", [("a/22.jpg", "rejected", "it is cut off")])
    groups = [{"word": word, "size": CLUSTERS.count(number), "figures": {}} for number, word in enumerate(WORDS)]
    artifacts.save_json(
        artifacts.VERDICT,
        {"word": "weak", "figures": {"agreement": 0.62, "margin": 0.4}, "groups": groups, "images": {"sure": 16}},
    )
    scores = {"selflabel": {"clusters_used": 3}, "kmeans_embeddings": {}, "quality": {"silhouette": 0.25}}
    artifacts.save_json(artifacts.METRICS, {"train": scores, "val": scores})
    for name in PLOTS:
        artifacts.save_csv(artifacts.PLOTS / f"{name}.csv", [], PLOT_COLUMNS.get(name, ["epoch"]))
    sizes = [{"cluster": each, "train": CLUSTERS.count(each), "val": 0} for each in range(3)]
    artifacts.save_csv(artifacts.PLOTS / "sizes.csv", sizes, PLOT_COLUMNS["sizes"])
    for row in range(count):
        place = folder / "a" / f"{row}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 300), (row * 10,) * 3).save(place)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The run's project, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".scan").mkdir()
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    text = preset_text(find_preset("photos")).replace("path: photos", f"path: {tmp_path / 'photos'}")
    (tmp_path / "params.yaml").write_text(text)
    write_whole_run(tmp_path / "photos")
    return tmp_path


@pytest.fixture
def images(project):
    return StoredImages(read_params())
