"""Networks on disk: one safetensors file that says what it is. Loading is strict."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from scan_core.errors import ScanError
from scan_core.models.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.models.settings import Backbone


def save_model(path: Path, model: Model, backbone: Backbone, stats: dict[str, Any]) -> None:
    """Weights, architecture and normalisation; where imported weights lay is no part of it."""
    head = model.head
    description = {
        "backbone": backbone.model_dump() | {"weights": None},
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
    _save(path, model.state_dict(), description)


def _save(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """A whole file or none. One metadata key: with more their order is not stable."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished, metadata={"scan": json.dumps(description, sort_keys=True)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
    """A backbone's weights by themselves, under its own keys; ``origin`` says where they come from.

    ``origin["network"]`` is the ``architecture`` that they were made for.
    """
    _save(path, tensors, {"origin": origin})


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Puts the weights of a file that ``save_backbone`` wrote into a network, strictly.

    A network for grey images takes weights for colour ones: its first convolution's are summed over the colours, which
    gives what three equal channels would.

    Raises ``ScanError`` where it is no such file or of another network, naming the keys that differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            origin = dict(json.loads((file.metadata() or {})["scan"])["origin"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ScanError(f"{path} holds no imported weights ({what}); make it with: scan weights import") from None
    made_for = origin.get("network", "another network")
    advice = f"the file is of {made_for}, backbone is {backbone.architecture}: change backbone, or import it anew"
    tensors = _for_grey(backbone, tensors)
    check_fit(backbone, tensors, path, advice)
    if made_for != backbone.architecture:  # that the keys are the same does not make it the same function
        raise ScanError(f"{path} has the network's keys, yet {advice}")
    backbone.load_state_dict(tensors)


def _for_grey(backbone: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums (D,3,height,width) over colours where the network has (D,1,height,width)."""
    grey = {
        key: value.shape for key, value in backbone.state_dict().items() if value.dim() == 4 and value.shape[1] == 1
    }
    return {
        key: value.sum(1, keepdim=True)
        if value.dim() == 4 and value.shape[1] == 3 and grey.get(key) == (value.shape[0], 1, *value.shape[2:])
        else value
        for key, value in tensors.items()
    }


def load_strictly(
    module: nn.Module, tensors: dict[str, torch.Tensor], path: Path, advice: str = "delete it and run dvc repro"
) -> None:
    """Loads exactly the module's keys at exactly their shapes, or raises ``ScanError`` and says which differ."""
    check_fit(module, tensors, path, advice)
    module.load_state_dict(tensors)


def check_fit(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path, advice: str) -> None:
    """Raises ``ScanError`` where keys or shapes are not exactly the module's, and says which differ."""
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
