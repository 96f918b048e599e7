"""``params.yaml``: what is wrong is said in one line, before anything is computed."""

import json
import re

import pytest
from ruamel.yaml import YAML

from pipeline.params import read_params, read_yaml
from scan_core.errors import ScanError
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from tests import tiny
from tests.project import ROOT, completed, merge


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.yaml"


def write(path, values):
    YAML(typ="safe", pure=True).dump(values, path)


def refused(path):
    """The error's one line, without the file that it names first."""
    with pytest.raises(ScanError) as caught:
        read_params(path)
    message = str(caught.value)
    found = re.fullmatch(rf"{re.escape(str(path))}(?:, line \d+)?: (.*)", message)
    assert found, message
    return found[1]


@pytest.fixture
def values():
    return read_yaml(ROOT / "params.yaml")


WRONG = [  # tests/scan_core/test_settings.py has values that each setting refuses; these are the kinds of messages
    ("seed", "zero", "valid integer"),
    ("seed", True, "valid integer"),
    ("precision", "fp16", "'auto', 'bf16' or 'fp32'"),
    ("data", None, "should be an object"),
    ("pretext.method", "mocov2", "'simclr', 'moco', 'byol', 'instance_discrimination', 'rotation', 'none', "),
    ("pretext.method", ["moco"], "'moco', 'byol'"),
    ("pretext.temperature", float("nan"), "finite number"),
    ("pretext.augmentation.kind", "none", "'simclr', 'strong' are allowed"),
    ("pretext.augmentation.crop_scale", [0.9, 0.1], "first may not exceed the second"),
    ("pretext.augmentation.blur_sigma", [0.1, 1, 2], "at most 2 items"),
    ("cluster.num_clusters", 1, "greater than or equal to 2"),
    ("cluster.augmentation.kind", "plain", "'simclr', 'strong', 'none'"),
    ("cluster.augmentation.kind", None, "'simclr', 'strong', 'none'"),
    ("selflabel.augmentation.kind", "none", "'simclr', 'strong' are allowed"),
    ("selflabel.augmentation.cutout", 16, "less than 16, the pixels that the network sees"),
]


def change(name, value):
    """``{"a": {"b": value}}`` for a.b."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(path, values, name, value, allowed):
    write(path, merge(values, change(name, value)))
    given, _, said = refused(path).partition("; ")
    assert given == f"{name} is {json.dumps(value)}" and allowed in said


@pytest.mark.parametrize(("name", "value", "said"), [
    ("sed", 1, "sed is not a setting; did you mean seed? allowed here: backbone"),
    ("cluster.neighbours", 5, "cluster.neighbours is not a setting; did you mean neighbors? allowed here: aug"),
    ("pretext.temprature", 1, "pretext.temprature is not a setting; did you mean temperature? allowed here: aug"),
    ("pretext.optimizer.rate", 1, "pretext.optimizer.rate is not a setting; allowed here: final_lr, lr"),
    ("pretext.optimizer.epochs", 1, "pretext.optimizer.epochs is not a setting; did you mean warmup_epochs?"),
    ("cluster.augmentation.blurr", 1, "cluster.augmentation.blurr is not a setting; did you mean blur? allowed"),
    ("data.mean", [125.3, 123, 1], "data.mean.0 is 125.3; input should be less than or equal to 1 (and 1 more)"),
    ("pretext.augmentation.blur_sigma", [0.1], "pretext.augmentation.blur_sigma.1 is missing"),
    ("backbone.name", "timm", "backbone.model is null; backbone.name timm needs timm's name of a network"),
    ("cluster.prior", [0.5, 0.5], "cluster.prior has 2 values; one per cluster, 10, or null is allowed"),
    ("cluster.prior", [0] * 10, "cluster.prior.0 is 0; input should be greater than 0 (and 9 more)"),
    ("pretext.method", "moco", "pretext.method moco lacks encoder_momentum, queue, key_groups; scan settings use"),
    ("pretext.method", "byol", "pretext.method byol lacks encoder_momentum and has no projector_norm, temp"),
    ("pretext", {"queue": 9, "epochs": 0},
     "pretext.method simclr has no queue; scan settings use --method simclr writes its settings (and 1 more)"),
    ("pretext", dict.fromkeys(["encoder_momentum", "queue", "key_groups", "negatives"], 8),  # a file from before
     "pretext.method simclr has no encoder_momentum, key_groups, negatives, queue; scan settings use --method simclr"),
    ("cluster.augmentation.kind", "strong", "cluster.augmentation.kind strong lacks operations, cutout and has"),
    ("pretext", {"method": "moco", "encoder_momentum": 0, "queue": 9, "key_groups": 7}, "pretext.key_groups is 7"),
])  # fmt: skip
def test_a_key_or_a_rule_that_is_broken_is_named(path, values, name, value, said):
    write(path, merge(values, change(name, value)))
    assert refused(path).startswith(said)


@pytest.mark.parametrize("method", sorted(set(variants(Pretext)) - {"frozen", "adapted"}))
def test_features_after_a_projector_need_a_method_that_trains_one(path, values, method):
    for features in ("backbone", "projector"):
        write(path, completed(merge(values, {"embed": {"features": features}, "pretext": {"method": method}})))
        if features == "projector" and method in ("rotation", "none"):
            wanted = f"embed.features is projector; pretext.method {method} has no projector, backbone is allowed"
            assert refused(path) == wanted
        else:
            assert read_params(path).pretext.method == method


@pytest.mark.parametrize("name", ["cluster.neighbors", "cluster.val_neighbors", "neighbors.smoothing"])
def test_no_more_neighbors_are_used_than_are_mined(path, values, name):
    group, key = name.split(".")
    for used in (31, 30):
        write(path, merge(merge(values, {"neighbors": {"k": 30}}), {group: {key: used}}))
        if used == 31:
            assert refused(path) == f"{name} is 31; at most neighbors.k, 30, is allowed"
    assert getattr(getattr(read_params(path), group), key) == 30


@pytest.mark.parametrize(("name", "said"), [
    ("neighbors.k", None), ("pretext.method", None), ("pretext.augmentation.kind", None), ("cluster", None),
    ("pretext.optimizer.lr", None), ("seed", None),
    ("pretext.queue", "pretext.method moco lacks queue; scan settings use"),
    ("cluster.heads", "cluster.method scan lacks heads; presets/base.yaml has its settings"),
    ("pretext.augmentation.blur", "pretext.augmentation.kind simclr lacks blur; presets/base.yaml has"),
])  # fmt: skip
def test_a_missing_key_is_named(path, values, name, said):
    values = inside = completed(merge(values, {"pretext": {"method": "moco"}}))
    *folders, last = name.split(".")
    for folder in folders:
        inside = inside[folder]
    del inside[last]
    write(path, values)
    assert refused(path).startswith(said or f"{name} is missing; add it (presets/base.yaml has every setting)")


def test_what_json_does_not_know_is_text(path, values):
    """A date, say, as the name of a folder."""
    write(path, merge(values, {"data": {"name": "folder", "path": "2026-03-01"}}))
    path.write_text(path.read_text().replace("'2026-03-01'", "2026-03-01"))
    assert read_params(path).data.path == "2026-03-01"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "a: 1\na: 2\n", "pretext: 3\n"])
def test_a_file_that_is_not_a_mapping_of_groups_is_refused_in_one_line(path, text):
    path.write_text(text)
    tiny.refused(lambda: read_params(path), path)


@pytest.mark.parametrize(("key", "said"), [("[a, b]", "keys must"), ("2026-01-01", "keys must be str"), ("5", "5 is")])
def test_a_key_that_is_not_text_is_refused_in_one_line(path, key, said):
    """YAML allows it, JSON does not."""
    path.write_text(f"{(ROOT / 'params.yaml').read_text()}\n? {key}\n: 1\n")
    assert refused(path).startswith(said)


def test_a_missing_file_and_a_folder_in_its_place_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.refused(lambda: read_params(tmp_path), f"{tmp_path} cannot be read: Is a directory; put a ")
    tiny.refused(read_params, "params.yaml is missing from ", "; run from the project's folder")


def test_numbers_are_read_as_dvc_reads_them(path):
    path.write_text("lr: 1e-4\n")
    assert read_yaml(path) == {"lr": 1e-4}
