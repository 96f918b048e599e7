"""Networks on disk: one safetensors file that describes its network. Loading is strict."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scan_core.errors import DamagedFile, ScanError
from scan_core.models.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.models.settings import Backbone


def save_model(path: Path, model: Model, backbone: Backbone, stats: dict[str, Any]) -> None:
    """Writes weights, architecture and normalization, but not the path that imported weights were read from."""
    head = model.head
    description = {key: stats[key] for key in ("channels", "mean", "std")}
    description |= {"backbone": backbone.model_dump() | {"weights": None}, "size": [stats["view"]] * 2}
    if isinstance(head, ClusterHeads):
        description["head"] = {"kind": "cluster", "clusters": head.clusters, "heads": head.heads}
    elif isinstance(head, Projector):
        sizes = {"projection": head.projection, "hidden": head.hidden, "norm": head.norm}
        description["head"] = {"kind": "projector", **sizes}
    else:
        description["head"] = {"kind": "none"}
    _save(path, model.state_dict(), description)


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """The network of a file that ``save_model`` wrote, on the host, and its description.

    Raises ``ScanError`` if the file is missing or another kind of file, or holds other keys or shapes than the network.
    """
    description, tensors = _read(path)
    try:
        settings = Backbone(**description["backbone"])
        sizes = dict(description["head"])
        backbone = build_backbone(settings, description["channels"])
        heads: dict[str, type[nn.Module]] = {"cluster": ClusterHeads, "projector": Projector, "none": nn.Identity}
        model = Model(backbone, heads[sizes.pop("kind")](feature_size(backbone), **sizes))
    except (KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise DamagedFile(f"{path} is not a model of this pipeline ({what})") from None
    try:
        load_strictly(model, tensors, path)
    except ScanError as error:
        raise DamagedFile(str(error)) from None
    return model, description


def save_backbone(path: Path, tensors: dict[str, Tensor], origin: dict[str, str]) -> None:
    """Writes a backbone's weights under its own keys; ``origin`` says where they come from.

    ``origin["network"]`` is the ``architecture`` that the weights are made for.
    """
    _save(path, tensors, {"origin": origin})


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Loads the weights of a file that ``save_backbone`` wrote into a network, strictly.

    A network for gray images takes weights for color images: its first convolution gets their sum over the colors, so
    that a gray image gives what three equal channels would give.

    Raises ``ScanError`` if the file is no such file, or one of another network; the error names the keys that differ.
    """
    try:
        description, tensors = _read(path)
    except DamagedFile as error:
        raise ScanError(f"{error}; import it again") from None
    if "origin" not in description:
        raise ScanError(f"{path} holds no imported weights; import it again")
    made_for = description["origin"].get("network", "another network")
    hint = f"the file is of {made_for}, backbone is {backbone.architecture}: change backbone, or import it again"
    tensors = _sum_colors(backbone, tensors)
    _check_fit(backbone, tensors, path, hint)
    if made_for != backbone.architecture:  # the same keys do not make it the same function
        raise ScanError(f"{path} has the network's keys, yet {hint}")
    backbone.load_state_dict(tensors)


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path, hint: str = "") -> None:
    """Loads exactly the module's keys at exactly their shapes.

    Raises ``ScanError``, which says what differs and ends in ``hint``, and then leaves the module as it was.
    """
    _check_fit(module, tensors, path, hint)
    module.load_state_dict(tensors)


def _save(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Writes a whole file or none. It has one metadata key, because the order of several is not stable."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished, metadata={"scan": json.dumps(description, sort_keys=True)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The description and the tensors of a file that ``_save`` wrote. Raises ``DamagedFile``."""
    if not path.exists():
        raise DamagedFile(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["scan"])
            return description, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        what = " ".join(str(error).split())
        raise DamagedFile(f"{path} is not a model of this pipeline ({what})") from None


def _sum_colors(backbone: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums (D,3,height,width) over colors if the network has (D,1,height,width)."""
    state = backbone.state_dict().items()
    colored = {
        key: (len(value), 3, *value.shape[2:]) for key, value in state if value.dim() == 4 and value.shape[1] == 1
    }
    return {
        key: value.sum(1, keepdim=True) if value.shape == colored.get(key) else value for key, value in tensors.items()
    }


def _check_fit(module: nn.Module, tensors: dict[str, Tensor], path: Path, hint: str) -> None:
    """Raises ``ScanError`` if keys or shapes are not exactly the module's; see ``load_strictly``."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    differ = [f"{key} is missing" for key in sorted(wanted.keys() - found.keys())]
    differ += [f"{key} is unexpected" for key in sorted(found.keys() - wanted.keys())]
    shared = sorted(wanted.keys() & found.keys())
    differ += [f"{key} is {found[key]}, not {wanted[key]}" for key in shared if found[key] != wanted[key]]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        ending = f"; {hint}" if hint else ""
        raise ScanError(f"{path} does not fit the network: {'; '.join(differ[:3])}{more}{ending}")
