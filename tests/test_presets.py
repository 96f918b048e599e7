"""Every preset against the published settings, value by value."""

import re

import pytest

from pipeline.presets import preset_values, read_header
from tests.project import ROOT

PRESETS = ROOT / "presets"
COLUMNS = ("cifar10", "cifar100_20", "stl10", "imagenet_50", "imagenet_100", "imagenet_200", "imagenet_1000")
SMALL, LARGE = COLUMNS[:3], COLUMNS[3:]  # CIFAR and STL-10, and ImageNet


def each(*values):
    """One value a column; of fewer, the last one is that of all columns that remain."""
    return dict(zip(COLUMNS, (*values, *[values[-1]] * (len(COLUMNS) - len(values))), strict=True))


def small_large(small, large):
    return each(small, small, small, large)


def row(group, columns=COLUMNS, **settings):
    """Settings of ``group`` → column → value; what ``each`` has not made is the value of all ``columns``."""
    tables = {name: value if isinstance(value, dict) else each(value) for name, value in settings.items()}
    return {f"{group}.{name}": {column: table[column] for column in columns} for name, table in tables.items()}


# The published SimCLR augmentation; crops of the usual 3/4 to 4/3, nothing turned.
SIMCLR = {
    "crop_size": None, "crop_scale": [0.2, 1.0], "crop_ratio": [0.75, 1.3333], "rotate": 0, "shear": 0, "flip": 0.5,
    "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2,
    "blur_sigma": [0.1, 2.0],
}  # fmt: skip

# The paper's table, row by row, from its text. Nothing here was read from a preset.
PUBLISHED = [
    # Data set
    row("data", name=each("cifar10", "cifar100_20", "stl10", "imagenet"), protocol="split", extra="pretext"),
    row("data", subset=each(None, None, None, 50, 100, 200, None), size=each(32, 32, 96, 256)),
    row("data", view=small_large(None, 224)),
    row("data", mean=each([0.4914, 0.4822, 0.4465], [0.5071, 0.4867, 0.4408], [0.485, 0.456, 0.406])),
    row("data", std=each([0.2023, 0.1994, 0.2010], [0.2675, 0.2565, 0.2761], [0.229, 0.224, 0.225])),
    row("cluster", num_clusters=each(10, 20, 10, 50, 100, 200, 1000)),
    # Backbone
    row("backbone", name=small_large("resnet18", "resnet50"), width=64, stem=each("small", "small", "stl", "imagenet")),
    # Pretext
    row("pretext", method=small_large("simclr", "moco"), epochs=small_large(500, 800)),
    row("pretext", temperature=small_large(0.1, 0.2), batch_size=small_large(512, 256)),
    row("pretext.optimizer", name="sgd", lr=small_large(0.4, 0.03), momentum=0.9, weight_decay=1e-4, schedule="cosine"),
    row("pretext.optimizer", warmup_epochs=small_large(10, 0)),  # 10 is this project's: the paper names none
    row("pretext.optimizer", final_lr=small_large(4e-4, 0.0)),
    row("pretext", LARGE, encoder_momentum=0.999, queue=65536, key_groups=8),  # MoCo v2
    row("pretext", projection=128, hidden=None, projector_norm=False),  # None: as many as the features
    row("pretext.augmentation", kind="simclr", blur=small_large(0.0, 0.5), **SIMCLR),
    # Neighbors K (train), and the features in which they are mined
    row("cluster", neighbors=each(20, 20, 20, 50, 50, 50, 20)),
    row("embed", features=small_large("projector", "backbone")),
    # SCAN
    row("cluster", epochs=100, batch_size=each(128, 128, 128, 512, 1024, 1024, 4096)),
    row("cluster", heads=small_large(1, 10), train=small_large("all", "head")),
    row("cluster.optimizer", name=small_large("adam", "sgd"), lr=each(1e-4, 1e-4, 1e-4, 5.0, 5.0, 5.0, 30.0)),
    row("cluster.optimizer", momentum=0.9, weight_decay=small_large(1e-4, 0), schedule="constant", warmup_epochs=0),
    row("cluster.augmentation", kind=small_large("strong", "simclr")),
    row("cluster.augmentation", LARGE, blur=0.0, **SIMCLR),
    row("cluster.augmentation", SMALL, flip=0.5, operations=4, cutout=each(16, 16, 32)),
    # λ
    row("cluster", entropy_weight=5.0, entropy_of="anchors", prior=None, val_neighbors=5),
    # Self-labeling
    row("selflabel", threshold=0.99, epochs=each(200, 200, 200, 25, 25, 25, 0), batch_size=small_large(1000, 512)),
    row("selflabel", class_weights=small_large(True, False), ema=small_large(0.0, 0.999)),
    row("selflabel.optimizer", name=small_large("adam", "sgd"), lr=small_large(1e-4, 0.03), momentum=0.9),
    row("selflabel.augmentation", kind="strong", flip=0.5, operations=4, cutout=each(16, 16, 32, 75)),
]

# What the publications do not say, or what none of these sets or methods has a use for. Also value by value.
NOT_PUBLISHED = [
    {"seed": each(0), "precision": each("auto")},
    row("data", path=None, labels="folders", fit="crop", store="auto", shard_rows=100000, duplicates="keep"),
    row("data", boxes=None, split="source"),
    row("data", val_fraction=0.2, split_seed=0, max_rejected=0.05, max_pixels=200000000, range=None, max_unpacked=200),
    row("backbone", model=None, weights=None),
    row("embed", spaces=[], dimensions=256),
    row("cluster", method="scan"),
    row("neighbors", k=50, smoothing=0, exact_rows=200000, recall=0.95),
    row("cluster.optimizer", final_lr=0.0),
    row("selflabel", train="all"),
    row("selflabel.optimizer", weight_decay=small_large(1e-4, 0.0), schedule="constant", warmup_epochs=0, final_lr=0.0),
    row("evaluate", kmeans_runs=10, pictures=True, probes=False),
]

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
    for table in (*PUBLISHED, *NOT_PUBLISHED):
        for key, values in table.items():
            if column in values:
                assert key not in found, f"{key} of {column} stands in two rows"
                found[key] = values[column]
    return found


@pytest.mark.parametrize("column", COLUMNS)
def test_a_preset_holds_the_published_values_and_no_others(column):
    assert leaves(preset_values(PRESETS / f"{column}.yaml")) == wanted(column)


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
