"""Settings that fit a source: valid ones, whatever was set before."""

from collections import Counter

import numpy as np
import pytest

from pipeline.inspect_source import Inspection
from pipeline.params import validate
from pipeline.presets import list_presets, preset_values, read_preset
from pipeline.suggest import suggest_frozen, suggest_training
from scan_core.data.splits import choose_rows
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from tests.project import ROOT, completed

DIGITS, PHOTOS = (read_preset(ROOT / "presets" / f"{name}.yaml") for name in ("digits", "photos"))
SPACES = (("efficientnet_lite0", 160), ("efficientnet_lite2", 128))
OTHERS = [
    {  # as scan weights import prints them
        "data": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 224, "view": 160}, "embed": {"features": "backbone"},
        "backbone": {"name": "timm", "model": "vit_small_patch14_dinov2", "weights": "w.safetensors"},
        "pretext": {"method": "none"}, "selflabel": {"train": "head"},
        "cluster": {"train": "head", "augmentation": {"kind": "none"}, "num_clusters": 10, "prior": [0.1] * 10},
    },
    {"data": {"store": "jpeg"}, "neighbors": {"smoothing": 50}},
    *(
        {"pretext": {"method": method}, "embed": {"features": "backbone"}}
        for method in variants(Pretext) if method not in ("frozen", "adapted")
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def seen(count=3000, short=40, oblong=0, **others):
    sizes = [(short, 3 * short)] * oblong + [(2 * short, short)] * (10 - oblong)
    return Inspection("photos", DIGITS.data, sizes=sizes, images=count, **{"cut": oblong / 10, **others})


def changed(values, suggested):
    """Settings after ``--use``: each that is suggested takes the place of the one there."""
    after = {key: value | suggested.get(key, {}) if isinstance(value, dict) else value for key, value in values.items()}
    return validate(completed(after), ROOT)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("preset", sorted(list_presets(ROOT / "presets")))
@pytest.mark.slow
def test_any_settings_become_those_of_a_network_trained_from_scratch(preset, gray):
    own = preset_values(ROOT / "presets" / f"{preset}.yaml")
    for other in ({}, *([] if own["embed"]["spaces"] else OTHERS)):
        before = changed(own, other)
        for count in (8, 500, 3000):
            suggested = suggest_training(seen(count, all_gray=gray), before, "none")
            after = changed(before.model_dump(mode="json"), suggested)
            assert (after.data.mean, after.data.std, after.data.stored, after.embed.spaces) == (None, None, "array", ())
            assert (after.backbone.name, after.backbone.model, after.backbone.weights) == ("resnet18", None, None)
            assert (after.cluster.train, after.selflabel.train, after.cluster.prior) == ("all", "all", None)
            assert after.cluster.augmentation.kind != "none"
            method = before.pretext.method
            kept = method not in ("none", "frozen", "adapted", "moco") or (method == "moco" and count == 3000)
            assert after.pretext.method == (method if kept else "simclr")
            assert after.neighbors.smoothing == min(before.neighbors.smoothing, after.neighbors.k)


@pytest.mark.parametrize(("preset", "other"), [("digits", OTHERS[0]), ("imagenet_50", {}), ("photos", {})])
@pytest.mark.parametrize(("count", "short", "spaces", "stored"), [
    (4, 32, SPACES, 32), (3000, 130, SPACES, 160), (3000, 3000, SPACES, 160), (3000, 3000, SPACES[1:], 128),
])  # fmt: skip
def test_any_settings_become_those_of_frozen_networks(preset, other, count, short, spaces, stored):
    values = changed(preset_values(ROOT / "presets" / f"{preset}.yaml"), other).model_dump(mode="json")
    after = changed(values, suggest_frozen(seen(count, short, oblong=10), "none", spaces))
    assert (after.data.path, after.data.labels, after.data.duplicates) == ("photos", "none", "together")
    assert (after.data.size, after.data.view, after.data.mean, after.data.fit) == (stored, None, None, "pad")
    assert tuple((each.weights, each.side) for each in after.embed.spaces) == spaces
    assert (after.pretext.method, after.backbone.weights, after.selflabel.epochs) == ("frozen", None, 0)
    cluster = after.cluster.model_dump(exclude={"num_clusters", "neighbors", "val_neighbors"})
    assert cluster.items() <= PHOTOS.cluster.model_dump().items(), "not what an earlier method left"


@pytest.mark.parametrize(("gray", "flip"), [(False, 0.5), (True, 0.0)])
def test_the_first_network_adapts_at_its_own_pixels_and_digits_are_not_mirrored(gray, flip):
    values = preset_values(ROOT / "presets" / "digits.yaml")
    after = changed(values, suggest_frozen(seen(all_gray=gray), "none", SPACES, adapt=True))
    adapted = after.pretext
    assert (adapted.method, adapted.weights, adapted.side) == ("adapted", "efficientnet_lite0", 160)
    assert (
        adapted.augmentation.flip == flip and tuple((each.weights, each.side) for each in after.embed.spaces) == SPACES
    )


@pytest.mark.parametrize(("labels", "classes", "train", "val", "protocol", "k", "frozen_k", "groups"), [
    ("none", 0, 4, 0, "all", 1, 3, "auto"), ("none", 9, 45, 0, "all", 1, 44, "auto"),
    ("none", 3, 300, 0, "all", 13, 50, "auto"), ("none", 3, 3000, 0, "all", 50, 50, "auto"),
    ("folders", 3, 300, 0, "split", 38, 50, 3), ("folders", 1, 3000, 0, "split", 50, 50, "auto"),
    ("folders", 40, 30, 40, "split", 29, 29, 40), ("none", 40, 40, 30, "split", 29, 50, "auto"),
])  # fmt: skip
@pytest.mark.parametrize("frozen", [True, False])
def test_labels_classes_and_numbers_of_images_decide(
    frozen, labels, classes, train, val, protocol, k, frozen_k, groups
):
    """Subfolders are groups only if they are classes, and no more neighbors are mined than there are.

    Training needs as many in val; on frozen networks all images are grouped if there are no labels.
    """
    k, protocol = (frozen_k, "split" if labels == "folders" else "all") if frozen else (k, protocol)
    counted = Counter(train=train, val=val) if val else Counter({"no split of its own": train})
    found = seen(train + val, splits=counted, classes=[str(number) for number in range(classes)])
    suggested = suggest_frozen(found, labels, SPACES) if frozen else suggest_training(found, DIGITS, labels)
    data, cluster = suggested["data"], suggested["cluster"]
    assert (data["labels"], data["protocol"], cluster["num_clusters"]) == (labels, protocol, groups)
    assert data["boxes"] is None, "those in use are of another source"
    assert (suggested["neighbors"]["k"], cluster["neighbors"], cluster["val_neighbors"]) == (k, min(k, 20), min(k, 5))
    digests = np.random.default_rng(0).integers(0, 256, (train + val, 32), dtype=np.uint8)
    rows = choose_rows(["train" if val else None] * train + ["val"] * val, digests, DIGITS.data.model_copy(update=data))
    assert k < (len(rows["train"]) if frozen else min(len(rows["train"]), len(rows["val"])))


@pytest.mark.parametrize(("short", "oblong", "count", "size", "fit", "stem", "batch"), [
    (30, 0, 3000, 32, "crop", "small", 512), (64, 2, 3000, 64, "crop", "stl", 512), (64, 0, 4, 64, "crop", "stl", 2),
    (96, 5, 3000, 96, "crop", "stl", 256),
    (96, 6, 3000, 96, "pad", "stl", 256), (900, 9, 3000, 128, "pad", "stl", 256), (64, 0, 99, 64, "crop", "stl", 24),
])  # fmt: skip
def test_the_network_and_its_batch_fit_the_images(short, oblong, count, size, fit, stem, batch):
    suggested = suggest_training(seen(count, short, oblong), DIGITS, "none")
    assert (suggested["data"]["size"], suggested["data"]["fit"], suggested["backbone"]["stem"]) == (size, fit, stem)
    assert [suggested[a]["batch_size"] for a in ("pretext", "cluster", "selflabel")] == [batch, min(batch, 128), batch]
    assert suggested["selflabel"]["augmentation"]["cutout"] == size // 3
    assert {suggested[stage]["augmentation"]["flip"] for stage in ("pretext", "cluster", "selflabel")} == {0.5}
    gray = suggest_training(seen(count, short, oblong, all_gray=True), DIGITS, "none")
    assert not any("augmentation" in group for group in gray.values()), "they may be digits, which have no mirror image"
