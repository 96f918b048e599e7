"""The state dict in a published checkpoint; no code that is pickled in it is run."""

import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scan_core.errors import ScanError

# Keys under which a checkpoint may hold its state dict. Averaged weights come first, because authors publish those.
NESTED = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = r"^(_orig_mod\.|module\.)*"  # torch.compile's and DistributedDataParallel's prefixes
PREFIX = {"moco_v2": "encoder_q.", "dino": "backbone."}


def read_checkpoint(path: Path) -> Any:
    """The content of a file of ``torch.save`` or safetensors, with tensors on the CPU.

    A pickle may hold plain values, tensors and an ``argparse.Namespace``, in which training scripts keep their options;
    none of the file's code is run. Raises ``ScanError`` for anything else.
    """
    if not path.is_file():
        raise ScanError(f"{path} is not a file; give the checkpoint's path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (for other files torch raises anything, even IndexError)
        raise ScanError(f"{path} is not loaded: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Why torch refuses a file. torch's own message advises to run the code in the pickle; this one names the code."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return "it is a TorchScript program, and only tensors are read; give a file of the weights alone"
    if code := re.search(r"(?:GLOBAL|global:?) (?!GLOBAL)([\w.]+)", text):
        return f"unpickling it would run {code[1]}, and only tensors are read; give a file of the weights alone"
    if re.search(r"Unsupported operand 1[345]\d\b", text):  # of a newer pickle, in which torch looks for no names
        return (
            "unpickling it would do more than make tensors, and only tensors are read; give a file of the weights alone"
        )
    if "Weights only load failed" in text:
        text = text.split("WeightsUnpickler error:")[-1].split("Check the documentation")[0].strip()
    return f"it is damaged or not a checkpoint ({text[:150] or type(error).__name__}); download it again"


def state_dict(checkpoint: Any, kind: str, path: Path) -> dict[str, Tensor]:
    """The state dict in what a training script saved. Raises ``ScanError`` if there is none."""
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        nested = (checkpoint.get(key) for key in NESTED)
        state = next((value for value in nested if isinstance(value, Mapping)), checkpoint)
    if not isinstance(state, Mapping) or not state:
        raise ScanError(f"{path} holds {type(state).__name__} and no tensors by name; give a file of a state dict")
    state = {re.sub(WRAPPERS, "", str(key)): value for key, value in state.items()}
    if others := sorted(key for key, value in state.items() if not isinstance(value, Tensor)):
        raise ScanError(
            f"{path} holds {', '.join(others[:3])} and no tensors by name; they are searched for in the file itself "
            f"and under {', '.join(NESTED)}{other_kind(state, kind)}"
        )
    if kind == "moco_v2" and not any(key.startswith(PREFIX[kind]) for key in state):
        raise ScanError(f"{path} has no key that starts with {PREFIX[kind]}, as MoCo's have{other_kind(state, kind)}")
    return state


def other_kind(state: Mapping[str, Any], kind: str) -> str:
    """A hint at the ``--from`` that fits better, or nothing."""
    if any(key.startswith("encoder_q.") for key in state):
        likely = "moco_v2"
    elif "mask_token" in state or any(key.startswith("backbone.") for key in state):
        likely = "dino"
    elif "layer4.0.conv1.weight" in state:
        likely = "torchvision"
    else:
        return ""
    return "" if likely == kind else f"; it looks like --from {likely}"
