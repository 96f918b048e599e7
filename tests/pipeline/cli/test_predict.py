"""``scan predict``: the answers of the run for its own images, answers for new ones, formats, resuming."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import predict
from pipeline.groups import apply
from scan_core.data.types import Finding, Item
from scan_core.errors import ScanError
from tests.project import STAGES, environment, make_project, run, run_stages, set_params
from tests.stages.test_frozen import FROZEN, frozen_project
from tests.tiny import data_settings, refused

COLUMNS = [
    "source", "group", "name", "probability", "runner_up", "runner_up_probability", "state", "content", "reason",
]  # fmt: skip


def make_photos(folder, count, seed=0):
    """Images of three kinds of color, in two folders."""
    for number in range(count):
        rng = np.random.default_rng(1000 * seed + number)
        base = np.eye(3)[number % 3] * 150 + rng.integers(0, 60, 3)
        pixels = (base + rng.integers(0, 40, (20, 26, 3))).clip(0, 255).astype(np.uint8)
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=90)
    return folder


def project_of(folder, kind):
    photos = make_photos(folder / "photos", 60)
    shutil.copy(photos / "a" / "0.jpg", photos / "copy.jpg")
    (photos / "cut.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:200])
    (photos / "notes.txt").write_text("cats")
    project = frozen_project(folder / "project") if kind == "frozen" else make_project(folder / "project")
    few = {"num_clusters": 3, "neighbors": 4, "val_neighbors": 1}
    small = {"pretext": {"batch_size": 16}, "cluster": {**few, "batch_size": 16}, "selflabel": {"batch_size": 16}}
    changes = {"cluster": {**FROZEN["cluster"], **few}} if kind == "frozen" else small
    data = {
        "name": "folder", "path": "../photos", "labels": "none", "size": 16, "protocol": "all", "max_rejected": 0.5,
        "duplicates": "together", "store": "jpeg" if kind == "frozen" else "array",
    }  # fmt: skip
    set_params(project, {**changes, "data": data, "neighbors": {"k": 4}})
    run_stages(project, "source", *STAGES)
    return project


@pytest.fixture(scope="module", params=["frozen", "trained"])
def finished(request, tmp_path_factory):
    return project_of(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def project(finished, tmp_path):
    run(finished.parent, "cp", "-r", ".", str(tmp_path / "all"))
    return tmp_path / "all" / "project"


def scan(project, *words, check=True, **options):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], cwd=project, env=environment(), text=True, capture_output=True,
        **options,
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stderr
    return done


def stored(project, monkeypatch):
    monkeypatch.chdir(project)
    return {row["source"]: row for row in apply.read_predictions().to_pylist()}


@pytest.mark.slow
def test_images_of_the_run_get_its_answers_and_new_ones_answers_of_the_same_form(project, monkeypatch):
    make_photos(project.parent / "new", 6, seed=1)
    (project.parent / "new" / "text.jpg").write_text("no image")
    scan(project, "edit", "name", "1", "daisy")
    said = scan(project, "predict", "../photos", "../new", "../photos/a/2.jpg", "-o", "out.parquet").stderr
    rows = pq.read_table(project / "out.parquet").to_pylist()
    assert list(rows[0]) == COLUMNS
    found = {row["source"]: row for row in rows}
    for source, wanted in stored(project, monkeypatch).items():
        row = found[f"../photos/{source}"]
        if wanted["group"] is None:
            assert row["group"] is None and row["reason"] and row["state"] is None
        else:
            assert {key: row[key] for key in COLUMNS[1:8]} == {key: wanted[key] for key in COLUMNS[1:8]}
    new = [row for row in rows if row["source"].startswith("../new/") and row["group"]]
    assert len(new) == 6 and all(row["group"] in (1, 2, 3) and 0 < row["probability"] <= 1 for row in new)
    assert found["../photos/a/2.jpg"]["content"] and found["../new/text.jpg"]["reason"]
    assert "daisy" in {row["name"] for row in rows}
    assert "cannot be read" not in said and "that can be read (column reason); out.parquet" in said
    assert not list((project / ".scan" / "predict").iterdir())


@pytest.mark.slow
def test_the_model_alone_says_the_same_as_the_run(project, monkeypatch):
    """Not by looking its images up: the answers are computed anew."""
    monkeypatch.setattr(predict.Predictions, "known", {})
    wanted = stored(project, monkeypatch)
    params = predict_params()
    predictions = predict.Predictions(predict.source_of(["../photos"], params.data), params)
    (project / "parts").mkdir()
    rows = {row["source"]: row for table in predictions.tables(project / "parts") for row in table.to_pylist()}
    assert set(rows) == set(wanted)
    for source, row in rows.items():
        for key in ("group", "runner_up", "state", "content"):
            assert row[key] == wanted[source][key], (source, key)
        if row["group"]:
            assert row["probability"] == pytest.approx(wanted[source]["probability"], abs=1e-6)


def predict_params():
    from pipeline.params import read_params

    return read_params()


@pytest.mark.slow
def test_all_formats_hold_the_same_and_paths_come_from_standard_input(project):
    paths = "../photos/a/0.jpg\n../photos/b/1.jpg\n\nnot there.jpg\n"
    printed = scan(project, "predict", "-", input=paths).stdout
    rows = list(csv.DictReader(printed.splitlines()))
    assert [row["source"] for row in rows] == ["../photos/a/0.jpg", "../photos/b/1.jpg", "not there.jpg"]
    assert "there is nothing at not there.jpg" in rows[2]["reason"]
    scan(project, "predict", "-", "-o", "out.jsonl", input=paths)
    lines = [json.loads(line) for line in (project / "out.jsonl").read_text().splitlines()]
    assert [str(line["group"] or "") for line in lines] == [row["group"] for row in rows]
    with tarfile.open(project / "some.tar", "w") as archive:
        archive.add(project.parent / "photos" / "a" / "0.jpg", "x/0.jpg")
    scan(project, "predict", "some.tar", "-o", "out.csv")
    (row,) = csv.DictReader((project / "out.csv").open())
    assert row["source"] == "x/0.jpg" and row["group"] == rows[0]["group"] and row["content"] == rows[0]["content"]


@pytest.mark.slow
def test_what_an_interrupted_call_has_done_is_not_done_again(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(predict, "AT_ONCE", 16)
    params, parts = predict_params(), project / "parts"
    parts.mkdir()

    def tables():
        predictions = predict.Predictions(predict.source_of(["../photos"], params.data), params)
        return predictions.tables(parts)

    whole = [table.to_pylist() for table in tables()]
    shutil.rmtree(parts)
    parts.mkdir()
    some = tables()
    assert [next(some).to_pylist() for _ in range(2)] == whole[:2]
    some.close()
    calls, original = [], predict.Predictions._predict
    monkeypatch.setattr(predict.Predictions, "_predict", lambda *given: calls.append(1) or original(*given))
    os.utime("../photos/a/0.jpg")  # a file that has changed since is looked at again
    assert [table.to_pylist() for table in tables()] == whole
    assert len(calls) == len(whole) - 1 and sorted(path.suffix for path in parts.iterdir()) == [".parquet"] * len(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), [
    (["none"], "there is nothing at none"),
    (["-"], "scan predict got no path"),
    (["../photos", "-o", "out.txt"], "--out is out.txt; a .csv, .parquet or .jsonl file is allowed"),
    (["../photos", "-o", "no/out.csv"], "there is no folder no; make it"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(finished, words, said):
    done = scan(finished, "predict", *words, check=False, input="")
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not list(finished.glob("*out*"))


def test_without_a_run_the_stage_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: predict.Predictions(None, None), "selflabel.safetensors is missing", "dvc repro")


def test_several_paths_are_one_source_and_one_that_is_not_there_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "some", 2)
    source = predict.source_of(["some", "some/a/0.jpg", "gone"], data_settings())
    found = list(source.read())
    assert [each.name for each in found] == ["some/a/0.jpg", "some/b/1.jpg", "some/a/0.jpg", "gone"]
    assert isinstance(found[2], Item) and isinstance(found[3], Finding)
    with pytest.raises(ScanError, match="nothing at gone"):
        predict.source_of(["gone"], data_settings())
