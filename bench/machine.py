"""The machine and the package versions that a result was measured with, and the memory that a command takes."""

import os
import platform
import threading
import time
from importlib.metadata import version

import psutil

from pipeline.fingerprint import git_commit


def machine() -> dict[str, str]:
    """What a figure depends on: processor, cores, memory, Python, package versions, commit and today's date."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
        values = {key.strip(): value.strip() for key, value in lines}
        features = [name for name in ("amx_bf16", "avx512_bf16", "avx2") if name in values.get("flags", "").split()]
        processor = f"{values.get('model name', platform.processor())} ({', '.join(features)})"
    except OSError:
        processor = platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = git_commit()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit[:7] + commit[40:],
        "processor": processor,
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
        "packages": packages(),
    }


def packages() -> str:
    """The versions of the packages that figures depend on."""
    names = ("torch", "torchvision", "dvc", "mlflow", "scikit-learn")
    return ", ".join(f"{name} {version(name)}" for name in names)


class MemorySampler:
    """Samples the resident memory of a process and all its descendants, ten times per second.

    The sum is a little too high because it counts pages that processes share once per process.
    """

    def __init__(self, pid: int) -> None:
        """Starts to sample the process ``pid``."""
        self._root, self._samples, self._ended = psutil.Process(pid), [(time.monotonic(), 0)], threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:  # it has just ended
                        continue
            except psutil.Error:
                continue
            self._samples.append((time.monotonic(), total))

    def stop(self) -> list[tuple[float, int]]:
        """Ends the sampling and returns (seconds, bytes) of each sample."""
        self._ended.set()
        self._thread.join()
        return self._samples
