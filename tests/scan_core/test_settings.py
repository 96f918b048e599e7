"""Settings: whatever is unknown, missing, of a wrong type or out of range is rejected."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from scan_core.clustering.settings import Cluster, Embed, FrozenCluster, Neighbors, ScanCluster, Selflabel, Space
from scan_core.data.settings import Data
from scan_core.evaluation.settings import Evaluate
from scan_core.models.settings import Backbone
from scan_core.pretext.settings import MocoPretext, Pretext, SimclrPretext
from scan_core.settings import variants
from scan_core.training.settings import Optimizer
from scan_core.views.settings import (
    AnyAugmentation,
    Augmentation,
    NoAugmentation,
    SimclrAugmentation,
    StrongAugmentation,
)
from tests.tiny import (
    PLAIN,
    backbone_settings,
    cluster_settings,
    data_settings,
    frozen_settings,
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
    NoAugmentation: PLAIN,
    Optimizer: optimizer(),
    **{kind: pretext_settings(method=method) for method, kind in variants(Pretext).items()},
    Embed: Embed(features="backbone", spaces=(), dimensions=256),
    Space: Space(weights="a", side=None, mirror=False),
    Neighbors: Neighbors(k=5, smoothing=0, exact_rows=1000, recall=0.95),
    ScanCluster: cluster_settings(),
    FrozenCluster: frozen_settings(),
    Selflabel: selflabel_settings(),
    Evaluate: Evaluate(kmeans_runs=2, pictures=True, probes=False),
}
NAN, INF = float("nan"), float("inf")
PRETEXTS = variants(Pretext)
# Of every pretext task that has the key.
PRETEXT = {
    "method": ["mocov2", "SimCLR", None],
    "epochs": [0, -1, 1.5],
    "batch_size": [1, 0, 2.5],
    "optimizer": [None, {}],
    "augmentation": [None, {"kind": "none"}],
    "temperature": [0, -0.1, INF],
    "projection": [0, 1.5],
    "hidden": [0, -1, 1.5, "64"],
    "projector_norm": [1, "yes", None],
    "encoder_momentum": [-0.1, 1, 1.5, NAN],
    "queue": [0, None],
    "key_groups": [0, 1.5],
    "negatives": [0, 1.5],
    "memory_momentum": [-0.1, 1, NAN],
    "proximal": [-0.1, NAN, INF],
    "weights": [None],
    "judge": [None],
    "side": [0, 7],
    "images": [1],
    "dimensions": [0],
    "neighbors": [0],
    "groups": [None, {}],
    "trusted": [0, 1.1, NAN],
    "threshold": [0, 1, NAN],
    "steps": [0],
    "views": [0],
}

# What is out of range or of a wrong type, by class and key.
WRONG = {
    Data: {
        "name": ["imagenet21k", None, "folder", "archive", "parquet", "npy"],  # the last four lack a path
        "path": [3, ["photos"]],
        "labels": ["files", "labels.txt", None, True],
        "boxes": ["boxes", "boxes.txt", "boxes.csv", "", True],  # digits have no image files
        "split": ["folders", None, True],
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
        "split_seed": [-1, 0.5, 2**64],
        "max_rejected": [-0.1, 1.1, NAN],
        "max_pixels": [0, -1, 1.5],
        "max_unpacked": [0, -1, INF],
        "range": [[1, 0], [0, 0], [0], 5, ["0", 1]],
        "mean": [[125.3, 123.0, 113.9], [-0.1], [NAN], 0.5, "0.5", ["0.5"]],
        "std": [[0, 0.2, 0.2], [-0.2], [51.6], [INF], 0.25, ["0.2"]],
    },
    Backbone: {
        "name": ["resnet101", "vit", None],
        "width": [0, -4, 4.5, "4"],
        "stem": ["large", "cifar", None],
        "model": [3, ["vit"]],
        "weights": [3, True, ["weights.safetensors"]],
    },
    SimclrAugmentation: {
        "kind": ["strong"],
        "crop_size": [7, 1025, 24.0, "24"],
        "crop_scale": [[0, 1], [0.5, 0.4], [0.5, 1.1], [0.5], [0.2, 0.5, 1.0], 0.5, [NAN, 1]],
        "crop_ratio": [[2, 1], [0, 1], [-1, 1], [1, INF]],
        "rotate": [-1, INF, "15"],
        "shear": [-0.1, NAN],
        **{name: [-0.1, 1.1, NAN] for name in ("flip", "jitter", "grayscale", "blur")},
        **{name: [-0.1, INF] for name in ("brightness", "contrast", "saturation")},
        "hue": [-0.1, 0.51],
        "blur_sigma": [[0, 1], [2.0, 0.1], [-1, 1], [1, INF], [0.5], [0.1, 1.0, 2.0], 0.5, [NAN, 1]],
    },
    StrongAugmentation: {
        "kind": ["simclr", "weak"],
        "flip": [-0.1, 1.1],
        "operations": [-1, 15, 2.5],
        "cutout": [-1, 2.5],
    },
    NoAugmentation: {"kind": ["plain", "simclr", "strong", None]},
    Optimizer: {
        "name": ["adamw", "SGD", "LARS"],
        "lr": [0, -1e-3, NAN, INF, "1e-3"],
        "weight_decay": [-1e-4, INF],
        "momentum": [-0.1, 1, 1.5],
        "schedule": ["linear"],
        "warmup_epochs": [-1, 0.5],
        "final_lr": [-1e-3, INF],
    },
    **{kind: {name: PRETEXT[name] for name in kind.model_fields} for kind in PRETEXTS.values()},
    Embed: {"features": ["logits"], "spaces": [[{"weights": "a"}], None], "dimensions": [0]},
    Space: {"weights": [None], "side": [0, 7], "mirror": [1]},
    Neighbors: {
        "k": [0, -1, 1.5, "5"],
        "smoothing": [-1, 1.5, "5", None],
        "exact_rows": [0, -1, 1.5, "1000", None],
        "recall": [0, -0.5, 1.01, 95, NAN, "0.95", None],
    },
    FrozenCluster: {
        "method": ["graph"],
        "methods": [[], "scan", ["SCAN"], ["scan", "k-means"], ["scan", "kmeans", "scan"], None],
        "num_clusters": [1], "heads": [0], "neighbors": [0], "val_neighbors": [0], "entropy_weight": [-1],
        "steps": [0], "batch_size": [1], "lr": [0],
    },
    ScanCluster: {
        "method": ["k-means"],
        "num_clusters": [1, 0, 2.5],
        "heads": [0],
        "neighbors": [-1, 1.5],
        "val_neighbors": [0],
        "entropy_weight": [-1, NAN, INF],
        "entropy_of": ["neighbors", "all", None],
        "prior": [
            [], [1.0], [0.5, 0.5], [0.25] * 4, [0.2, 0.2, 0.2], [0.4, 0.4, 0.4], [0.5, 0.5, 0], [0.7, 0.7, -0.4],
            [0.4, 0.3, 0.2998], [NAN, 0.5, 0.5], [INF, 0.5, 0.5], 0.3, "uniform", ["0.4", "0.3", "0.3"],
        ],
        "train": ["backbone"],
        "epochs": [0],
        "batch_size": [1],
        "optimizer": [None],
        "augmentation": [None, {"kind": "none", "flip": 0.5}, {"kind": "plain"}],
    },
    Selflabel: {
        "threshold": [0, 1, -0.5, 99, NAN],
        "class_weights": ["yes", 1, None],
        "ema": [-0.1, 1, 1.5, NAN, None],
        "train": ["backbone", "heads", None],
        "epochs": [-1, 1.5, None],
        "batch_size": [1],
        "optimizer": [None],
        "augmentation": [None, {"kind": "none"}],
    },
    Evaluate: {"kmeans_runs": [1, 0, 2.5], "pictures": [1, "yes", None], "probes": [1, "yes", None]},
}  # fmt: skip
EVERY_KIND = pytest.mark.parametrize("kind", sorted(VALID, key=lambda kind: kind.__name__))


def each_value(table):
    """A parametrization of a test by class, key and value."""
    cases = [(kind, name, value) for kind, keys in table.items() for name, values in keys.items() for value in values]
    return pytest.mark.parametrize(
        ("kind", "name", "value"), cases, ids=lambda each: getattr(each, "__name__", str(each))
    )


def dumped(kind):
    """The plain values, as a YAML file has them."""
    return json.loads(VALID[kind].model_dump_json())


def validate(kind, values):
    """As the pipeline reads a file: strict, by way of JSON."""
    return kind.model_validate_json(json.dumps(values))


def test_every_setting_is_checked_below():
    assert {kind: set(keys) for kind, keys in WRONG.items()} == {kind: set(kind.model_fields) for kind in VALID}


@EVERY_KIND
def test_valid_values_come_back_as_they_are(kind):
    assert validate(kind, dumped(kind)) == VALID[kind]


@each_value(WRONG)
def test_wrong_values_are_rejected_where_they_are(kind, name, value):
    with pytest.raises(ValidationError) as error:
        validate(kind, {**dumped(kind), name: value})
    places = [each["loc"] for each in error.value.errors()]
    # A rule about several keys has no place of its own; its text names the key.
    assert all(place[0] == name if place else name in str(error.value) for place in places)


@EVERY_KIND
def test_unknown_keys_are_rejected(kind):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        validate(kind, {**dumped(kind), "color": 1})


@EVERY_KIND
def test_nothing_has_a_default(kind):
    for name in kind.model_fields:
        values = dumped(kind)
        del values[name]
        with pytest.raises(ValidationError, match="Field required"):
            validate(kind, values)


@EVERY_KIND
def test_settings_are_frozen(kind):
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(VALID[kind], name, getattr(VALID[kind], name))


@pytest.mark.parametrize("union", [Pretext, Augmentation, AnyAugmentation, Cluster])
def test_the_class_of_a_union_is_told_by_its_tag(union):
    for tag, kind in variants(union).items():
        assert TypeAdapter(union).validate_json(json.dumps(dumped(kind))) == VALID[kind]
        assert next(iter(dumped(kind).values())) == tag
    assert variants(int | None) == variants(ScanCluster) == {}


def test_only_clustering_does_without_augmentation():
    """A pretext task tells two views of an image apart from others; self-labels of a view train that view itself."""
    assert validate(ScanCluster, {**dumped(ScanCluster), "augmentation": dumped(NoAugmentation)}).augmentation == PLAIN
    for kind in (SimclrPretext, Selflabel):
        with pytest.raises(ValidationError, match="'simclr', 'strong'"):
            validate(kind, {**dumped(kind), "augmentation": dumped(NoAugmentation)})


def test_what_trains_no_network_of_its_own_trains_no_epoch():
    epochs = {method: VALID[kind].trained_epochs for method, kind in PRETEXTS.items()}
    assert epochs == {method: 0 if method in ("none", "frozen", "adapted") else 2 for method in PRETEXTS}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (MocoPretext, {"key_groups": 3}, "key_groups is 3; a divisor of batch_size, 8, is allowed"),
        (MocoPretext, {"key_groups": 16}, "key_groups is 16; a divisor"),
        (MocoPretext, {"key_groups": 8}, "key_groups is 8; at most 4, half of batch_size, is allowed"),
        (MocoPretext, {"batch_size": 2}, "key_groups is 2; at most 1"),
        (ScanCluster, {"prior": [0.5, 0.5]}, "prior has 2 values; one per cluster, 3, or null is allowed"),
        (ScanCluster, {"prior": [0.5, 0.3, 0.1]}, "prior has the sum 0.9; 1 is allowed"),
        (ScanCluster, {"prior": [2, 1, 1]}, "prior has the sum 4; 1 is allowed"),
        (ScanCluster, {"prior": [0.5, 0.3, 0.20011]}, r"prior has the sum 1\.00011; 1 is allowed"),
        (Backbone, {"stem": "stl"}, "stem is stl; convnet has small"),
        (Backbone, {"stem": "imagenet"}, "stem is imagenet; convnet has small"),
        (Backbone, {"name": "resnet18", "stem": "patch"}, "stem is patch; resnet18 has small"),
        (Backbone, {"name": "resnet50", "stem": "patch"}, "stem is patch; resnet50 has small"),
        (Backbone, {"name": "timm"}, "model is null; backbone.name timm needs"),
        (Backbone, {"name": "timm", "model": ""}, 'model is ""; backbone.name timm needs'),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_values_that_do_not_fit_one_another_are_rejected(kind, changes, said):
    with pytest.raises(ValidationError, match=said):
        validate(kind, dumped(kind) | changes)


ENDS = {
    Data: {
        "size": [8, 1024],
        "view": [16],
        "max_rejected": [0, 1],
        "mean": [[0, 0.5, 1]],
        "std": [[0.001, 1, 0.5]],
    },
    SimclrAugmentation: {
        **{"crop_scale": [[1, 1]], "crop_size": [8, None], "hue": [0.5], "flip": [0], "blur": [1]},
        "blur_sigma": [[0.5, 0.5]],
    },
    StrongAugmentation: {"operations": [0], "cutout": [0]},
    Optimizer: {"momentum": [0]},
    Neighbors: {"smoothing": [0], "exact_rows": [1], "recall": [1]},
    ScanCluster: {
        **{"neighbors": [0], "entropy_weight": [0], "num_clusters": [2]},
        "prior": [[0.98, 0.01, 0.01], [0.33333, 0.33333, 0.33333]],  # may be rounded
    },
    SimclrPretext: {"batch_size": [2], "hidden": [1]},
    PRETEXTS["byol"]: {"encoder_momentum": [0]},
    MocoPretext: {"key_groups": [1, 4]},  # 4: pairs
    PRETEXTS["instance_discrimination"]: {"memory_momentum": [0], "proximal": [0]},
    Selflabel: {"ema": [0, 0.999], "epochs": [0]},
    # ResNets of any width; timm's networks ignore theirs.
    Backbone: {"weights": ["models/moco.safetensors"], "name": ["resnet18", "resnet34", "resnet50"]},
}


@each_value(ENDS)
def test_the_ends_of_the_ranges_are_allowed(kind, name, value):
    validate(kind, {**dumped(kind), name: value})


def test_timm_s_networks_ignore_the_width():
    settings = validate(Backbone, dumped(Backbone) | {"name": "timm", "model": "vit_tiny_patch16_224"})
    assert (settings.model, settings.width) == ("vit_tiny_patch16_224", 4)


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


@pytest.mark.parametrize("name", Data.model_fields["name"].annotation.__args__)
def test_another_source_is_one_setting_away_or_two_with_its_path(name):
    assert validate(Data, {**dumped(Data), "name": name, "path": "photos"}).name == name
