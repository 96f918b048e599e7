"""A stage's fingerprint changes with what its dvc.yaml entry names, and with nothing else."""

import os

import pytest

from pipeline.fingerprint import fingerprint, run_key, source_key
from pipeline.params import read_params
from tests.project import make_project, run_stage, set_params

TRAIN = "data/embeddings/train.npy"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    (folder / "data" / "embeddings").mkdir(parents=True)
    (folder / TRAIN).write_bytes(b"1")
    run_stage(folder, "source")
    monkeypatch.chdir(folder)
    return folder


def appended(path):
    def change(project):
        (project / path).parent.mkdir(exist_ok=True)
        with (project / path).open("ab") as file:
            file.write(b"\n")

    return change


@pytest.mark.parametrize(("change", "counts"), [
    (lambda project: set_params(project, {"cluster": {"heads": 3}, "seed": 7}), False),
    (lambda project: set_params(project, {"neighbors": {"k": 21}}), True),
    (appended("data/embeddings/train.npy"), True),
    (appended("data/embeddings/__pycache__/train.pyc"), False),
    (lambda project: (project / TRAIN).rename(project / "data" / "embeddings" / "val.npy"), True),
    (appended("data/code/neighbors.json"), True),
    (appended("data/code/cluster.json"), False),
], ids=["others' settings", "its own", "a file", "bytecode", "a file's name", "its code", "others' code"])  # fmt: skip
def test_its_own_settings_and_dependencies_count_and_others_do_not(project, change, counts):
    before = fingerprint("neighbors", read_params())
    change(project)
    assert (fingerprint("neighbors", read_params()) != before) == counts


@pytest.mark.parametrize(("change", "counts"), [
    ({"cluster": {"num_clusters": 9}}, True), ({"seed": 7}, True), ({"cluster": {"heads": 3}}, False),
])  # fmt: skip
def test_of_a_group_only_the_setting_that_is_named_counts(project, change, counts):
    """The stage groups depends on cluster.num_clusters alone."""
    (project / "data" / "neighbors").mkdir()
    before = fingerprint("groups", read_params())
    set_params(project, change)
    assert (fingerprint("groups", read_params()) != before) == counts


def test_the_key_of_a_run_counts_all_parameters_and_all_code_but_no_data(project):
    before = run_key(read_params(), source_key())
    (project / TRAIN).write_bytes(b"2")
    assert run_key(read_params(), source_key()) == before
    set_params(project, {"evaluate": {"kmeans_runs": 3}})
    changed = run_key(read_params(), source_key())
    assert changed != before
    (project / "data" / "code" / "evaluate.json").write_text("{}")
    assert run_key(read_params(), source_key()) != changed


def test_another_source_is_another_run_and_a_touched_one_is_not(project, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"1")
    set_params(project, {"data": {"name": "folder", "path": str(photos)}})

    def key():
        run_stage(project, "source")
        return run_key(read_params(), source_key())

    before, listed = key(), (project / "data" / "source.json").read_bytes()
    os.utime(photos / "a.png", (1, 1))
    assert key() == before and (project / "data" / "source.json").read_bytes() != listed
    (photos / "b.png").write_bytes(b"2")
    more = key()
    assert more != before
    (photos / "b.png").write_bytes(b"22")
    assert key() not in (before, more)


def test_stages_are_read_again_when_dvc_yaml_changes(tmp_path, monkeypatch):
    from pipeline.fingerprint import stage_entries

    monkeypatch.chdir(tmp_path)
    for name in ("one", "another"):
        (tmp_path / "dvc.yaml").write_text(f"stages:\n  {name}:\n    cmd: x\n    deps: [a]\n")
        assert list(stage_entries()) == [name]
