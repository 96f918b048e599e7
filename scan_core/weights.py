"""Networks on disk: one safetensors file that says what it is. Loading is strict."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from scan_core.errors import ScanError
from scan_core.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.settings import Backbone


def save_model(path: Path, model: Model, backbone: Backbone, stats: dict[str, Any]) -> None:
    """Weights, architecture and normalisation. One metadata key: with more their order is not stable."""
    head = model.head
    description = {
        "backbone": backbone.model_dump(),
        "channels": stats["channels"],
        "size": [stats["view"], stats["view"]],
        "mean": stats["mean"],
        "std": stats["std"],
    }
    if isinstance(head, ClusterHeads):
        description["head"] = {"kind": "cluster", "clusters": head.clusters, "heads": head.heads}
    elif isinstance(head, Projector):
        sizes = {"projection": head.projection, "hidden": head.hidden, "norm": head.norm}
        description["head"] = {"kind": "projector", **sizes}
    else:
        description["head"] = {"kind": "none"}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"scan": json.dumps(description, sort_keys=True)})


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the tensors of a file that ``save_model`` wrote. Raises ``ScanError`` where it is none."""
    if not path.exists():
        raise ScanError(f"{path} is missing; make it with: dvc repro {path.stem}")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["scan"])
            return description, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ScanError(f"{path} is not a model of this pipeline ({error}); delete it and run dvc repro") from None


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """The network, on the host, and its description. Raises ``ScanError`` naming keys that are missing or too many."""
    description, tensors = read_weights(path)
    try:
        settings = Backbone(**description["backbone"])
        sizes = dict(description["head"])
        backbone = build_backbone(settings, description["channels"])
        head_type: type[nn.Module] = {"cluster": ClusterHeads, "projector": Projector, "none": nn.Identity}[
            sizes.pop("kind")
        ]
        model = Model(backbone, head_type(feature_size(backbone), **sizes))
    except (KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ScanError(f"{path} is not a model of this pipeline ({what}); delete it and run dvc repro") from None
    load_strictly(model, tensors, path)
    return model, description


def save_backbone(path: Path, tensors: dict[str, torch.Tensor], origin: dict[str, str]) -> None:
    """A backbone's weights by themselves, under its own keys; ``origin`` says where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(tensors, path, metadata={"scan": json.dumps({"origin": origin}, sort_keys=True)})


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Puts the weights of a file that ``save_backbone`` wrote into a network, strictly.

    Raises ``ScanError`` where it is no such file or of another network, naming the keys that differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            origin = json.loads((file.metadata() or {})["scan"])["origin"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ScanError(f"{path} holds no imported weights ({what}); make it with: scan weights import") from None
    load_strictly(backbone, tensors, path, f"it comes from {origin.get('from')}: change backbone, or import it anew")


def load_strictly(
    module: nn.Module, tensors: dict[str, torch.Tensor], path: Path, advice: str = "delete it and run dvc repro"
) -> None:
    """Loads exactly the module's keys at exactly their shapes, or raises ``ScanError`` and says which differ."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    differ = [f"{key} is missing" for key in sorted(wanted.keys() - found.keys())]
    differ += [f"{key} is unexpected" for key in sorted(found.keys() - wanted.keys())]
    differ += [
        f"{key} is {found[key]}, not {wanted[key]}" for key in sorted(wanted.keys() & found.keys())
        if found[key] != wanted[key]
    ]  # fmt: skip
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ScanError(f"{path} does not fit the network: {'; '.join(differ[:3])}{more}; {advice}")
    module.load_state_dict(tensors)
