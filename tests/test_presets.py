"""Every preset against the published settings, value by value."""

import re

import pytest

from pipeline.presets import list_presets, preset_text, preset_values, read_header, read_preset
from tests.project import ROOT

PRESETS = ROOT / "presets"
COLUMNS = ("cifar10", "cifar100_20", "stl10", "imagenet_50", "imagenet_100", "imagenet_200", "imagenet_1000")


def each(*values):
    """One value a column; of fewer, the last one is that of all columns that remain."""
    return dict(zip(COLUMNS, (*values, *[values[-1]] * (len(COLUMNS) - len(values))), strict=True))


def small_large(small, large):
    """One value for CIFAR and STL-10, one for ImageNet."""
    return each(small, small, small, large)


def views(group, blur):
    """The published SimCLR augmentation, as settings of ``group``; crops of the usual 3/4 to 4/3, nothing turned."""
    return {
        f"{group}.augmentation.{name}": value
        for name, value in {
            "crop_size": each(None), "crop_scale": each([0.2, 1.0]), "crop_ratio": each([0.75, 1.3333]),
            "rotate": each(0), "shear": each(0),
            "flip": each(0.5), "jitter": each(0.8), "brightness": each(0.4), "contrast": each(0.4),
            "saturation": each(0.4), "hue": each(0.1), "grayscale": each(0.2), "blur": blur,
            "blur_sigma": each([0.1, 2.0]),
        }.items()
    }  # fmt: skip


def large_only(table):
    return {key: {name: value[name] for name in COLUMNS[3:]} for key, value in table.items()}


def small_only(table):
    return {key: {name: value[name] for name in COLUMNS[:3]} for key, value in table.items()}


# The paper's table, row by row, from its text: setting → column → value. Nothing here was read from a preset.
PUBLISHED = {
    "data set": {
        "data.name": each("cifar10", "cifar100_20", "stl10", "imagenet"),
        "data.subset": each(None, None, None, 50, 100, 200, None),
        "cluster.num_clusters": each(10, 20, 10, 50, 100, 200, 1000),
    },
    "backbone": {
        "backbone.name": small_large("resnet18", "resnet50"),
        "backbone.width": each(64),
        "backbone.stem": each("small", "small", "stl", "imagenet"),
        "data.size": each(32, 32, 96, 256),
        "data.view": small_large(None, 224),
    },
    "pretext": {
        "pretext.method": small_large("simclr", "moco"),
        "pretext.epochs": small_large(500, 800),
        "pretext.temperature": small_large(0.1, 0.2),
        "data.extra": each("pretext"),
    },
    "pretext optimizer": {
        "pretext.batch_size": small_large(512, 256),
        "pretext.optimizer.name": each("sgd"),
        "pretext.optimizer.lr": small_large(0.4, 0.03),
        "pretext.optimizer.momentum": each(0.9),
        "pretext.optimizer.weight_decay": each(1e-4),
        "pretext.optimizer.schedule": each("cosine"),
        "pretext.optimizer.warmup_epochs": small_large(10, 0),  # 10 is this project's: the paper names none
        "pretext.optimizer.final_lr": small_large(4e-4, 0.0),
    },
    "MoCo v2": large_only({
        "pretext.encoder_momentum": each(0.999),
        "pretext.queue": each(65536),
        "pretext.key_groups": each(8),
    }),
    "projector": {
        "pretext.projection": each(128),
        "pretext.hidden": each(None),  # as many as the features
        "pretext.projector_norm": each(False),
    },
    "pretext augmentation": {
        "pretext.augmentation.kind": each("simclr"),
        **views("pretext", small_large(0.0, 0.5)),
    },
    "neighbors K (train)": {"cluster.neighbors": each(20, 20, 20, 50, 50, 50, 20)},
    "features mined": {"embed.features": small_large("projector", "backbone")},
    "SCAN epochs, batch": {
        "cluster.epochs": each(100),
        "cluster.batch_size": each(128, 128, 128, 512, 1024, 1024, 4096),
    },
    "SCAN optimizer": {
        "cluster.optimizer.name": small_large("adam", "sgd"),
        "cluster.optimizer.lr": each(1e-4, 1e-4, 1e-4, 5.0, 5.0, 5.0, 30.0),
        "cluster.optimizer.momentum": each(0.9),
        "cluster.optimizer.weight_decay": small_large(1e-4, 0),
        "cluster.optimizer.schedule": each("constant"),
        "cluster.optimizer.warmup_epochs": each(0),
    },
    "heads, trained part": {
        "cluster.heads": small_large(1, 10),
        "cluster.train": small_large("all", "head"),
    },
    "SCAN augmentation": {
        "cluster.augmentation.kind": small_large("strong", "simclr"),
        **large_only(views("cluster", each(0.0))),
        "cluster.augmentation.flip": each(0.5),
        **small_only({
            "cluster.augmentation.operations": each(4),
            "cluster.augmentation.cutout": each(16, 16, 32),
        }),
    },
    "λ": {
        "cluster.entropy_weight": each(5.0),
        "cluster.entropy_of": each("anchors"),
        "cluster.prior": each(None),
        "cluster.val_neighbors": each(5),
    },
    "self-label": {
        "selflabel.threshold": each(0.99),
        "selflabel.epochs": each(200, 200, 200, 25, 25, 25, 0),
        "selflabel.batch_size": small_large(1000, 512),
        "selflabel.class_weights": small_large(True, False),
        "selflabel.ema": small_large(0.0, 0.999),
        "selflabel.optimizer.name": small_large("adam", "sgd"),
        "selflabel.optimizer.lr": small_large(1e-4, 0.03),
        "selflabel.optimizer.momentum": each(0.9),
        "selflabel.augmentation.kind": each("strong"),
        "selflabel.augmentation.flip": each(0.5),
        "selflabel.augmentation.operations": each(4),
        "selflabel.augmentation.cutout": each(16, 16, 32, 75),
    },
    "mean / std": {
        "data.mean": each([0.4914, 0.4822, 0.4465], [0.5071, 0.4867, 0.4408], [0.485, 0.456, 0.406]),
        "data.std": each([0.2023, 0.1994, 0.2010], [0.2675, 0.2565, 0.2761], [0.229, 0.224, 0.225]),
    },
    "protocol": {"data.protocol": each("split")},
}  # fmt: skip

# What the publications do not say, or what none of these sets or methods has a use for. Also value by value.
NOT_PUBLISHED = {
    "seed": each(0),
    "precision": each("auto"),
    "data.path": each(None),
    "data.labels": each("folders"),
    "data.fit": each("crop"),
    "data.store": each("auto"),
    "data.shard_rows": each(100000),
    "data.duplicates": each("keep"),
    "data.val_fraction": each(0.2),
    "data.split_seed": each(0),
    "data.max_rejected": each(0.05),
    "data.max_pixels": each(200000000),
    "data.max_unpacked": each(200),
    "backbone.model": each(None),
    "backbone.weights": each(None),
    "neighbors.k": each(50),
    "neighbors.smoothing": each(0),
    "neighbors.exact_rows": each(200000),
    "neighbors.recall": each(0.95),
    "cluster.optimizer.final_lr": each(0.0),
    "selflabel.train": each("all"),
    "selflabel.optimizer.weight_decay": small_large(1e-4, 0.0),
    "selflabel.optimizer.schedule": each("constant"),
    "selflabel.optimizer.warmup_epochs": each(0),
    "selflabel.optimizer.final_lr": each(0.0),
    "evaluate.kmeans_runs": each(10),
    "evaluate.probes": each(False),
}  # fmt: skip

# Where the authors' published configuration has another value than their paper.
CONFIG = {
    "cifar10": {"cluster.epochs": "50"},
    "cifar100_20": {"cluster.batch_size": "512"},
    "stl10": {"selflabel.epochs": "100"},
    "imagenet_1000": {"cluster.neighbors": "50", "cluster.optimizer.lr": "5.0"},
}

# ACC / NMI / ARI, then what else the header quotes, in its order; and how many of these it must call "reported".
RESULTS = {
    "cifar10": ("87.6 0.4 78.7 75.8 88.3 79.7 77.2 81.8 0.3 71.2 66.5", 1),
    "cifar100_20": ("45.9 2.7 46.8 30.1 50.7 48.6 33.3 42.2 3.0 44.1 26.7", 2),
    "stl10": ("76.7 1.9 68.0 61.6 80.9 69.8 64.6 75.5 2.0 65.4 59.0", 2),
    "imagenet_50": ("76.8 82.2 66.1 75.1", 0),
    "imagenet_100": ("68.9 80.8 57.6 66.2", 0),
    "imagenet_200": ("58.1 77.2 47.0 56.3", 0),
    "imagenet_1000": ("39.9 72.0 27.5 60.0 51.2", 0),
}


def leaves(values, prefix=""):
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def wanted(column):
    """Every setting of a column, of both tables; none may stand in two rows."""
    found = {}
    for row in (*PUBLISHED.values(), NOT_PUBLISHED):
        for key, values in row.items():
            if column in values:
                assert key not in found, f"{key} of {column} stands in two rows"
                found[key] = values[column]
    return found


PRESET_NAMES = sorted(list_presets(PRESETS))


def test_there_is_a_preset_for_every_published_column_and_the_digits():
    assert {*COLUMNS, "digits"} <= set(PRESET_NAMES)


def test_the_table_has_every_published_row():
    rows = {
        "backbone", "pretext", "pretext optimizer", "neighbors K (train)", "features mined", "SCAN epochs, batch",
        "SCAN optimizer", "heads, trained part", "SCAN augmentation", "λ", "self-label",
    }  # fmt: skip
    beside_the_table = {"data set", "MoCo v2", "projector", "pretext augmentation", "mean / std", "protocol"}
    assert set(PUBLISHED) == rows | beside_the_table
    for row in rows:
        assert {column for values in PUBLISHED[row].values() for column in values} == set(COLUMNS), row


@pytest.mark.parametrize("column", COLUMNS)
def test_a_preset_holds_the_published_values_and_no_others(column):
    values = leaves(preset_values(PRESETS / f"{column}.yaml"))
    table = wanted(column)
    assert set(values) == set(table)
    assert {key: (values[key], table[key]) for key in table if values[key] != table[key]} == {}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_comment_gives_the_other_value_where_paper_and_configuration_differ(column):
    path, found = [], {}
    for line in (PRESETS / f"{column}.yaml").read_text(encoding="utf-8").splitlines():
        if setting := re.match(r"( *)(\w+):", line):
            path = [*path[: len(setting[1]) // 2], setting[2]]
            if config := re.search(r"# config: (.+)$", line):
                found[".".join(path)] = config[1]
    assert found == CONFIG.get(column, {})


@pytest.mark.parametrize("column", COLUMNS)
def test_the_expected_result_is_the_published_one(column):
    expected = read_header(PRESETS / f"{column}.yaml")["expected"]
    numbers, reported = RESULTS[column]
    assert re.findall(r"\d+\.\d", expected) == numbers.split()
    assert expected.count("reported") == reported


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_preset_says_where_it_comes_from_what_it_gives_and_what_it_costs(name):
    header = read_header(PRESETS / f"{name}.yaml")
    assert set(header) == {"title", "source", "expected", "cost"} and all(header.values())


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_preset_completed_by_the_base_is_valid_and_has_each_setting_of_its_method(name):
    path = PRESETS / f"{name}.yaml"
    values, settings = preset_values(path), read_preset(path)
    assert list(values) == list(type(settings).model_fields)
    for group in values:
        if isinstance(values[group], dict):
            assert set(values[group]) == set(type(getattr(settings, group)).model_fields)


def test_params_is_what_scan_use_digits_writes_to_the_byte():
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == preset_text(PRESETS / "digits.yaml")


def test_the_network_of_cifar_has_the_published_number_of_parameters():
    from scan_core.models.networks import build_backbone, feature_size

    backbone = build_backbone(read_preset(PRESETS / "cifar10.yaml").backbone, 3)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 11_168_832
    assert feature_size(backbone) == 512
