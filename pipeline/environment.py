"""What ``SCAN_*`` variables say of the machine: they change no setting, and DVC does not track them."""

import contextlib
import os
from pathlib import Path

from scan_core.data.sources import resolve
from scan_core.errors import ScanError

SECONDS_BETWEEN_SAVES = 10.0


def wanted_device() -> str:
    """``SCAN_DEVICE``: auto, cpu or cuda."""
    return os.environ.get("SCAN_DEVICE", "auto")


def data_home(root: Path) -> Path:
    """``SCAN_DATA``, or ``datasets``: where named sets lie or are downloaded to; a relative one starts at ``root``."""
    return resolve(os.environ.get("SCAN_DATA") or "datasets", root).resolve()


def use_threads() -> None:
    """Sets ``SCAN_THREADS``; torch's own choice where unset."""
    import torch

    threads = os.environ.get("SCAN_THREADS")
    if threads:
        torch.set_num_threads(whole_number("SCAN_THREADS", threads))


def worker_count() -> int:
    """``SCAN_WORKERS``: processes that decode images; by default one a core."""
    given = os.environ.get("SCAN_WORKERS")
    return os.cpu_count() or 1 if given is None else whole_number("SCAN_WORKERS", given)


def allowed(name: str, value: str) -> bool:
    """Whether an environment variable is set, to the one ``value`` it may have. Raises ``ScanError`` at another."""
    given = os.environ.get(name, "")
    if given not in ("", value):
        raise ScanError(f"{name} is {given}; {value} is allowed, or leave it unset")
    return bool(given)


def whole_number(name: str, given: str) -> int:
    """An environment variable's value as a number of at least 1. Raises ``ScanError`` where it is none."""
    if not given.isdecimal() or int(given) < 1:
        raise ScanError(f"{name} is {given}; a whole number of at least 1 is allowed")
    return int(given)


def seconds_between_saves() -> float:
    """``SCAN_SAVE_SECONDS``, 10 by default. Raises ``ScanError`` where it is no number of at least 0."""
    given = os.environ.get("SCAN_SAVE_SECONDS", SECONDS_BETWEEN_SAVES)
    with contextlib.suppress(ValueError):
        if (seconds := float(given)) >= 0:
            return seconds
    raise ScanError(f"SCAN_SAVE_SECONDS is {given}; a number of seconds of at least 0 is allowed")
