"""A published checkpoint becomes weights of one of this project's backbones."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.models.files import Preprocessing, load_strictly
from scan_core.models.networks import architecture, build_backbone
from scan_core.models.settings import Backbone
from scan_core.weights.checkpoint import PREFIX, other_kind, read_checkpoint, state_dict
from scan_core.weights.text import Text

KINDS = ("moco_v2", "torchvision", "timm", "dino")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# A file's keys become the backbone's: a prefix is removed, some keys are left out (as what they are) and some renamed.
# timm's keys are the backbone's own, and its networks name their classifier.
LEFT_OUT = {
    "moco_v2": {r"fc\.": "projector", r"encoder_k\.": "momentum encoder", r"queue(_ptr)?$": "queue"},
    "torchvision": {r"fc\.": "classifier"},
    "dino": {r"head\.": "projector", r"fc\.": "classifier", r"mask_token$": "mask token"},
}
RENAMED = {"dino": {r"^register_tokens$": "reg_token", r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."}}

COUNTER = ".num_batches_tracked"  # BatchNorm's
RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50"}  # by bottleneck, blocks in layer3
VIT_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width


@dataclass(frozen=True)
class Imported:
    """Weights under the keys of the network that ``backbone`` builds, and what is known about them."""

    backbone: Backbone
    tensors: dict[str, Tensor]
    left_out: dict[str, int]  # parts of the file that are not taken, by their number of tensors
    origin: dict[str, str]
    size: int  # pixels that images are resized to, before they are cropped to those of ``preprocessing``
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    text: Text | None = None  # CLIP's, if it came with the image tower


def import_checkpoint(
    path: Path,
    kind: str,
    name: str | None = None,
    model: str | None = None,
    stem: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Imported:
    """The weights in the file ``path``, in the form that ``kind`` (one of ``KINDS``) publishes.

    If they are None, ``name`` and ``stem`` of a ResNet and ``model`` of a DINO transformer are inferred from the
    tensors; timm's ``model`` must be given. ``config`` is timm's ``pretrained_cfg`` of this file: the images that it
    expects. It takes precedence over the one that timm has for ``model``.
    Raises ``ScanError`` if the file cannot be read safely, or if its keys or shapes are not the network's.
    """
    if kind not in KINDS:
        raise ScanError(f"--from is {kind}; {', '.join(KINDS)} are allowed")
    state = state_dict(read_checkpoint(path), kind, path)
    tensors, left_out = map_keys(state, kind)
    settings = _settings(tensors, kind, name, model, stem, path)
    network = build_backbone(settings, 3)
    if kind == "timm":
        tensors, texts = _image_tower(tensors, network)
        tensors, left_out = _without_classifier(_renamed(tensors, settings), network)
        left_out |= texts
    tensors = _with_counters(tensors, network)
    load_strictly(network, tensors, path, f"{kind} as {architecture(settings)} was expected{other_kind(state, kind)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"from": kind, "file": path.name, "sha256": sha256, "network": architecture(settings)}
    return Imported(settings, network.state_dict(), left_out, origin, *_preprocessing(network, settings, config or {}))


def map_keys(state: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors under the backbone's keys, and how many are left out as what. A key without a rule is kept."""
    taken: dict[str, Tensor] = {}
    left_out = Counter[str]()
    for key, value in state.items():
        name = key.removeprefix(PREFIX.get(kind, ""))
        part = next((part for pattern, part in LEFT_OUT.get(kind, {}).items() if re.match(pattern, name)), None)
        if part:
            left_out[part] += 1
            continue
        for pattern, new in RENAMED.get(kind, {}).items():
            name = re.sub(pattern, new, name)
        taken[name] = value
    if kind == "dino" and {"reg_token", "pos_embed", "cls_token"} <= taken.keys():
        # Published are positions (1,1+patches,D) of class token and patches. timm adds the first to the class token.
        positions = taken["pos_embed"]
        taken |= {"cls_token": taken["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return taken, dict(left_out)


def _image_tower(tensors: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    """If ``tensors`` are both of CLIP's towers, as open_clip names them, the image tower's under timm's names.

    The projection of images becomes timm's classifier. The number of tensors that are left out comes second.
    """
    if "visual.class_embedding" not in tensors:
        return tensors, {}
    from timm.models.vision_transformer import checkpoint_filter_fn

    texts = sum(not key.startswith("visual.") for key in tensors)
    return checkpoint_filter_fn(tensors, network), {"text tower": texts}


def _without_classifier(tensors: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``tensors`` without the layers that timm names as the classifier, and how many are left out."""
    names = cast(Any, network).pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    taken = {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
    return taken, {"classifier": len(tensors) - len(taken)} if len(taken) < len(tensors) else {}


def _renamed(tensors: dict[str, Tensor], settings: Backbone) -> dict[str, Tensor]:
    """``tensors`` under timm's names if only the names differ, as in files that were made from TensorFlow's.

    They must be as many as those of the network with its classifier, in the same order, each with the same shape and
    the same last part of its name (weight, bias, running_mean): otherwise they stay as they are.
    """
    import timm

    names = [key for key in tensors if not key.endswith(COUNTER)]
    wanted = timm.create_model(settings.model or "", pretrained=False).state_dict()
    keys = [key for key in wanted if not key.endswith(COUNTER)]
    alike = (
        names != keys
        and len(names) == len(keys)
        and all(
            tensors[name].shape == wanted[key].shape and name.rpartition(".")[2] == key.rpartition(".")[2]
            for name, key in zip(names, keys, strict=True)
        )
    )
    return {key: tensors[name] for name, key in zip(names, keys, strict=True)} if alike else tensors


def _with_counters(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """``tensors`` with BatchNorm's counts of batches, which files from before PyTorch 0.4.1 lack, as unused zeros."""
    counters = {key: 0 * value for key, value in network.state_dict().items() if key.endswith(COUNTER)}
    return tensors if counters.keys() & tensors.keys() else tensors | counters


def _settings(
    tensors: Mapping[str, Tensor], kind: str, name: str | None, model: str | None, stem: str | None, path: Path
) -> Backbone:
    """The backbone that the options and the tensors describe. Raises ``ScanError`` if they do not suffice."""
    resnet = kind in ("moco_v2", "torchvision") or (kind == "dino" and model is None and "conv1.weight" in tensors)
    if resnet and model is not None:
        raise ScanError(f"--model is {model}; --from {kind} takes ResNets; name one with --backbone")
    if not resnet and (name is not None or stem is not None):
        raise ScanError(f"--backbone and --stem describe ResNets; {path} from {kind} is not one; use --model")
    if resnet:
        name, stem = name or _resnet_name(tensors, path), stem or _resnet_stem(tensors, path)
    elif model is None and kind == "dino":
        model = _dino_name(tensors, path)
    elif model is None:
        raise ScanError(f"{path} does not say which of timm's networks it is for; give timm's name of it with --model")
    values = {"name": name if resnet else "timm", "width": 64, "stem": stem or "imagenet", "model": model}
    try:
        return Backbone.model_validate(values | {"weights": None})
    except ValueError:
        allowed = f"{', '.join(RESNETS.values())} and small, stl, imagenet are allowed"
        raise ScanError(f"--backbone is {name} and --stem {stem}; {allowed}") from None


def _resnet_name(tensors: Mapping[str, Tensor], path: Path) -> str:
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("layer3.")})
    name = RESNETS.get(("layer1.0.conv3.weight" in tensors, blocks))
    if name is None:
        network = f"a ResNet with {blocks} blocks in layer3" if blocks else "no ResNet"
        raise ScanError(f"{path} is of {network}; {', '.join(RESNETS.values())} are read; else --from timm --model")
    return name


def _resnet_stem(tensors: Mapping[str, Tensor], path: Path) -> str:
    conv = tensors.get("conv1.weight")
    if conv is not None and conv.shape[-1] == 3:
        raise ScanError(f"{path} has a 3x3 stem; give --stem stl if a max-pool follows it, else --stem small")
    return "imagenet"


def _dino_name(tensors: Mapping[str, Tensor], path: Path) -> str:
    """timm's name of a DINO or DINOv2 transformer, from width, patch, layer scale and registers."""
    import timm

    try:
        size = VIT_SIZES[tensors["cls_token"].shape[-1]]
        patch = tensors["patch_embed.proj.weight"].shape[-1]
    except KeyError:
        raise ScanError(f"{path} is not of a known DINO network; give timm's name of it with --model") from None
    registers = f"_reg{tensors['reg_token'].shape[1]}" if "reg_token" in tensors else ""
    dinov2 = "blocks.0.ls1.gamma" in tensors
    name = f"vit_{size}_patch{patch}{registers}_dinov2.lvd142m" if dinov2 else f"vit_{size}_patch{patch}_224.dino"
    if name not in timm.list_models(pretrained=True):
        raise ScanError(f"{path} would be {name}, which timm {timm.__version__} does not have; give --model")
    return name


def _preprocessing(
    network: nn.Module, settings: Backbone, given: Mapping[str, Any]
) -> tuple[int, Preprocessing, tuple[str, ...]]:
    """The images that the weights were evaluated on: size before the crop and the rest, and notes for the user.

    ``given`` takes precedence over timm's ``pretrained_cfg`` of the network.
    """
    if settings.name != "timm":
        return 256, Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD), ()
    import timm

    name, config = settings.model or "", {**cast(Any, network).pretrained_cfg, **given}
    notes = list(config.get("notes") or ())
    if len(timm.list_models(f"{name}.*", pretrained=True)) > 1:
        notes.append(f"mean, std and size are those of {name}.{config['tag']}; for others give --model with their tag")
    # DINOv2 was last trained at 518 pixels. Its authors evaluate it at 224, which takes a fifth of the time.
    view, share = (224, 0.875) if "dinov2" in name else (config["input_size"][-1], config.get("crop_pct") or 0.875)
    return round(view / share), Preprocessing(view, tuple(config["mean"]), tuple(config["std"])), tuple(notes)
