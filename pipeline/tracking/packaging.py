"""What is packaged with a logged model, and the environment of a logged run."""

import base64
import io
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.groups.numbering import groups_of_run
from scan_core.errors import ScanError

MODEL_REQUIREMENTS = (
    *("torch", "numpy", "pandas", "pydantic", "safetensors", "torchvision"),
    *("pillow", "simplejpeg", "scipy"),
)
HEIC = "pillow-heif"  # nobody needs it but for such photos
SEEN = (
    "size",
    "view",
    "fit",
    "store",
    "channels",
    "mean",
    "std",
    "range",
)  # of the store: how it makes an image, and shows it


def requirements(backbone: str, frozen: bool) -> list[str]:
    """The pinned requirements of a packaged model, without local version parts such as ``+cu130``."""
    names = [*MODEL_REQUIREMENTS, *(["timm"] if frozen or backbone == "timm" else []), *(["openvino"] * frozen)]
    try:
        version(HEIC)
        names.append(HEIC)
    except PackageNotFoundError:
        pass
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def images_of(stats: dict[str, Any], max_pixels: int, precision: str) -> bytes:
    """JSON: how an image is prepared for the network of a store with these ``stats``, and the network's precision."""
    about = {key: stats[key] for key in SEEN if key in stats} | {"max_pixels": max_pixels, "precision": precision}
    return json.dumps(about, indent=2).encode()


def example_of(pixels: np.ndarray) -> bytes:
    """JSON: a table with the images (n,height,width,channels) uint8 as PNG files, in base64. It may be a request."""
    from PIL import Image

    texts = []
    for each in pixels:
        encoded = io.BytesIO()
        Image.fromarray(each[..., 0] if each.shape[2] == 1 else each).save(encoded, "PNG")
        texts.append(base64.b64encode(encoded.getvalue()).decode())
    return json.dumps({"image": texts}).encode()


def groups_of(predictions: Path) -> bytes | None:
    """JSON: the number and the name of the group of each cluster, by the predictions of a run that is not finished.

    They are those that ``numbered`` will give: a new model's numbers follow from its predictions, and nothing is kept
    here. A merged cluster has the group that it is shown as, a split one is whole. None if groups.yaml is damaged.
    """
    try:
        groups = groups_of_run(predictions)
    except ScanError:  # nobody's run fails because of it
        return None
    shown = [groups.shown_as(number) for number in groups.clusters]
    return json.dumps(
        {str(cluster): (group, groups.names.get(group, "")) for cluster, group in enumerate(shown)}
    ).encode()


def environment() -> dict[str, object]:
    """The Python version, the machine and every installed package."""
    # An interrupted installation may leave a folder whose metadata has no name.
    packages = {name.lower(): found.version for found in distributions() if (name := found.metadata["Name"])}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": dict(sorted(packages.items())),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
