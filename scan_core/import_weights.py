"""Published checkpoints, read without running what is pickled in them, as weights of this project's backbones."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scan_core.errors import ScanError
from scan_core.models.files import load_strictly
from scan_core.models.networks import architecture, build_backbone
from scan_core.settings import Backbone

KINDS = ("moco_v2", "torchvision", "timm", "dino")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Where in a file the tensors by name lie, if not in itself; averages before what they are of, as their authors publish.
NESTED = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model")
# How a file's keys become the backbone's: what stands before them, what is left out (and what that is) and what is
# renamed. timm's keys are the backbone's own; the network says what its classifier is called.
WRAPPERS = r"^(_orig_mod\.|module\.)*"  # torch.compile's and DistributedDataParallel's
PREFIX = {"moco_v2": "encoder_q.", "torchvision": "", "timm": "", "dino": "backbone."}
LEFT_OUT = {
    "moco_v2": {r"fc\.": "projector", r"encoder_k\.": "momentum encoder", r"queue(_ptr)?$": "queue"},
    "torchvision": {r"fc\.": "classifier"},
    "timm": {},
    "dino": {r"head\.": "projector", r"fc\.": "classifier", r"mask_token$": "mask token"},
}
RENAMED = {
    "moco_v2": {},
    "torchvision": {},
    "timm": {},
    "dino": {r"^register_tokens$": "reg_token", r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."},
}

RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50"}  # bottlenecks, blocks in layer3
VIT_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by their width


@dataclass(frozen=True)
class Imported:
    """Weights under the keys of the network that ``backbone`` builds, and what is known about them."""

    backbone: Backbone
    tensors: dict[str, Tensor]
    left_out: dict[str, int]  # what of the file is not taken, and how many tensors that is
    origin: dict[str, str]
    size: int  # pixels that the weights want images resized to, and cropped to
    view: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]


def import_checkpoint(
    path: Path, kind: str, name: str | None = None, model: str | None = None, stem: str | None = None
) -> Imported:
    """The weights of the file ``path`` that ``kind`` (one of ``KINDS``) published.

    ``name`` and ``stem`` of a ResNet and the ``model`` of a DINO transformer are found from the tensors where they are
    None; timm's ``model`` must be given.

    Raises ``ScanError`` where the file cannot be read safely, or holds other keys or shapes than the network has.
    """
    if kind not in KINDS:
        raise ScanError(f"--from is {kind}; {', '.join(KINDS)} are allowed")
    state = state_dict(read_checkpoint(path), kind, path)
    tensors, left_out = map_keys(state, kind)
    settings = _settings(tensors, kind, name, model, stem, path)
    network = build_backbone(settings, 3)
    if kind == "timm":
        tensors, left_out = _without_classifier(tensors, network)
    tensors = _with_counters(tensors, network)
    load_strictly(network, tensors, path, f"{kind} as {architecture(settings)} was expected{_other_kind(state, kind)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"from": kind, "file": path.name, "sha256": sha256, "network": architecture(settings)}
    return Imported(settings, network.state_dict(), left_out, origin, *_wanted_images(network, settings))


def read_checkpoint(path: Path) -> Any:
    """What lies in a file of ``torch.save`` or safetensors, on the host.

    A pickle may hold plain values, tensors and an ``argparse.Namespace``, which training scripts keep their options in;
    none of the file's code is run. Raises ``ScanError`` for all else.
    """
    if not path.is_file():
        raise ScanError(f"{path} is no file; give the checkpoint's path")
    from argparse import Namespace

    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (what is no checkpoint makes torch raise anything, IndexError too)
        raise ScanError(f"{path} is not loaded: {_why(error)}") from None


def _why(error: Exception) -> str:
    """torch's advice on a pickle that it refuses is to run what is in it; this says what is in it."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return "it is a TorchScript program, and only tensors are read; give a file of the weights alone"
    needs = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", text)
    if needs:
        return f"unpickling it would run {needs[1]}, and only tensors are read; give a file of the weights alone"
    if "Weights only load failed" in text:
        text = text.split("WeightsUnpickler error:")[-1].split("Check the documentation")[0].strip()
    return f"it is damaged or no checkpoint ({text[:150] or type(error).__name__}); fetch it anew"


def state_dict(checkpoint: Any, kind: str, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of what a training script may have saved around them. Raises ``ScanError``."""
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        inner = (checkpoint.get(key) for key in NESTED)
        state = next((each for each in inner if isinstance(each, Mapping)), checkpoint)
    if not isinstance(state, Mapping) or not state:
        raise ScanError(f"{path} holds no tensors by name but {type(state).__name__}; give a file of a state dict")
    state = {re.sub(WRAPPERS, "", str(key)): value for key, value in state.items()}
    others = sorted(key for key, value in state.items() if not isinstance(value, Tensor))
    if others:
        raise ScanError(
            f"{path} holds no tensors by name but {', '.join(others[:3])}; they are looked for "
            f"in {', '.join(NESTED)} and in the file itself{_other_kind(state, kind)}"
        )
    if kind == "moco_v2" and not any(key.startswith(PREFIX[kind]) for key in state):
        raise ScanError(f"{path} has no key that starts with {PREFIX[kind]}, as MoCo's have{_other_kind(state, kind)}")
    return state


def _other_kind(state: Mapping[str, Any], kind: str) -> str:
    """A hint that another ``--from`` may be right."""
    if any(key.startswith("encoder_q.") for key in state):
        likely = "moco_v2"
    elif "mask_token" in state or any(key.startswith("backbone.") for key in state):
        likely = "dino"
    elif "layer4.0.conv1.weight" in state:
        likely = "torchvision"
    else:
        return ""
    return "" if likely == kind else f"; it looks like --from {likely}"


def map_keys(state: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The backbone's tensors under its own keys, and what is left out, counted. A key that no rule knows stays."""
    taken: dict[str, Tensor] = {}
    left_out = Counter[str]()
    for key, value in state.items():
        name = key.removeprefix(PREFIX[kind])
        reason = next((reason for pattern, reason in LEFT_OUT[kind].items() if re.match(pattern, name)), None)
        if reason:
            left_out[reason] += 1
            continue
        for pattern, new in RENAMED[kind].items():
            name = re.sub(pattern, new, name)
        taken[name] = value
    if kind == "dino" and {"reg_token", "pos_embed", "cls_token"} <= taken.keys():
        # Published are positions (1,1+patches,D) of the class token and the patches; timm adds the first to the token.
        positions = taken["pos_embed"]
        taken |= {"cls_token": taken["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return taken, dict(left_out)


def _without_classifier(tensors: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Leaves out the layers that timm says classify."""
    names = cast(Any, network).pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    taken = {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
    left_out = len(tensors) - len(taken)
    return taken, {"classifier": left_out} if left_out else {}


def _with_counters(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """BatchNorm's counts of batches as zeros, where a file from before PyTorch 0.4.1 has none. Nothing uses them."""
    counters = {key: value for key, value in network.state_dict().items() if key.endswith(".num_batches_tracked")}
    if counters.keys() & tensors.keys():
        return tensors
    return tensors | {key: torch.zeros_like(value) for key, value in counters.items()}


def _settings(
    tensors: Mapping[str, Tensor], kind: str, name: str | None, model: str | None, stem: str | None, path: Path
) -> Backbone:
    """What the options say and, beyond them, what the tensors show. Raises ``ScanError`` where that is not enough."""
    resnet = kind in ("moco_v2", "torchvision") or (kind == "dino" and model is None and "conv1.weight" in tensors)
    if resnet and model is not None:
        raise ScanError(f"--model is {model}; --from {kind} takes ResNets, which --backbone names")
    if not resnet and (name is not None or stem is not None):
        raise ScanError(f"--backbone and --stem are of ResNets; {path} from {kind} is none: use --model")
    if resnet:
        name, stem = name or _resnet_name(tensors, path), stem or _resnet_stem(tensors, path)
    elif model is None and kind == "dino":
        model = _dino_name(tensors, path)
    elif model is None:
        raise ScanError(f"{path} does not say which of timm's networks it is of; give --model, timm's name of it")
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
        what = f"a ResNet with {blocks} blocks in layer3" if blocks else "no ResNet"
        raise ScanError(f"{path} is of {what}; {', '.join(RESNETS.values())} are read, others by --from timm --model")
    return name


def _resnet_stem(tensors: Mapping[str, Tensor], path: Path) -> str:
    first = tensors.get("conv1.weight")
    if first is not None and first.shape[-1] == 3:
        raise ScanError(f"{path} has a 3x3 stem, with max-pool after it or not; give --stem stl or --stem small")
    return "imagenet"


def _dino_name(tensors: Mapping[str, Tensor], path: Path) -> str:
    """timm's name of a transformer of DINO's or DINOv2's: by width, patch, layer scale and registers."""
    import timm

    try:
        size = VIT_SIZES[tensors["cls_token"].shape[-1]]
        patch = tensors["patch_embed.proj.weight"].shape[-1]
    except KeyError:
        raise ScanError(
            f"{path} is of no network of DINO's that is known here; give --model, timm's name of it"
        ) from None
    registers = f"_reg{tensors['reg_token'].shape[1]}" if "reg_token" in tensors else ""
    second = "blocks.0.ls1.gamma" in tensors
    name = f"vit_{size}_patch{patch}{registers}_dinov2.lvd142m" if second else f"vit_{size}_patch{patch}_224.dino"
    if name not in timm.list_models(pretrained=True):
        raise ScanError(f"{path} would be {name}, which timm {timm.__version__} does not have; give --model")
    return name


def _wanted_images(
    network: nn.Module, settings: Backbone
) -> tuple[int, int, tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Size, view, mean and std that the weights were evaluated at, and what else is to be known."""
    if settings.name != "timm":
        return 256, 224, IMAGENET_MEAN, IMAGENET_STD, ()
    import timm

    name, wants = settings.model or "", cast(Any, network).pretrained_cfg
    notes = list(wants.get("notes") or ())
    tags = timm.list_models(f"{name}.*", pretrained=True)
    if len(tags) > 1:
        notes.append(f"mean, std and size are those of {name}.{wants['tag']}; for others give --model with their tag")
    # Trained at 518 pixels at the end, DINOv2 is evaluated by its authors at 224, which takes a fifth of the time.
    view, share = (224, 0.875) if "dinov2" in name else (wants["input_size"][-1], wants.get("crop_pct") or 0.875)
    return round(view / share), view, tuple(wants["mean"]), tuple(wants["std"]), tuple(notes)
