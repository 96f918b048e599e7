"""The requirements of a logged model and the environment of a logged run."""

import os
import platform
from importlib.metadata import distributions, version

MODEL_REQUIREMENTS = ("torch", "numpy", "pandas", "pydantic", "safetensors", "torchvision")


def requirements(backbone: str, frozen: bool) -> list[str]:
    """The pinned requirements of a packaged model, without local version parts such as ``+cu130``."""
    names = [*MODEL_REQUIREMENTS, *(["timm"] if frozen or backbone == "timm" else []), *(["openvino"] * frozen)]
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


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
