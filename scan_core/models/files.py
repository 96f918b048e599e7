"""Networks on disk: one safetensors file that describes its network. Loading is strict."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scan_core.errors import DamagedFile, ScanError
from scan_core.evaluation.belonging import Belonging
from scan_core.models.networks import ClusterHeads, Model, Projector, build_backbone, feature_size
from scan_core.models.reduction import Reduction
from scan_core.models.settings import Backbone

SHOWN = 3  # names in an error


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


def save_no_model(path: Path) -> None:
    """Writes a file that stands where a model would be."""
    _save(path, {}, {"head": None})


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


@dataclass(frozen=True)
class Preprocessing:
    """The images that weights expect."""

    side: int  # pixels
    mean: tuple[float, ...]  # per channel, in [0,1]
    std: tuple[float, ...]


def save_backbone(
    path: Path, tensors: dict[str, Tensor], origin: dict[str, str], backbone: Backbone, preprocessing: Preprocessing
) -> None:
    """Writes a backbone's weights under its own keys, and all that is needed to run it.

    ``origin`` says where the weights come from; ``origin["network"]`` is the ``architecture`` that they are made for.
    """
    description = {"origin": origin, "backbone": backbone.model_dump() | {"weights": None}}
    _save(path, tensors, description | {"preprocessing": asdict(preprocessing)})


def save_adapted(path: Path, base: Path, network: nn.Module, side: int) -> None:
    """Writes ``network``, which is that of ``base``, a file of ``save_backbone``, with other weights.

    It has learned from images of ``side`` pixels. The file is one of ``save_backbone``, too; see ``adapted_from``.
    """
    description, tensors = _read(base)
    with base.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    description["adapted_from"] = {"sha256": sha256, "side": side}
    _save(path, {key: value for key, value in network.state_dict().items() if key in tensors}, description)


def adapted_from(path: Path) -> tuple[str, int] | None:
    """Of a file of ``save_adapted`` the SHA-256 of its ``base`` and its ``side``; None for other files."""
    found = _read(path, with_tensors=False)[0].get("adapted_from")
    return (found["sha256"], found["side"]) if found else None


def load_frozen(path: Path) -> tuple[nn.Module, Preprocessing]:
    """The network for color images that ``save_backbone`` wrote, in eval mode on the host, and the images it expects.

    Raises ``ScanError`` if the file is missing or is another kind of file.
    """
    expected = load_preprocessing(path)
    try:
        description, tensors = _read(path)
        backbone = build_backbone(Backbone(**description["backbone"]), 3)
        load_strictly(backbone, tensors, path)
    except (DamagedFile, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DamagedFile) else f"{path} holds no imported weights of this version"
        raise ScanError(f"{what}; import it again") from None
    return backbone.eval().requires_grad_(False), expected


def load_preprocessing(path: Path) -> Preprocessing:
    """The images that the weights of a file of ``save_backbone`` expect; the weights are not loaded.

    Raises ``ScanError`` as ``load_frozen`` does.
    """
    try:
        images = _read(path, with_tensors=False)[0]["preprocessing"]
        return Preprocessing(images["side"], tuple(images["mean"]), tuple(images["std"]))
    except (DamagedFile, KeyError, TypeError) as error:
        what = error if isinstance(error, DamagedFile) else f"{path} holds no imported weights of this version"
        raise ScanError(f"{what}; import it again") from None


@dataclass(frozen=True)
class FrozenSpace:
    """A frozen network as a model file names it."""

    sha256: str  # of its weights' file
    side: int  # pixels of the images that it sees
    mirror: bool


def is_of_frozen(path: Path) -> bool:
    """Whether a model file is one of ``save_reduction``. Raises ``ScanError`` if it is damaged."""
    return "spaces" in _read(path, with_tensors=False)[0]


def save_reduction(
    path: Path, reduction: Reduction, spaces: list[FrozenSpace], head: ClusterHeads | None = None
) -> None:
    """Writes how the features of frozen networks become embeddings and, with a ``head``, these become clusters."""
    tensors = {name: torch.from_numpy(value) for name, value in vars(reduction).items()}
    description: dict[str, Any] = {"spaces": [asdict(space) for space in spaces]}
    if head is not None:
        tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
        description["clusters"] = head.clusters
    _save(path, tensors, description)


def load_reduction(path: Path) -> tuple[Reduction, list[FrozenSpace]]:
    """The reduction and the networks of ``save_reduction``. Raises ``ScanError`` if it is not a file of it."""
    description, tensors = _read(path)
    try:
        reduction = Reduction(*(tensors[name].numpy() for name in ("mean", "scale", "basis")))
        return reduction, [FrozenSpace(**space) for space in description["spaces"]]
    except (KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is not a model of frozen features ({error})") from None


def load_frozen_head(path: Path) -> ClusterHeads:
    """The head of ``save_reduction``. Raises ``ScanError`` if the file has none."""
    description, tensors = _read(path)
    try:
        head = ClusterHeads(tensors["basis"].shape[1], description["clusters"], 1)
        head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
    except (KeyError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise DamagedFile(f"{path} has no clusters of frozen features ({what})") from None
    return head


def save_belonging(path: Path, fitted: Belonging, bank: np.ndarray, lengths: np.ndarray, projected: bool) -> None:
    """Writes what tells whether an image belongs to its group. ``bank`` (M,F) float16 are features of grouped images.

    ``lengths`` (M,K) float32 are those that the features of each of K networks had before they were made 1.
    ``projected``: they are those of the projector, of a network that was trained.
    """
    arrays = vars(fitted) | {"bank": bank, "lengths": lengths}
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    _save(path, tensors, {"belonging": {"projected": projected}})


def load_belonging(path: Path) -> tuple[Belonging, np.ndarray, bool, np.ndarray]:
    """What ``save_belonging`` wrote, the lengths last. Raises ``ScanError`` if the file is missing or another kind."""
    description, tensors = _read(path)
    try:
        arrays = {name: tensors[name].numpy() for name in ("members", "limits", "trusted")}
        projected = bool(description["belonging"]["projected"])
        return Belonging(**arrays), tensors["bank"].numpy(), projected, tensors["lengths"].numpy()
    except (KeyError, TypeError) as error:
        raise DamagedFile(f"{path} does not hold the images that were grouped ({error})") from None


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


def _read(path: Path, with_tensors: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """The description and, if asked for, the tensors of a file that ``_save`` wrote. Raises ``DamagedFile``."""
    if not path.exists():
        raise DamagedFile(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["scan"])
            keys = file.keys() if with_tensors else ()
            return description, {key: file.get_tensor(key) for key in keys}
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
    differ = [
        *_first("the network alone has", [key for key in wanted if key not in found]),
        *_first("the file alone has", [key for key in found if key not in wanted]),
        *_first("shapes differ:", [
            f"{key} is {found[key]}, not {shape}" for key, shape in wanted.items() if found.get(key, shape) != shape
        ]),
    ]  # fmt: skip
    if differ:
        raise ScanError(f"{path} does not fit the network: {'; '.join([*differ, *([hint] if hint else [])])}")


def _first(words: str, names: list[str]) -> list[str]:
    """Nothing, or ``words`` and the first of ``names`` in their own order."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{words} {', '.join(names[:SHOWN])}{more}"] if names else []
