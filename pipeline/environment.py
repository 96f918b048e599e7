"""The ``SCAN_*`` environment variables. They describe the machine, change no setting, and are not tracked by DVC."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from scan_core.data.open import resolve
from scan_core.errors import ScanError

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class Variable(NamedTuple):
    """One environment variable. An empty value counts as unset."""

    meaning: str
    allowed: str  # what an error says
    type: Any
    default: Any  # None: a switch, which is off if unset


VARIABLES = {
    "SCAN_DATA": Variable("where named data sets are or are downloaded to", "a folder", str, "datasets"),
    "SCAN_DEVICE": Variable("where networks run", "auto, cpu or cuda", Literal["auto", "cpu", "cuda"], "auto"),
    # dvc.yaml reads this one.
    "SCAN_LAUNCH": Variable("command that starts the training stages", "python or torchrun", str, "python"),
    "SCAN_RESUME": Variable("resume although the result's bytes will differ", "any", Literal["any"], None),
    "SCAN_SAVE_SECONDS": Variable(
        "time between saves of unfinished training", "a number of seconds of at least 0", Seconds, 30.0
    ),
    "SCAN_THREADS": Variable("torch's CPU threads; 0: torch decides", "a whole number of at least 1", Count, 0),
    "SCAN_TRACKING": Variable("write MLflow's records to the spool only", "spool", Literal["spool"], None),
    "SCAN_WORKERS": Variable(
        "processes that decode images", "a whole number of at least 1", Count, os.cpu_count() or 1
    ),
}


def _value(name: str) -> Any:
    """The value of a variable, or its default. Raises ``ScanError`` if the value is not allowed."""
    variable, text = VARIABLES[name], os.environ.get(name)
    if not text:
        return variable.default
    try:
        return TypeAdapter(variable.type).validate_python(text)
    except ValidationError:
        unset = ", or leave it unset" if variable.default is None else ""
        raise ScanError(f"{name} is {text}; {variable.allowed} is allowed{unset}") from None


def wanted_device() -> str:
    """``SCAN_DEVICE``: auto, cpu or cuda."""
    return str(_value("SCAN_DEVICE"))


def use_threads() -> None:
    """Sets the number of torch's CPU threads to ``SCAN_THREADS``; if that is unset, torch decides."""
    if threads := _value("SCAN_THREADS"):
        import torch

        torch.set_num_threads(threads)


def worker_count() -> int:
    """``SCAN_WORKERS``: the number of processes that decode images, by default one per core."""
    return int(_value("SCAN_WORKERS"))


def seconds_between_saves() -> float:
    """``SCAN_SAVE_SECONDS``: time between saves of unfinished training, by default 30 s."""
    return float(_value("SCAN_SAVE_SECONDS"))


def allowed(name: str, value: str) -> bool:
    """Whether the switch ``name`` is set, to the one ``value`` it may have."""
    return bool(_value(name) == value)


def data_home(root: Path) -> Path:
    """``SCAN_DATA``: the folder of the named data sets, by default ``datasets``; a relative one starts at ``root``."""
    return resolve(_value("SCAN_DATA"), root).resolve()
