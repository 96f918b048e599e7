"""Artifact files: byte-stable, and refused with one line where they are not what a stage needs."""

import numpy as np
import pytest

from pipeline import artifacts
from scan_core.errors import ScanError
from tests.tiny import refused


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("path", "stage"), [
    (artifacts.IMAGES / "stats.json", "prepare"), (artifacts.LABELS / "labels.npy", "prepare"),
    (artifacts.EMBEDDINGS / "train.npy", "embed"), (artifacts.NEIGHBORS / "val.npy", "neighbors"),
    (artifacts.MODELS / "selflabel.json", "selflabel"), (artifacts.ASSIGNMENTS / "cluster.npy", "cluster"),
    (artifacts.ASSIGNMENTS / "heads.npy", "cluster"), (artifacts.PLOTS / "pretext.csv", "pretext"),
    (artifacts.METRICS, "evaluate"), (artifacts.PREDICTIONS, "evaluate"),
])  # fmt: skip
def test_a_missing_artifact_names_the_stage_that_makes_it(path, stage):
    with pytest.raises(ScanError, match=f"^{path} is missing; make it with: dvc repro {stage}$"):
        artifacts.require(path)


@pytest.mark.parametrize(("array", "said"), [
    (np.zeros((3, 2), np.float64), "float64"),
    (np.zeros((3,), np.float32), r"\(3,\)"),
    (np.zeros((4, 2), np.float32), r"\(4, 2\)"),
])  # fmt: skip
def test_another_dtype_or_shape_is_refused(array, said):
    artifacts.save_array(artifacts.Path("a.npy"), array)
    with pytest.raises(ScanError, match=said) as caught:
        artifacts.load_array(artifacts.Path("a.npy"), "float32", (3, None))
    assert "float32 (3, any) is needed" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00", "pickled"])
def test_a_damaged_or_pickled_array_is_refused_in_one_line(content):
    artifacts.Path("a.npy").write_bytes(content if isinstance(content, bytes) else b"")
    if content == "pickled":
        np.save("a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(lambda: artifacts.load_array(artifacts.Path("a.npy"), "float32", (None,)), "a.npy")


def test_neighbors_outside_their_split_are_refused():
    artifacts.save_array(artifacts.NEIGHBORS / "val.npy", np.array([[1], [2]], dtype=np.int64))
    with pytest.raises(ScanError, match="outside the 2 images of val"):
        artifacts.load_neighbors("val", 2)


def test_json_is_sorted_and_refuses_what_is_not_finite(tmp_path):
    artifacts.save_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text().index('"a"') < (tmp_path / "a.json").read_text().index('"b"')
    with pytest.raises(ValueError, match="JSON"):
        artifacts.save_json(tmp_path / "a.json", {"a": float("nan")})


def test_history_keeps_all_columns_and_nine_digits(tmp_path):
    artifacts.save_history(tmp_path / "h.csv", [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 1.0, "extra": 2}])
    assert (tmp_path / "h.csv").read_text() == "epoch,loss,extra\n1,0.333333333,\n2,1,2\n"
