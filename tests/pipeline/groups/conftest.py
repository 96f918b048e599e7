"""A finished run of which only the files exist that numbers, names and corrections are made of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import artifacts

CENTERS = np.eye(4, dtype=np.float32)


def content_of(number):
    return f"{number:032x}"


def write_run(clusters, model=b"model", runner_up=None, first=0, points=None):
    """A run whose image ``first + n`` is in ``clusters[n]`` (None: a file that is no image)."""
    count = max([each for each in clusters if each is not None], default=0) + 1
    rows = [row for row, cluster in enumerate(clusters) if cluster is not None]
    other = runner_up or [None if each is None else (each + 1) % count for each in clusters]
    table = pa.table({
        "id": pa.array([rows.index(row) if row in rows else None for row in range(len(clusters))], pa.int64()),
        "source": [f"a/{first + row}.jpg" for row in range(len(clusters))],
        "split": ["train" if each is not None else "rejected" for each in clusters],
        "content": [content_of(first + row) if each is not None else None for row, each in enumerate(clusters)],
        "cluster": pa.array(clusters, pa.int64()),
        "probability": pa.array([None if each is None else 0.6 for each in clusters], pa.float32()),
        "runner_up": pa.array(other, pa.int64()),
        "runner_up_probability": pa.array([None if each is None else 0.3 for each in clusters], pa.float32()),
        "state": [None if each is None else "sure" for each in clusters],
    })  # fmt: skip
    for path in (artifacts.PREDICTIONS, artifacts.MODELS / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, artifacts.PREDICTIONS)
    (artifacts.MODELS / "selflabel.safetensors").write_bytes(model)
    artifacts.save_json(artifacts.GROUPS, {"number": count, "given": True})
    artifacts.save_array(artifacts.IMAGES / "train.npy", np.arange(len(rows)))
    artifacts.save_array(artifacts.IMAGES / "val.npy", np.arange(len(rows))[::10])
    vectors = CENTERS[[clusters[row] for row in rows]] if points is None else np.asarray(points, np.float32)
    artifacts.save_array(artifacts.EMBEDDINGS / "train.npy", vectors)
    artifacts.save_array(artifacts.EMBEDDINGS / "val.npy", vectors[::10])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, which commands start in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".scan").mkdir()
    return tmp_path
