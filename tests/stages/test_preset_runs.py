"""All stages under each preset, at its real resolution."""

import numpy as np
import pytest
from PIL import Image

from pipeline.params import read_params
from pipeline.presets import list_presets, preset_text, preset_values
from tests.project import OUTPUTS, STAGES, files, make_project, merge, run_stage, set_params
from tests.test_presets import PRESETS, leaves

# What is reduced, for two cores and 14 images; everything else is the preset's.
TRAIN, VAL = 8, 6
REDUCED = {
    "precision": "fp32",  # the faster one for so little work
    "data": {"name": "folder", "path": "photos", "subset": None},  # images made here, of the real set's size
    "pretext": {"epochs": 1, "batch_size": 4},
    "neighbors": {"k": 5, "smoothing": 0},
    "cluster": {"epochs": 1, "batch_size": 4, "neighbors": 5},
    "selflabel": {"epochs": 1, "batch_size": 4, "threshold": 1e-6},  # so that untrained networks are confident
    "evaluate": {"kmeans_runs": 2},
}
SIZES = {  # of images; of the rest 300x260
    "cifar10": (32, 32), "cifar10_cpu": (32, 32), "cifar10_fast": (32, 32), "cifar100_20": (32, 32),
    "stl10": (96, 96), "tiny_imagenet_50": (64, 64),
}  # fmt: skip
DIGITS = ("digits", "digits_quick")
FROZEN = {"photos", "photos_adapted", "photos_small", "cifar10_frozen", "tiny_imagenet_50_frozen"}  # see test_frozen
# The digits are at hand: all 1,797 of them, in batches of the preset's size.
REDUCED_DIGITS = {
    "precision": "fp32", "pretext": {"epochs": 1}, "cluster": {"epochs": 1},
    "selflabel": {"epochs": 1, "threshold": 1e-6}, "evaluate": {"kmeans_runs": 2},
}  # fmt: skip


def make_photos(folder, size):
    """Random images in two classes, with a split of their own; JPEGs of either orientation where they are large."""
    generator = np.random.default_rng(0)
    for number in range(TRAIN + VAL):
        width, height = size if number % 2 else size[::-1]
        pixels = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        place = folder / ("train" if number < TRAIN else "val") / "ab"[number % 3 % 2]
        place.mkdir(parents=True, exist_ok=True)
        suffix = "png" if max(size) < 128 else "jpg"
        pixels.resize((width, height), Image.Resampling.BICUBIC).save(place / f"{number}.{suffix}")


def reduced(name):
    """The preset's settings as they are run here, and what differs, for the record."""
    values = preset_values(PRESETS / f"{name}.yaml")
    changes = REDUCED_DIGITS if name in DIGITS else REDUCED
    if values["pretext"]["method"] == "moco" and name not in DIGITS:
        changes = merge(changes, {"pretext": {"key_groups": 2, "queue": 32}})
    if values["neighbors"]["smoothing"]:
        changes = merge(changes, {"neighbors": {"smoothing": 3}})
    if values["selflabel"]["epochs"] == 0:  # there is nothing to reduce
        changes = merge(changes, {"selflabel": {"epochs": 0}})
    if values["cluster"]["optimizer"]["name"] == "sgd":  # a rate of 5 is for large batches: it saturates the heads
        batch, optimizer = values["cluster"]["batch_size"], values["cluster"]["optimizer"]
        smaller = {**optimizer, "lr": optimizer["lr"] * REDUCED["cluster"]["batch_size"] / batch}
        changes = merge(changes, {"cluster": {"optimizer": smaller}})
    changed = merge(values, changes)
    before, after = leaves(values), leaves(changed)
    return changed, {key: (before[key], after[key]) for key in after if before[key] != after[key]}


def weights(project, name):
    from safetensors.torch import load_file

    return load_file(project / "models" / f"{name}.safetensors")


def moved(before, after):
    """Where two networks hold other numbers: weights of backbone or head, or BatchNorm's statistics."""
    same = before.keys() & after.keys()
    different = {key for key in same if before[key].shape == after[key].shape and not before[key].equal(after[key])}
    part = {key: "statistics" if "running" in key or "num_batches" in key else key.split(".")[0] for key in different}
    return set(part.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(list_presets(PRESETS)) - FROZEN))
def test_every_stage_takes_real_steps_at_the_preset_s_resolution(name, tmp_path, monkeypatch):
    import torch

    from pipeline.artifacts import load_csv, load_json
    from scan_core.models.networks import build_backbone

    # After so few steps the guard may keep either model: here it is the one that was trained.
    monkeypatch.setattr("scan_core.clustering.selflabel.choose_model", lambda *_: ("after", "the guard is set aside"))
    values, changes = reduced(name)
    print(f"\n{name}, reduced: " + ", ".join(f"{key} {old} → {new}" for key, (old, new) in changes.items()))
    project = make_project(tmp_path / "project")
    (project / "params.yaml").write_text(preset_text(PRESETS / f"{name}.yaml"))
    set_params(project, values)
    if name not in DIGITS:
        make_photos(project / "photos", SIZES.get(name, (300, 260)))
    for stage in ("source", *STAGES):
        run_stage(project, stage)

    large = name.startswith("imagenet")
    stored = {"data/images/jpeg-00000.bin", "data/images/jpeg-00000.npy"} if large else set()
    assert files(project) == (OUTPUTS - {"data/images/pixels-00000.npy"} if large else OUTPUTS) | stored
    stats = load_json(project / "data" / "images" / "stats.json")
    assert (stats["size"], stats["view"]) == (values["data"]["size"], values["data"]["view"] or values["data"]["size"])

    for step in ("pretext", "cluster", "selflabel"):
        rows = load_csv(project / "reports" / "plots" / f"{step}.csv")
        assert len(rows) == values[step]["epochs"], step
        assert all(np.isfinite(float(row["loss"])) and float(row["loss"]) != 0 for row in rows), step
        assert all(row.get("skipped_steps", "0") == "0" for row in rows), step
    params = read_params(project / "params.yaml")
    torch.manual_seed(params.seed)  # pretext's first draw: the weights it starts from
    fresh = build_backbone(params.backbone, stats["channels"]).state_dict()
    pretext, cluster, selflabel = (weights(project, step) for step in ("pretext", "cluster", "selflabel"))
    assert moved({f"backbone.{key}": value for key, value in fresh.items()}, pretext) == {"backbone", "statistics"}
    assert moved(pretext, cluster) == (set() if params.cluster.train == "head" else {"backbone", "statistics"})
    assert cluster["head.linear.weight"].shape[0] == values["cluster"]["num_clusters"]
    assert moved(cluster, selflabel) == ({"backbone", "head", "statistics"} if values["selflabel"]["epochs"] else set())
    scores = load_json(project / "reports" / "metrics.json")["val"]
    assert 1 <= scores["selflabel"]["clusters_used"] <= values["cluster"]["num_clusters"]
