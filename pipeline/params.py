"""``params.yaml``: read once, validated before anything is computed."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from scan_core.errors import ScanError
from scan_core.settings import Backbone, Cluster, Data, Embed, Evaluate, Neighbors, Pretext, Selflabel, Settings

PARAMS_FILE = Path("params.yaml")


class Params(Settings):
    """All settings of a run, as they stand in ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    precision: Literal["auto", "bf16", "fp32"]
    data: Data
    backbone: Backbone
    pretext: Pretext
    embed: Embed
    neighbors: Neighbors
    cluster: Cluster
    selflabel: Selflabel
    evaluate: Evaluate

    @model_validator(mode="after")
    def _projector_there(self) -> "Params":
        if self.embed.features == "projector" and self.pretext.method in ("rotation", "none"):
            raise ValueError(
                f"embed.features is projector; pretext.method {self.pretext.method} has no projector, "
                "backbone is allowed"
            )
        return self

    @model_validator(mode="after")
    def _neighbors_there(self) -> "Params":
        cluster, neighbors = self.cluster, self.neighbors
        for name, used in (
            ("cluster.neighbors", cluster.neighbors),
            ("cluster.val_neighbors", cluster.val_neighbors),
            ("neighbors.smoothing", neighbors.smoothing),
        ):
            if used > neighbors.k:
                raise ValueError(f"{name} is {used}; neighbors.k is {neighbors.k}, and at most so many can be used")
        return self

    @model_validator(mode="after")
    def _cutout_leaves_something(self) -> "Params":
        for name in ("pretext", "cluster", "selflabel"):
            cutout = getattr(getattr(self, name).augmentation, "cutout", 0)
            if cutout >= self.data.side:
                raise ValueError(
                    f"{name}.augmentation.cutout is {cutout}; the network sees {self.data.side} pixels, less is allowed"
                )
        return self


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file, as DVC reads it: ``1e-4`` is a number."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScanError(f"{path} is missing from {Path.cwd()}; run from the project's folder") from None
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; put a readable YAML file there") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ScanError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def read_params(path: Path = PARAMS_FILE) -> Params:
    """The validated settings. Raises ``ScanError`` naming the first wrong key, its value and what is allowed."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ScanError(f"{path} holds {type(values).__name__}; it must hold a mapping of settings")
    try:
        # By way of JSON: strict validation then takes a YAML list where the model has a tuple.
        return Params.model_validate_json(json.dumps(_with_text_keys(values), default=str))
    except ValidationError as error:
        raise ScanError(f"{path}: {_explain(error)}") from None


def _with_text_keys(values: Any) -> Any:
    """``values`` for JSON, where keys are text: YAML's may be lists or dates, which then are named as no settings."""
    if isinstance(values, list):
        return [_with_text_keys(each) for each in values]
    return {str(key): _with_text_keys(each) for key, each in values.items()} if isinstance(values, dict) else values


def _explain(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    kind, context = first["type"], first.get("ctx", {})
    name, model = _locate(first["loc"])
    given = json.dumps(first["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    message = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        allowed = sorted(model.model_fields) if model else []
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        text = f"{name} is not a setting; {hint}allowed here: {', '.join(allowed)}"
    elif kind == "missing" and isinstance(first["loc"][-1], int):
        text = f"{name.rpartition('.')[0]} is {given}; at least {first['loc'][-1] + 1} values are needed"
    elif kind == "missing":
        text = f"{name} is missing; add it (presets/ has complete files)"
    elif kind == "too_long":
        text = f"{name} is {given}; at most {context['max_length']} values are allowed"
    elif kind == "union_tag_not_found":
        text = f"{name}.kind is missing; add it (presets/ has complete files)"
    elif kind == "union_tag_invalid":
        text = f"{name}.kind is {json.dumps(first['input']['kind'])}; {context['expected_tags']} are allowed"
    elif kind == "value_error":
        text = f"{name}.{message}".removeprefix(".")  # a rule about all of the file names its keys in full
    else:
        text = f"{name} is {given}; {message[0].lower()}{message[1:]}"
    return text + (f" (and {len(others)} more)" if others else "")


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """The dotted name of an error's place, and the settings class it lies in; union tags in ``loc`` are left out."""
    parts: list[str] = []
    inside: Any = None
    model: Any = Params
    for part in loc:
        choices = [choice for choice in get_args(model) if "kind" in getattr(choice, "model_fields", {})]
        if choices:  # the tag of a union: which of its classes it is
            model = next(choice for choice in choices if part in get_args(choice.model_fields["kind"].annotation))
            continue
        parts.append(str(part))
        fields = getattr(model, "model_fields", {})
        inside, model = (model if fields else None), (fields[part].annotation if part in fields else None)
    return ".".join(parts), inside
