"""The machine and the versions that a result came from."""

import os
import platform
import time
from importlib.metadata import version


def machine() -> dict[str, str]:
    """Processor, cores, memory, python, versions and today's date: what a figure means nothing without."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
        values = {key.strip(): value.strip() for key, value in lines}
        features = [name for name in ("amx_bf16", "avx512_bf16", "avx2") if name in values.get("flags", "").split()]
        processor = f"{values.get('model name', platform.processor())} ({', '.join(features)})"
    except OSError:
        processor = platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("torch", "torchvision", "dvc", "mlflow", "scikit-learn")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in names),
    }
