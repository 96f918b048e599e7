"""Settings that fit a source: valid ones, whatever was set before."""

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.inspect_source import Inspection
from pipeline.params import Params
from pipeline.presets import list_presets, preset_values, read_preset
from pipeline.suggest import default_groups, suggest_frozen, suggest_training
from scan_core.data.splits import choose_rows
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from tests.project import ROOT, completed, merge

SPACES = (("efficientnet_lite0", 160), ("efficientnet_lite2", 160))
IMPORTED = {  # as scan weights import prints them
    "data": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 224, "view": 160},
    "backbone": {"name": "timm", "model": "vit_small_patch14_dinov2", "stem": "imagenet", "weights": "w.safetensors"},
    "pretext": {"method": "none"},
    "embed": {"features": "backbone"},
    "cluster": {"train": "head", "augmentation": {"kind": "none"}, "num_clusters": 10, "prior": [0.1] * 10},
    "selflabel": {"train": "head"},
}
MINED = {"data": {"store": "jpeg"}, "neighbors": {"smoothing": 50}}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def present():
    return read_preset(ROOT / "presets" / "digits.yaml")


def seen(base, count, short=40, **others):
    return Inspection("photos", base, sizes=[(2 * short, short)] * min(count, 96), images=count, **others)


def changed(values, suggested):
    """Settings after ``--use``: each that is suggested takes the place of the one there."""
    after = {
        key: {**value, **suggested.get(key, {})} if isinstance(value, dict) else value for key, value in values.items()
    }
    return Params.model_validate_json(json.dumps(completed(after)))


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("preset", sorted(list_presets(ROOT / "presets")))
@pytest.mark.slow
def test_any_settings_become_those_of_a_network_trained_from_scratch(preset, gray):
    own = preset_values(ROOT / "presets" / f"{preset}.yaml")
    others = [] if own["embed"]["spaces"] else [IMPORTED, MINED]
    trained = [method for method in variants(Pretext) if method != "frozen"]
    others += [{"pretext": {"method": method}, "embed": {"features": "backbone"}} for method in trained if others]
    for other in ({}, *others):
        before = changed(own, other)
        values = before.model_dump(mode="json")
        for count in (8, 500, 3000):
            after = changed(values, suggest_training(seen(before.data, count, all_gray=gray), before, "none"))
            assert (after.data.mean, after.data.std, after.data.stored) == (None, None, "array")
            assert (after.backbone.name, after.backbone.model, after.backbone.weights) == ("resnet18", None, None)
            assert (after.cluster.method, after.cluster.train, after.cluster.prior) == ("scan", "all", None)
            assert (after.selflabel.train, after.embed.spaces) == ("all", ())
            assert after.cluster.augmentation.kind != "none"
            method = before.pretext.method
            kept = method not in ("none", "frozen", "moco") or (method == "moco" and count == 3000)
            assert after.pretext.method == (method if kept else "simclr")
            assert after.neighbors.smoothing == min(before.neighbors.smoothing, after.neighbors.k)


@pytest.mark.parametrize("preset", ["digits", "imagenet_50", "photos"])
@pytest.mark.parametrize("count", [4, 3000])
@pytest.mark.parametrize(("short", "sides", "stored"), [
    (32, [128], 32), (100, [128, 128], 128), (130, [160], 160), (3000, [224, 160], 224), (3000, [128, 128], 128),
])  # fmt: skip
def test_any_settings_become_those_of_frozen_networks(preset, count, short, sides, stored):
    """No more pixels are stored than the networks see, nor than the images have."""
    values = preset_values(ROOT / "presets" / f"{preset}.yaml")
    before = Params.model_validate_json(json.dumps(values))
    spaces = tuple((name, side) for (name, _), side in zip(SPACES, sides, strict=False))
    after = changed(values, suggest_frozen(seen(before.data, count, short), "none", spaces))
    assert (after.data.path, after.data.labels, after.data.duplicates) == ("photos", "none", "keep")
    assert (after.data.size, after.data.view, after.data.mean, after.data.fit) == (stored, None, None, "crop")
    assert [(each.weights, each.side, each.mirror) for each in after.embed.spaces] == [
        (*each, False) for each in spaces
    ]
    assert (after.pretext.method, after.cluster.method, after.selflabel.epochs) == ("frozen", "frozen", 0)
    assert (after.backbone.model, after.backbone.weights, after.neighbors.smoothing) == (None, None, 0)
    photos = read_preset(ROOT / "presets" / "photos.yaml").cluster  # not what an earlier method left
    few = {key: getattr(after.cluster, key) for key in ("num_clusters", "neighbors", "val_neighbors")}
    assert after.cluster == photos.model_copy(update=few)


@pytest.mark.parametrize(("labels", "classes", "images", "groups"), [
    ("none", 3, 500, 10), ("folders", 3, 500, 3), ("folders", 1, 500, 10), ("none", 99, 45, 4), ("folders", 0, 4, 2),
])  # fmt: skip
def test_subfolders_decide_how_many_groups_there_are_only_if_they_are_classes(present, labels, classes, images, groups):
    found = seen(present.data, images, classes=[str(number) for number in range(classes)])
    assert default_groups(found, labels) == groups
    for suggested in (suggest_training(found, present, labels), suggest_frozen(found, labels, SPACES)):
        assert suggested["cluster"]["num_clusters"] == groups and suggested["data"]["labels"] == labels


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("labels", "train", "val", "protocol", "k"), [
    ("none", 4, 0, "all", 1), ("none", 300, 0, "all", 13), ("none", 3000, 0, "all", 50),
    ("folders", 4, 0, "split", 1), ("folders", 300, 0, "split", 38), ("folders", 3000, 0, "split", 50),
    ("folders", 30, 40, "split", 29), ("folders", 40, 30, "split", 29),
])  # fmt: skip
def test_so_many_neighbors_are_mined_as_train_and_val_surely_have(present, labels, train, val, protocol, k, frozen):
    splits = ["train" if val else None] * train + ["val"] * val
    counted = Counter(train=train, val=val) if val else Counter({"no split of its own": train})
    found = seen(present.data, train + val, splits=counted)
    suggested = suggest_frozen(found, labels, SPACES) if frozen else suggest_training(found, present, labels)
    assert (suggested["data"]["protocol"], suggested["neighbors"]["k"]) == (protocol, k)
    assert suggested["cluster"]["neighbors"] == min(k, 20) and suggested["cluster"]["val_neighbors"] == min(k, 5)
    settings = present.data.model_copy(update=suggested["data"])
    for seed in range(20):
        digests = np.random.default_rng(seed).integers(0, 256, (train + val, 32), dtype=np.uint8)
        rows = choose_rows(splits, digests, settings)
        assert k < min(len(rows["train"]), len(rows["val"]))


def test_a_source_s_own_split_is_trained_on_without_labels_too(present):
    found = seen(present.data, 70, splits=Counter(train=40, val=30))
    suggested = suggest_training(found, present, "none")
    assert (suggested["data"]["protocol"], suggested["neighbors"]["k"]) == ("split", 29)
    assert suggest_frozen(found, "none", SPACES)["data"]["protocol"] == "all"


@pytest.mark.parametrize(("short", "count", "size", "stem", "batch"), [
    (30, 3000, 32, "small", 512), (64, 3000, 64, "stl", 512), (96, 3000, 96, "stl", 256), (900, 3000, 128, "stl", 256),
    (64, 100, 64, "stl", 25), (64, 4, 64, "stl", 2),
])  # fmt: skip
def test_the_network_and_its_batch_fit_the_images(present, short, count, size, stem, batch):
    suggested = suggest_training(seen(present.data, count, short), present, "none")
    assert (suggested["data"]["size"], suggested["backbone"]["stem"]) == (size, stem)
    assert suggested["pretext"]["batch_size"] == suggested["selflabel"]["batch_size"] == batch
    assert suggested["cluster"]["batch_size"] == min(batch, 128)
    for stage in ("cluster", "selflabel"):
        assert suggested[stage]["augmentation"].get("cutout", size // 3) == size // 3


@pytest.mark.parametrize(("oblong", "fit"), [(0, "crop"), (2, "crop"), (3, "pad"), (10, "pad")])
def test_long_images_are_padded_if_there_are_many(present, oblong, fit):
    found = Inspection("photos", present.data, images=10, sizes=[(80, 300)] * oblong + [(160, 80)] * (10 - oblong))
    assert suggest_training(found, present, "none")["data"]["fit"] == fit
    assert suggest_frozen(found, "none", SPACES)["data"]["fit"] == "crop"


def test_only_color_images_get_other_augmentations(present):
    """Gray ones may be digits, which must not be flipped."""
    gray = suggest_training(seen(present.data, 500, all_gray=True), present, "none")
    assert not any("augmentation" in group for group in gray.values())
    color = merge(
        preset_values(ROOT / "presets" / "digits.yaml"), suggest_training(seen(present.data, 500), present, "none")
    )
    for stage in ("pretext", "cluster", "selflabel"):
        assert color[stage]["augmentation"]["flip"] == 0.5
    assert color["pretext"]["augmentation"]["hue"] == 0.1 and color["selflabel"]["augmentation"]["cutout"] == 64 // 3
