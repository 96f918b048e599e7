"""Settings that fit a source which ``inspect_source`` has looked at."""

from typing import Any, Literal

from pipeline.inspect_source import Inspection
from pipeline.params import Params
from pipeline.presets import find_preset, read_preset
from scan_core.data.splits import FIXED_SHARE, fewest

Spaces = tuple[tuple[str, int], ...]  # names of weights, each with the pixels that the network sees
Number = int | Literal["auto"]  # of groups

NEIGHBORS = 50  # suggested for mining if there are as many images
MANY_CUT = 0.5  # share of the images that a central square would spoil, above which all are padded
TRAINED_AT = 128  # pixels at most: a network can be trained from scratch on these, and the store is one array
LARGE = 64  # pixels; on larger images, a batch of 512 needs tens of GiB in training
PHOTOS = "cifar10"  # the preset whose augmentations suit color images


def suggest_frozen(found: Inspection, labels: str, spaces: Spaces, adapt: bool = False) -> dict[str, Any]:
    """Settings that group the source on the features of published networks: minutes on a laptop.

    ``labels`` is ``data.labels``. If it is none, all images are grouped and reported; with them there is a split. With
    ``adapt`` the first network adapts to the images.
    """
    protocol = "all" if labels == "none" else "split"
    train, _ = _split_sizes(found, protocol)
    k = max(min(train - 1, NEIGHBORS), 1)
    cluster = read_preset(find_preset("photos")).cluster.model_dump(mode="json")
    return {
        "data": {
            "name": found.settings.name, "path": found.path, "labels": labels, "boxes": None,
            "split": found.settings.split,
            "size": min(found.side, max(side for _, side in spaces)), "view": None,
            "fit": fit_of(found), "store": "auto",
            "duplicates": "together", "protocol": protocol, "max_rejected": 0.5, "mean": None, "std": None,
        },
        "backbone": {"name": "convnet", "width": 32, "stem": "small", "model": None, "weights": None},
        "pretext": adapted_pretext(found, spaces[0]) if adapt else {"method": "frozen"},
        "embed": {
            "features": "backbone",
            "spaces": [{"weights": weights, "side": side, "mirror": False} for weights, side in spaces],
        },
        "neighbors": {"k": k, "smoothing": 0},
        "cluster": {
            **cluster, "num_clusters": default_groups(found, labels),
            "neighbors": min(20, k), "val_neighbors": min(5, k),
        },
        "selflabel": {"epochs": 0},
    }  # fmt: skip


def adapted_pretext(found: Inspection, space: tuple[str, int]) -> dict[str, Any]:
    """The pretext task in which the network of ``space`` adapts. Gray images may be digits, which are not mirrored."""
    values = read_preset(find_preset("photos_adapted")).pretext.model_dump(mode="json")
    values["weights"], values["side"] = space
    if found.all_gray:
        values["augmentation"]["flip"] = 0.0
    return values


def fit_of(found: Inspection) -> str:
    """pad if a central square would lose most of what is to be seen in half of the images, else crop."""
    return "pad" if found.cut > MANY_CUT else "crop"


def default_groups(found: Inspection, labels: str) -> Number:
    """As many as classes, if there are labels; else the number is estimated from the images."""
    classes = len(found.classes) if labels != "none" else 0
    return classes if classes > 1 else "auto"


def suggest_training(found: Inspection, current: Params, labels: str) -> dict[str, Any]:
    """Settings that train a network on the source alone; the settings that are left out stay as they are.

    ``labels`` is as in ``suggest_frozen``. Values that belong to another data set or to imported weights are replaced.
    """
    side = min(found.side, TRAINED_AT)
    protocol = "all" if labels == "none" and not found.splits["val"] else "split"
    train, val = _split_sizes(found, protocol)
    batch = max(min(256 if side > LARGE else 512, train // 4), 2)
    k = max(min(train, val, NEIGHBORS + 1) - 1, 1)
    suggested: dict[str, Any] = {
        "data": {
            "name": found.settings.name, "path": found.path, "labels": labels, "boxes": None,
            "split": found.settings.split,
            "size": side, "view": None, "fit": fit_of(found), "store": "auto",
            "duplicates": "together", "protocol": protocol, "max_rejected": 0.5, "mean": None, "std": None,
        },
        "backbone": {
            "name": "resnet18", "width": 64, "stem": "stl" if side > 32 else "small", "model": None, "weights": None,
        },
        "pretext": {"method": _method(current, batch), "batch_size": batch},
        "embed": {"spaces": []},
        "neighbors": {"k": k, "smoothing": min(current.neighbors.smoothing, k)},
        "cluster": {
            "method": "scan", "num_clusters": default_groups(found, labels),
            "neighbors": min(20, k), "val_neighbors": min(5, k), "prior": None,
            "train": "all", "batch_size": min(128, batch),
        },
        "selflabel": {"train": "all", "batch_size": batch},
    }  # fmt: skip
    for name, augmentation in _augmentations(found, current, side).items():
        suggested[name]["augmentation"] = augmentation
    return suggested


def _split_sizes(found: Inspection, protocol: str) -> tuple[int, int]:
    """How many images train and val hold at least, as good as surely."""
    readable = found.images - len(found.refused)  # few images are all in the sample
    if protocol == "all":  # a split of the source is not used then
        count = readable - found.splits["unlabeled"]
        return count, fewest(count, FIXED_SHARE)
    if found.splits["val"]:
        return found.splits["train"], found.splits["val"]
    share = found.settings.val_fraction
    return fewest(readable, 1 - share), fewest(readable, share)


def _method(current: Params, batch: int) -> str:
    """The current pretext method, or simclr if there is none or MoCo's key groups do not divide the batch."""
    method, groups = current.pretext.method, getattr(current.pretext, "key_groups", 1)
    unfit = method == "moco" and (batch % groups or batch < 2 * groups)
    return "simclr" if method in ("none", "frozen", "adapted") or unfit else method


def _augmentations(found: Inspection, current: Params, side: int) -> dict[str, dict[str, Any]]:
    """The augmentations that differ from the current ones, by stage."""
    # Gray images keep the current ones: they may be digits, which must not be flipped.
    fitting = current if found.all_gray else read_preset(find_preset(PHOTOS))
    changed = {}
    for name in ("pretext", "cluster", "selflabel"):
        own, new = _views(current, name), _views(fitting, name)
        if new.get("kind") == "none":  # it suited a network that is not trained
            new = _views(current, "pretext") or {"kind": "simclr"}
        if "cutout" in new:
            new["cutout"] = min(new["cutout"], side // 3) if found.all_gray else side // 3
        if new != own:
            changed[name] = new
    return changed


def _views(params: Params, step: str) -> dict[str, Any]:
    """The augmentation of a step; {} if ``pretext.method`` is none."""
    augmentation = getattr(getattr(params, step), "augmentation", None)
    return augmentation.model_dump(mode="json") if augmentation else {}
