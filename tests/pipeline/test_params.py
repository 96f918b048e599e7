"""``params.yaml``: what is wrong is said in one line, before anything is computed."""

import json
from pathlib import Path

import pytest

from pipeline.params import Params, read_params, read_yaml
from scan_core.errors import ScanError
from tests.project import ROOT, merge, set_params


@pytest.fixture
def values():
    return read_yaml(ROOT / "params.yaml")


def test_the_default_is_valid_and_is_the_digits_preset(values):
    read_params(ROOT / "params.yaml")
    assert values == read_yaml(ROOT / "presets" / "digits.yaml")


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid(preset):
    assert isinstance(read_params(preset), Params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cluster": {"num_clusters": 1}}, ["cluster.num_clusters is 1", "greater than or equal to 2"]),
        ({"cluster": {"neighbours": 5}}, ["cluster.neighbours is not a setting", "did you mean neighbors?", "heads"]),
        ({"sed": 1}, ["sed is not a setting", "did you mean seed?"]),
        ({"seed": "zero"}, ['seed is "zero"', "valid integer"]),
        ({"seed": True}, ["seed is true", "valid integer"]),
        ({"precision": "fp16"}, ['precision is "fp16"', "'auto', 'bf16' or 'fp32'"]),
        ({"pretext": {"temperature": 0}}, ["pretext.temperature is 0", "greater than 0"]),
        ({"pretext": {"temperature": float("nan")}}, ["pretext.temperature"]),
        ({"pretext": {"optimizer": {"lr": "1e-3x"}}}, ['pretext.optimizer.lr is "1e-3x"', "valid number"]),
        ({"pretext": {"optimizer": {"rate": 1}}}, ["pretext.optimizer.rate is not a setting", "momentum"]),
        ({"pretext": {"augmentation": {"crop_scale": [0.9, 0.1]}}}, ["pretext.augmentation", "crop_scale is"]),
        ({"selflabel": {"augmentation": {"cutouts": 4}}}, ["selflabel.augmentation.cutouts is not a setting"]),
        ({"selflabel": {"augmentation": {"kind": "weak"}}}, ["selflabel.augmentation", "simclr"]),
        ({"backbone": {"name": "resnet18", "width": 32}}, ["backbone.width is 32", "64"]),
        ({"data": {"val_fraction": 1.5}}, ["data.val_fraction is 1.5", "less than 1"]),
        ({"data": None}, ["data is null"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, change, said):
    set_params(tmp_path, change, ROOT / "params.yaml")
    with pytest.raises(ScanError) as caught:
        read_params(tmp_path / "params.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message


def test_a_missing_key_is_named(tmp_path, values):
    del values["cluster"]["heads"]
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    with pytest.raises(ScanError, match=r"cluster\.heads is missing"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "a: 1\na: 2\n"])
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ScanError) as caught:
        read_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScanError, match="run from the project's folder"):
        read_params()


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    path = Path(tmp_path / "params.yaml")
    path.write_text("lr: 1e-4\n")
    assert read_yaml(path) == {"lr": 1e-4}


def test_merge_changes_only_what_is_named(values):
    assert merge(values, {"cluster": {"heads": 1}})["cluster"]["epochs"] == values["cluster"]["epochs"]
