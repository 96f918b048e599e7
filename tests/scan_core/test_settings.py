"""Settings: whatever is unknown, missing, of a wrong type or out of range is rejected."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from scan_core.settings import (
    AnyAugmentation,
    Augmentation,
    Backbone,
    Cluster,
    Data,
    Embed,
    Evaluate,
    Neighbors,
    NoAugmentation,
    Optimizer,
    Pretext,
    Selflabel,
    SimclrAugmentation,
    StrongAugmentation,
)
from tests.tiny import (
    PLAIN,
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
    NoAugmentation: PLAIN,
    Optimizer: optimizer(),
    Pretext: pretext_settings(),
    Embed: Embed(features="backbone"),
    Neighbors: Neighbors(k=5, smoothing=0, exact_rows=1000, recall=0.95),
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
        "split_seed": [-1, 0.5, 2**64],
        "max_rejected": [-0.1, 1.1, NAN],
        "max_pixels": [0, -1, 1.5],
        "max_unpacked": [0, -1, INF],
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
    Pretext: {
        "method": ["mocov2", "SimCLR", None],
        "epochs": [0, -1, 1.5],
        "batch_size": [1, 0, 2.5],
        "temperature": [0, -0.1, INF],
        "projection": [0, 1.5],
        "hidden": [0, -1, 1.5, "64"],
        "projector_norm": [1, "yes", None],
        "encoder_momentum": [-0.1, 1, 1.5, NAN],
        "queue": [0, 1.5, None],
        "key_groups": [0, 1.5],
        "negatives": [0, 1.5],
        "memory_momentum": [-0.1, 1, NAN],
        "proximal": [-0.1, NAN, INF],
        "optimizer": [None, {}],
        "augmentation": [None, {"kind": "none"}],
    },
    Embed: {"features": ["logits"]},
    Neighbors: {
        "k": [0, -1, 1.5, "5"],
        "smoothing": [-1, 1.5, "5", None],
        "exact_rows": [0, -1, 1.5, "1000", None],
        "recall": [0, -0.5, 1.01, 95, NAN, "0.95", None],
    },
    Cluster: {
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
    Evaluate: {"kmeans_runs": [1, 0, 2.5], "probes": [1, "yes", None]},
}  # fmt: skip
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


def test_only_clustering_does_without_augmentation():
    """A pretext task tells two views of an image apart from others; self-labels of a view train that view itself."""
    none = dumped(NoAugmentation)
    assert TypeAdapter(AnyAugmentation).validate_json(json.dumps(none)) == PLAIN
    assert validate(Cluster, {**dumped(Cluster), "augmentation": none}).augmentation == PLAIN
    for kind in (Pretext, Selflabel):
        with pytest.raises(ValidationError, match="'simclr', 'strong'"):
            validate(kind, {**dumped(kind), "augmentation": none})


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_have_the_published_width(name):
    assert validate(Backbone, {**dumped(Backbone), "name": name, "width": 64}).width == 64
    with pytest.raises(ValidationError, match=f"width is 32; {name} has 64"):
        validate(Backbone, {**dumped(Backbone), "name": name, "width": 32})


def test_timm_needs_the_name_of_a_network_and_no_width():
    settings = validate(Backbone, {**dumped(Backbone), "name": "timm", "model": "vit_tiny_patch16_224"})
    assert (settings.model, settings.width) == ("vit_tiny_patch16_224", 4)
    for model, given in ((None, "null"), ("", '""')):
        with pytest.raises(ValidationError, match=f"model is {given}; backbone.name timm needs"):
            validate(Backbone, {**dumped(Backbone), "name": "timm", "model": model})


@pytest.mark.parametrize("method", Pretext.model_fields["method"].annotation.__args__)
def test_another_pretext_task_is_one_setting_away_and_none_has_no_epochs(method):
    settings = validate(Pretext, {**dumped(Pretext), "method": method})
    assert settings.trained_epochs == (0 if method == "none" else 2)


@pytest.mark.parametrize(
    ("batch_size", "groups", "said"),
    [
        (8, 3, "key_groups is 3; a divisor of batch_size, 8, is allowed"),
        (8, 16, "key_groups is 16; a divisor"),
        (8, 8, "key_groups is 8; at most 4, half of batch_size, is allowed"),
        (2, 2, "key_groups is 2; at most 1"),
    ],
)
def test_moco_s_batch_is_cut_into_equal_parts_of_at_least_two(batch_size, groups, said):
    values = {**dumped(Pretext), "batch_size": batch_size, "key_groups": groups}
    with pytest.raises(ValidationError, match=said):
        validate(Pretext, {**values, "method": "moco"})
    assert validate(Pretext, {**values, "method": "simclr"}).key_groups == groups  # others have no use for it


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_moco_s_batch_may_be_cut_down_to_pairs(groups):
    assert validate(Pretext, {**dumped(Pretext), "method": "moco", "key_groups": groups}).key_groups == groups


def test_a_prior_has_a_share_for_each_cluster():
    values = {**dumped(Cluster), "num_clusters": 4, "prior": [0.5, 0.3, 0.2]}
    with pytest.raises(ValidationError, match="prior has 3 values; one for each cluster, 4, is allowed, or null"):
        validate(Cluster, values)
    assert validate(Cluster, {**values, "num_clusters": 3}).prior == (0.5, 0.3, 0.2)


@pytest.mark.parametrize(
    ("prior", "total"), [([0.5, 0.3, 0.1], "0.9"), ([2, 1, 1], "4"), ([0.5, 0.3, 0.20011], r"1\.00011")]
)
def test_a_prior_has_the_sum_1(prior, total):
    with pytest.raises(ValidationError, match=f"prior has the sum {total}; 1 is allowed"):
        validate(Cluster, {**dumped(Cluster), "prior": prior})


def test_a_prior_may_be_rounded():
    assert validate(Cluster, {**dumped(Cluster), "prior": [0.33333] * 3}).prior == (0.33333,) * 3


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
        (Neighbors, "smoothing", 0),
        (Neighbors, "exact_rows", 1),
        (Neighbors, "recall", 1),
        (Cluster, "neighbors", 0),
        (Cluster, "entropy_weight", 0),
        (Cluster, "num_clusters", 2),
        (Cluster, "prior", [0.98, 0.01, 0.01]),
        (Pretext, "batch_size", 2),
        (Pretext, "hidden", 1),
        (Pretext, "encoder_momentum", 0),
        (Pretext, "memory_momentum", 0),
        (Pretext, "proximal", 0),
        (Selflabel, "ema", 0),
        (Selflabel, "ema", 0.999),
        (Selflabel, "epochs", 0),
        (Data, "mean", [0, 0.5, 1]),
        (Data, "std", [0.001, 1, 0.5]),
        (SimclrAugmentation, "blur", 1),
        (SimclrAugmentation, "crop_size", 8),
        (SimclrAugmentation, "crop_size", None),
        (SimclrAugmentation, "blur_sigma", [0.5, 0.5]),
        (Backbone, "weights", "models/moco.safetensors"),
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


@pytest.mark.parametrize(
    ("name", "stem"), [("convnet", "stl"), ("convnet", "imagenet"), ("resnet18", "patch"), ("resnet50", "patch")]
)
def test_a_stem_is_one_that_the_network_has(name, stem):
    with pytest.raises(ValidationError, match=rf"stem is {stem}; {name} has small"):
        backbone_settings(name=name, width=64, stem=stem)
