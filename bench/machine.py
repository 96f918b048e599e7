"""The machine and the versions that a result came from, and the memory that a command takes."""

import os
import platform
import subprocess
import threading
import time
from importlib.metadata import version

import psutil

RESULTS = ("bench/results", "docs/ledger.md", "docs/ledger")  # where figures are written


def machine() -> dict[str, str]:
    """Processor, cores, memory, python, versions, commit and today's date: what a figure means nothing without."""
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
        "commit": _commit(),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in names),
    }


def _commit() -> str:
    """The commit that is measured, marked where the working tree differs from it by more than results."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", *(f":!{path}" for path in RESULTS)])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed.returncode else commit


class Memory:
    """The sum of resident memory over a process and all its descendants, sampled ten times a second from now on.

    Pages that processes share count in each of them, so the truth is a little lower.
    """

    def __init__(self, pid: int) -> None:
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
        """Ends sampling. (seconds, bytes) of each sample."""
        self._ended.set()
        self._thread.join()
        return self._samples
