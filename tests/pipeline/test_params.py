"""``params.yaml``: what is wrong is said in one line, before anything is computed."""

import json
import re
from pathlib import Path

import pytest

from pipeline.params import Params, read_params, read_yaml
from scan_core.errors import ScanError
from scan_core.settings import Pretext
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
        ({"pretext": {"temperature": float("nan")}}, ["pretext.temperature is NaN"]),
        ({"pretext": {"optimizer": {"lr": "1e-3x"}}}, ['pretext.optimizer.lr is "1e-3x"', "valid number"]),
        ({"pretext": {"optimizer": {"rate": 1}}}, ["pretext.optimizer.rate is not a setting", "momentum"]),
        ({"pretext": {"augmentation": {"crop_scale": [0.9, 0.1]}}}, ["pretext.augmentation.crop_scale is [0.9, 0.1]"]),
        ({"pretext": {"augmentation": {"kind": "none"}}}, ['pretext.augmentation.kind is "none"', "'strong' are"]),
        (
            {"selflabel": {"augmentation": {"kind": "none"}}},
            ['selflabel.augmentation.kind is "none"', "'simclr', 'strong' are"],
        ),
        ({"cluster": {"augmentation": {"kind": "plain"}}}, ['cluster.augmentation.kind is "plain"', "'none'"]),
        ({"cluster": {"augmentation": {"kind": "none"}}}, ["cluster.augmentation.", "is not a setting"]),
        ({"neighbors": {"exact_rows": 0}}, ["neighbors.exact_rows is 0", "greater than or equal to 1"]),
        ({"neighbors": {"recall": 95}}, ["neighbors.recall is 95", "less than or equal to 1"]),
        ({"neighbors": {"recal": 0.9}}, ["neighbors.recal is not a setting", "did you mean recall?"]),
        ({"selflabel": {"augmentation": {"cutout": 16}}}, ["selflabel.augmentation.cutout is 16", "16 pixels, less"]),
        ({"selflabel": {"augmentation": {"cutouts": 4}}}, ["selflabel.augmentation.cutouts is not a setting"]),
        ({"selflabel": {"augmentation": {"kind": "weak"}}}, ['selflabel.augmentation.kind is "weak"', "'strong' are"]),
        ({"backbone": {"name": "resnet18", "width": 32}}, ["backbone.width is 32", "64"]),
        ({"data": {"val_fraction": 1.5}}, ["data.val_fraction is 1.5", "less than 1"]),
        ({"data": None}, ["data is null"]),
        ({"data": {"mean": [125.3, 123, 113.9]}}, ["data.mean.0 is 125.3", "less than or equal to 1"]),
        ({"data": {"std": 0.25}}, ["data.std is 0.25", "array"]),
        ({"backbone": {"stem": "large"}}, ['backbone.stem is "large"', "'small', 'patch', 'stl' or 'imagenet'"]),
        ({"backbone": {"stems": "stl"}}, ["backbone.stems is not a setting", "did you mean stem?"]),
        ({"backbone": {"name": "timm"}}, ["backbone.model is null", "timm needs timm's name of a network"]),
        ({"backbone": {"name": "resnet50"}}, ["backbone.width is 32", "resnet50 has 64"]),
        ({"pretext": {"method": "mocov2"}}, ['pretext.method is "mocov2"', "'moco'", "'byol' or 'none'"]),
        ({"pretext": {"method": "moco", "key_groups": 7}}, ["pretext.key_groups is 7", "batch_size, 512, is allowed"]),
        ({"pretext": {"encoder_momentum": 1}}, ["pretext.encoder_momentum is 1", "less than 1"]),
        ({"pretext": {"augmentation": {"blur": 2}}}, ["pretext.augmentation.blur is 2", "less than or equal to 1"]),
        (
            {"pretext": {"augmentation": {"blur_sigma": [2.0, 0.1]}}},
            ["pretext.augmentation.blur_sigma is [2.0, 0.1]", "first may not exceed the second"],
        ),
        ({"pretext": {"augmentation": {"blur_sigma": [0.1, 0]}}}, ["pretext.augmentation.blur_sigma.1 is 0"]),
        (
            {"pretext": {"augmentation": {"blur_sigma": [0.1]}}},
            ["pretext.augmentation.blur_sigma is [0.1]", "at least 2 values"],
        ),
        (
            {"pretext": {"augmentation": {"blur_sigma": [0.1, 1, 2]}}},
            ["pretext.augmentation.blur_sigma is [0.1, 1, 2]", "at most 2 values"],
        ),
        (
            {"cluster": {"augmentation": {"blurr": 1}}},
            ["cluster.augmentation.blurr is not a setting", "did you mean blur?", "blur_sigma"],
        ),
        ({"cluster": {"augmentation": {"kind": None}}}, ["cluster.augmentation.kind is null", "'simclr', 'strong'"]),
        ({"pretext": {"optimizer": {"name": "lamb"}}}, ['pretext.optimizer.name is "lamb"', "'adam' or 'muon'"]),
        ({"cluster": {"prior": [0.5, 0.5]}}, ["cluster.prior has 2 values", "one for each cluster, 10, is allowed"]),
        ({"cluster": {"prior": [0.2] * 10}}, ["cluster.prior has the sum 2", "1 is allowed"]),
        ({"cluster": {"prior": "uniform"}}, ['cluster.prior is "uniform"', "array"]),
        ({"cluster": {"prior": [0] * 10}}, ["cluster.prior.0 is 0", "greater than 0", "(and 9 more)"]),
        ({"cluster": {"entropy_of": "all"}}, ['cluster.entropy_of is "all"', "'anchors' or 'both'"]),
        ({"selflabel": {"ema": 1}}, ["selflabel.ema is 1", "less than 1"]),
        ({"selflabel": {"epochs": -1}}, ["selflabel.epochs is -1", "greater than or equal to 0"]),
        ({"evaluate": {"probes": 1}}, ["evaluate.probes is 1", "boolean"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, change, said):
    set_params(tmp_path, change, ROOT / "params.yaml")
    with pytest.raises(ScanError) as caught:
        read_params(tmp_path / "params.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'params.yaml'}: {said[0]}")
    for part in said:
        assert part in message


@pytest.mark.parametrize("method", Pretext.model_fields["method"].annotation.__args__)
def test_features_after_a_projector_need_a_method_that_trains_one(tmp_path, method):
    path = tmp_path / "params.yaml"
    set_params(tmp_path, {"embed": {"features": "projector"}, "pretext": {"method": method}}, ROOT / "params.yaml")
    if method in ("rotation", "none"):
        wanted = f"{path}: embed.features is projector; pretext.method {method} has no projector, backbone is allowed"
        with pytest.raises(ScanError, match=f"^{re.escape(wanted)}$"):
            read_params(path)
    else:
        assert read_params(path).embed.features == "projector"
    set_params(tmp_path, {"embed": {"features": "backbone"}})
    assert read_params(path).pretext.method == method


@pytest.mark.parametrize("name", ["cluster.neighbors", "cluster.val_neighbors", "neighbors.smoothing"])
def test_no_more_neighbours_are_used_than_are_mined(tmp_path, name):
    path = tmp_path / "params.yaml"
    group, key = name.split(".")
    changes = {"neighbors": {"k": 30}}
    changes.setdefault(group, {})[key] = 31
    set_params(tmp_path, changes, ROOT / "params.yaml")
    wanted = f"{path}: {name} is 31; neighbors.k is 30, and at most so many can be used"
    with pytest.raises(ScanError, match=f"^{re.escape(wanted)}$"):
        read_params(path)
    set_params(tmp_path, {group: {key: 30}})
    assert getattr(getattr(read_params(path), group), key) == 30


@pytest.mark.parametrize(
    "name",
    ["cluster.heads", "pretext.method", "pretext.augmentation.blur", "pretext.augmentation.kind", "cluster", "seed"],
)
def test_a_missing_key_is_named(tmp_path, values, name):
    *folders, last = name.split(".")
    inside = values
    for folder in folders:
        inside = inside[folder]
    del inside[last]
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    with pytest.raises(ScanError, match=rf"params\.yaml: {re.escape(name)} is missing; add it"):
        read_params(tmp_path / "params.yaml")


def test_what_json_does_not_know_is_text(tmp_path):
    """A date, say, as the name of a folder."""
    set_params(tmp_path, {"data": {"name": "folder", "path": "2026-03-01"}}, ROOT / "params.yaml")
    text = (tmp_path / "params.yaml").read_text().replace("'2026-03-01'", "2026-03-01")
    (tmp_path / "params.yaml").write_text(text)
    assert read_params(tmp_path / "params.yaml").data.path == "2026-03-01"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "a: 1\na: 2\n"])
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ScanError) as caught:
        read_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["[a, b]", "2026-01-01"])
def test_a_key_that_is_no_text_is_no_setting(tmp_path, key):
    """YAML allows it, JSON does not."""
    path = tmp_path / "params.yaml"
    path.write_text(f"{(ROOT / 'params.yaml').read_text()}\n? {key}\n: 1\n")
    wanted = f"{path}: {'(' if '[' in key else key}"
    with pytest.raises(ScanError, match=rf"^{re.escape(wanted)}.* is not a setting; allowed here: backbone, cluster"):
        read_params(path)
    path.write_text((ROOT / "params.yaml").read_text().replace("prior: null", f"prior:\n  - ? {key}\n    : 1"))
    with pytest.raises(ScanError, match=r"cluster\.prior\.0 is \{.*valid number"):
        read_params(path)


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path):
    with pytest.raises(ScanError, match=rf"^{re.escape(str(tmp_path))} cannot be read: Is a directory; put a "):
        read_params(tmp_path)


def test_a_missing_file_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScanError, match="run from the project's folder"):
        read_params()


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    path = Path(tmp_path / "params.yaml")
    path.write_text("lr: 1e-4\n")
    assert read_yaml(path) == {"lr": 1e-4}


def test_clustering_may_do_without_augmentation(tmp_path, values):
    values["cluster"]["augmentation"] = {"kind": "none"}
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    assert read_params(tmp_path / "params.yaml").cluster.augmentation.kind == "none"


def test_merge_changes_only_what_is_named(values):
    assert merge(values, {"cluster": {"heads": 1}})["cluster"]["epochs"] == values["cluster"]["epochs"]
