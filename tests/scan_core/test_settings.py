"""Settings: whatever is unknown, missing, of a wrong type or out of range is rejected."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from scan_core.settings import (
    Augmentation,
    Backbone,
    Cluster,
    Data,
    Embed,
    Evaluate,
    Neighbors,
    Optimizer,
    Pretext,
    Selflabel,
    SimclrAugmentation,
    StrongAugmentation,
)
from tests.scan_core.tiny import (
    backbone_settings,
    cluster_settings,
    data_settings,
    optimizer,
    pretext_settings,
    selflabel_settings,
    simclr_augmentation,
    strong_augmentation,
)

VALID = {
    Data: data_settings(),
    Backbone: backbone_settings(),
    SimclrAugmentation: simclr_augmentation(),
    StrongAugmentation: strong_augmentation(),
    Optimizer: optimizer(),
    Pretext: pretext_settings(),
    Embed: Embed(features="backbone"),
    Neighbors: Neighbors(k=5),
    Cluster: cluster_settings(),
    Selflabel: selflabel_settings(),
    Evaluate: Evaluate(kmeans_runs=2, probes=False),
}
KINDS = sorted(VALID, key=lambda kind: kind.__name__)
NAN, INF = float("nan"), float("inf")

# What is out of range or of a wrong type, by class and key.
WRONG = {
    Data: {
        "name": ["imagenet21k", None, "folder", "archive", "parquet", "npy"],  # the last four lack a path
        "path": [3, ["photos"]],
        "labels": ["files", "labels.txt", None, True],
        "subset": [10, "50", 50.5],
        "extra": ["all", None],
        "size": [7, 1025, 16.0, 16.5, "16", True],
        "view": [7, 17, 16.5, "16"],
        "fit": ["cover", None],
        "store": ["png", None],
        "shard_rows": [0, -1, 1.5],
        "duplicates": [True, "remove"],
        "protocol": ["train", None],
        "val_fraction": [0, 1, -0.1, 1.5, NAN, "0.2"],
        "split_seed": [-1, 0.5],
        "max_rejected": [-0.1, 1.1, NAN],
        "max_pixels": [0, -1, 1.5],
        "max_unpacked": [0, -1, INF],
    },
    Backbone: {"name": ["resnet50"], "width": [0, -4, 4.5, "4"]},
    SimclrAugmentation: {
        "kind": ["strong"],
        "crop_scale": [[0, 1], [0.5, 0.4], [0.5, 1.1], [0.5], [0.2, 0.5, 1.0], 0.5, [NAN, 1]],
        "crop_ratio": [[2, 1], [0, 1], [-1, 1], [1, INF]],
        "rotate": [-1, INF, "15"],
        "shear": [-0.1, NAN],
        **{name: [-0.1, 1.1, NAN] for name in ("flip", "jitter", "grayscale")},
        **{name: [-0.1, INF] for name in ("brightness", "contrast", "saturation")},
        "hue": [-0.1, 0.51],
    },
    StrongAugmentation: {
        "kind": ["simclr", "weak"],
        "flip": [-0.1, 1.1],
        "operations": [-1, 15, 2.5],
        "cutout": [-1, 2.5],
    },
    Optimizer: {
        "name": ["adamw", "SGD"],
        "lr": [0, -1e-3, NAN, INF, "1e-3"],
        "weight_decay": [-1e-4, INF],
        "momentum": [-0.1, 1, 1.5],
        "schedule": ["linear"],
        "warmup_epochs": [-1, 0.5],
        "final_lr": [-1e-3, INF],
    },
    Pretext: {
        "method": ["moco"],
        "epochs": [0, -1, 1.5],
        "batch_size": [1, 0, 2.5],
        "temperature": [0, -0.1, INF],
        "projection": [0],
        "optimizer": [None, {}],
        "augmentation": [None, {"kind": "none"}],
    },
    Embed: {"features": ["logits"]},
    Neighbors: {"k": [0, -1, 1.5, "5"]},
    Cluster: {
        "num_clusters": [1, 0, 2.5],
        "heads": [0],
        "neighbors": [-1, 1.5],
        "val_neighbors": [0],
        "entropy_weight": [-1, NAN, INF],
        "train": ["backbone"],
        "epochs": [0],
        "batch_size": [1],
        "optimizer": [None],
        "augmentation": [None],
    },
    Selflabel: {
        "threshold": [0, 1, -0.5, 99, NAN],
        "class_weights": ["yes", 1, None],
        "epochs": [0],
        "batch_size": [1],
        "optimizer": [None],
        "augmentation": [None],
    },
    Evaluate: {"kmeans_runs": [1, 0, 2.5]},
}
CASES = [(kind, name, value) for kind, keys in WRONG.items() for name, values in keys.items() for value in values]


def dumped(kind):
    """The plain values, as a YAML file has them."""
    return json.loads(VALID[kind].model_dump_json())


def validate(kind, values):
    """As the pipeline reads a file: strict, by way of JSON."""
    return kind.model_validate_json(json.dumps(values))


def test_every_setting_is_checked_below():
    assert {kind: set(keys) for kind, keys in WRONG.items()} == {kind: set(kind.model_fields) for kind in VALID}


@pytest.mark.parametrize("kind", KINDS)
def test_valid_values_come_back_as_they_are(kind):
    assert validate(kind, dumped(kind)) == VALID[kind]


@pytest.mark.parametrize(("kind", "name", "value"), CASES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_wrong_values_are_rejected_where_they_are(kind, name, value):
    with pytest.raises(ValidationError) as error:
        validate(kind, {**dumped(kind), name: value})
    places = [each["loc"] for each in error.value.errors()]
    # A rule about several keys has no place of its own; its text names the key.
    assert all(place[0] == name if place else name in str(error.value) for place in places)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys_are_rejected(kind):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        validate(kind, {**dumped(kind), "colour": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_has_a_default(kind):
    for name in kind.model_fields:
        values = dumped(kind)
        del values[name]
        with pytest.raises(ValidationError, match="Field required"):
            validate(kind, values)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_frozen(kind):
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(VALID[kind], name, getattr(VALID[kind], name))


def test_unknown_keys_deep_inside_are_rejected():
    values = dumped(Cluster)
    values["optimizer"]["nesterov"] = True
    with pytest.raises(ValidationError, match="nesterov"):
        validate(Cluster, values)


def test_an_augmentation_is_told_by_its_kind():
    adapter = TypeAdapter(Augmentation)
    for kind in (SimclrAugmentation, StrongAugmentation):
        assert type(adapter.validate_json(json.dumps(dumped(kind)))) is kind
    with pytest.raises(ValidationError):
        adapter.validate_json(json.dumps({**dumped(StrongAugmentation), "kind": "simclr"}))


def test_resnet18_has_the_published_width():
    assert validate(Backbone, {"name": "resnet18", "width": 64}).width == 64
    with pytest.raises(ValidationError, match="resnet18 has 64"):
        validate(Backbone, {"name": "resnet18", "width": 32})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Data, "size", 8),
        (Data, "size", 1024),
        (Data, "view", 16),
        (Data, "max_rejected", 0),
        (Data, "max_rejected", 1),
        (SimclrAugmentation, "crop_scale", [1, 1]),
        (SimclrAugmentation, "hue", 0.5),
        (SimclrAugmentation, "flip", 0),
        (StrongAugmentation, "operations", 0),
        (StrongAugmentation, "cutout", 0),
        (Optimizer, "momentum", 0),
        (Cluster, "neighbors", 0),
        (Cluster, "entropy_weight", 0),
        (Cluster, "num_clusters", 2),
        (Pretext, "batch_size", 2),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(kind, name, value):
    validate(kind, {**dumped(kind), name: value})


@pytest.mark.parametrize(
    ("changes", "stored", "side"),
    [
        ({"size": 128}, "array", 128),
        ({"size": 129}, "jpeg", 129),
        ({"size": 256, "view": 224}, "jpeg", 224),
        ({"size": 256, "store": "array", "fit": "pad"}, "array", 256),
        ({"size": 64, "store": "jpeg"}, "jpeg", 64),
    ],
)
def test_what_is_stored_and_seen_follows_from_the_size(changes, stored, side):
    settings = validate(Data, {**dumped(Data), **changes})
    assert (settings.stored, settings.side) == (stored, side)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_jpeg_store_keeps_shapes_and_so_cannot_pad_or_stretch(fit):
    with pytest.raises(ValidationError, match=f"fit is {fit}; the jpeg store"):
        validate(Data, {**dumped(Data), "size": 256, "fit": fit})


@pytest.mark.parametrize("name", Data.model_fields["name"].annotation.__args__)
def test_another_source_is_one_setting_away_or_two_with_its_path(name):
    assert validate(Data, {**dumped(Data), "name": name, "path": "photos"}).name == name
