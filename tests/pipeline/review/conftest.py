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
from pipeline.report.tables import PLOT_COLUMNS
from pipeline.review.more import PLOTS
from pipeline.review.photos import Photos
from tests.pipeline.groups.conftest import write_run
from tests.project import ROOT

SIDE = 24
CLUSTERS = [0] * 10 + [1] * 7 + [2] * 5 + [None]
WORDS = ["strong", "weak", "none"]


def directions(seed=0, clusters=tuple(CLUSTERS), dimensions=4, noise=0.15):
    """Unit vectors (N,D), by default (22,4), near the axis of each image's cluster."""
    rng = np.random.default_rng(seed)
    inside = np.array([cluster for cluster in clusters if cluster is not None])
    found = np.eye(dimensions, dtype=np.float32)[inside % dimensions]
    found = found + rng.normal(0, noise, found.shape).astype(np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write_whole_run(folder=None, labels=None, clusters=CLUSTERS, side=SIDE, dimensions=4):
    """What stages make of photos of one color each, which are in ``folder``, if that is given."""
    count, number = sum(cluster is not None for cluster in clusters), max(filter(None, clusters)) + 1
    write_run(clusters, points=directions(0, clusters, dimensions))
    rows = len(clusters)
    states = ["to check" if row % 4 == 0 else "sure" for row in range(rows)]
    states[21] = "fits nowhere"
    places = np.random.default_rng(1).random((rows, 2))
    columns = {
        "probability": pa.array(0.5 + (0.02 * np.arange(rows)) % 0.5, pa.float32()), "state": pa.array(states),
        "x": pa.array(places[:, 0], pa.float32()), "y": pa.array(places[:, 1], pa.float32()),
    }  # fmt: skip
    table, there = pq.read_table(artifacts.PREDICTIONS), pa.array([each is not None for each in clusters])
    for name, column in columns.items():
        column = pa.compute.if_else(there, column, None)
        known = name in table.column_names
        table = (
            table.set_column(table.column_names.index(name), name, column)
            if known
            else table.append_column(name, column)
        )
    pq.write_table(table, artifacts.PREDICTIONS)
    pixels = np.zeros((count, side, side, 3), np.uint8)
    pixels[:] = (np.arange(count) * 10 % 250)[:, None, None, None]
    artifacts.save_array(artifacts.IMAGES / "pixels-00000.npy", pixels)
    stats = {"count": count, "store": "array", "size": side, "view": side, "channels": 3, "rows": [count]}
    artifacts.save_json(artifacts.IMAGES / "stats.json", {**stats, "mean": [0.5] * 3, "std": [0.5] * 3})
    copies = np.arange(count)
    copies[[3, 4]] = 2
    artifacts.save_array(artifacts.IMAGES / "copies.npy", copies)
    artifacts.save_array(artifacts.LABELS / "labels.npy", np.full(count, -1) if labels is None else np.array(labels))
    artifacts.save_json(artifacts.LABELS / "classes.json", ["cat", "dog"])
    artifacts.save_findings(artifacts.ITEMS / "findings.csv", [("a/22.jpg", "rejected", "it is cut off")])
    groups = [
        {
            "word": WORDS[each % 3],
            "size": clusters.count(each),
            "figures": {"purity": 0.9, "agreement": 0.8, "stability": 0.7},
        }
        for each in range(number)
    ]
    found = {"word": "weak", "figures": {"agreement": 0.62, "margin": 0.4}, "images": {"sure": 16}}
    artifacts.save_json(artifacts.VERDICT, found | {"groups": groups})
    scores = {"selflabel": {"clusters_used": number, "confident_share": 0.5}, "quality": {"silhouette": 0.25}}
    scores |= {"kmeans_embeddings": {}, "kmeans_pixels": {}, "cluster": {}}
    artifacts.save_json(artifacts.METRICS, {"train": scores, "val": scores})
    artifacts.save_json(artifacts.MODELS / "selflabel.json", {"kept": "after", "reason": "more images agree"})
    for name in PLOTS:
        artifacts.save_csv(artifacts.PLOTS / f"{name}.csv", [], PLOT_COLUMNS.get(name, ["epoch"]))
    sizes = [{"cluster": each, "train": clusters.count(each), "val": 0} for each in range(number)]
    artifacts.save_csv(artifacts.PLOTS / "sizes.csv", sizes, PLOT_COLUMNS["sizes"])
    for row in range(count if folder else 0):
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
    return Photos(read_params())
