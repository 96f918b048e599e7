"""``params.yaml``: read once, validated before anything is computed."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.yaml_file import in_words, where
from pipeline.yaml_file import read_yaml as read_yaml  # also for those who import it from here
from scan_core.clustering.settings import Cluster, Embed, Neighbors, Selflabel
from scan_core.data.settings import Data
from scan_core.errors import ScanError
from scan_core.evaluation.settings import Evaluate
from scan_core.models.settings import Backbone
from scan_core.pretext.settings import AdaptedPretext, Pretext
from scan_core.settings import Settings, variants

PARAMS_FILE = Path("params.yaml")


class Params(Settings):
    """All settings of a run, in the order of ``params.yaml``."""

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
    def _consistent(self) -> "Params":
        cluster, neighbors = self.cluster, self.neighbors
        if self.embed.features == "projector" and not hasattr(self.pretext, "projection"):
            raise ValueError(
                f"embed.features is projector; pretext.method {self.pretext.method} has no projector, "
                "backbone is allowed"
            )
        for name, method, allowed in (
            ("pretext", self.pretext.method, "one that trains, or none,"),
            ("cluster", cluster.method, "scan"),
        ):
            if bool(self.embed.spaces) != (method in ("frozen", "adapted")):
                spaces, allowed = ("has networks", "frozen") if self.embed.spaces else ("is []", allowed)
                raise ValueError(f"{name}.method is {method}, but embed.spaces {spaces}; {allowed} is allowed")
        pretext = self.pretext
        if isinstance(pretext, AdaptedPretext):
            seen = [(space.weights, space.side) for space in self.embed.spaces]
            if (pretext.weights, pretext.side) not in seen:
                raise ValueError(
                    f"pretext.weights is {pretext.weights} at {pretext.side or 'its own'} pixels, which is not in "
                    "embed.spaces; one of these is allowed, or pretext.method frozen"
                )
            if pretext.groups.neighbors > pretext.neighbors:
                raise ValueError(
                    f"pretext.groups.neighbors is {pretext.groups.neighbors}; at most pretext.neighbors, "
                    f"{pretext.neighbors}, is allowed"
                )
        for name, used in (
            ("cluster.neighbors", cluster.neighbors),
            ("cluster.val_neighbors", cluster.val_neighbors),
            ("neighbors.smoothing", neighbors.smoothing),
        ):
            if used > neighbors.k:
                raise ValueError(f"{name} is {used}; at most neighbors.k, {neighbors.k}, is allowed")
        for name in ("pretext", "cluster", "selflabel"):
            if name == "selflabel" and not self.selflabel.epochs:
                continue
            cutout = getattr(getattr(getattr(self, name), "augmentation", None), "cutout", 0)
            if cutout >= self.data.side:
                raise ValueError(
                    f"{name}.augmentation.cutout is {cutout}; less than {self.data.side}, the pixels that the network "
                    "sees, is allowed"
                )
        return self


def read_params(path: Path = PARAMS_FILE) -> Params:
    """The validated settings. Raises ``ScanError`` naming the first wrong key, its value and what is allowed."""
    return validate(read_yaml(path), path)


def validate(values: Any, path: Path) -> Params:
    """``values`` as settings. Raises ``ScanError`` naming ``path``, the file that they are from, and the line."""
    try:
        return settings(values)
    except WrongSetting as error:
        raise ScanError(f"{where(path, error.name)}: {error}") from None


class WrongSetting(ScanError):
    """What is wrong with a setting, and its dotted ``name``; "" if there are no settings at all."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


def settings(values: Any) -> Params:
    """``values`` as settings, which may be of no file. Raises ``WrongSetting``."""
    if not isinstance(values, dict):
        raise WrongSetting(f"it holds {in_words(values)}; it must hold settings, as name: value")
    try:
        # Strict validation takes JSON's list for a tuple, but not Python's.
        return Params.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        text = _explain(error)
        raise WrongSetting(text, text.partition(" ")[0]) from None  # each text begins with a dotted name
    except TypeError as error:  # a YAML key may be a list or a date
        raise WrongSetting(str(error)) from None


def _explain(error: ValidationError) -> str:
    """The first error in one line."""
    # A misspelled key is reported twice, as unknown and as missing: the former says more.
    first, *others = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    kind, place, given, message = first["type"], first["loc"], first["input"], first["msg"]
    name, model, siblings = _locate(place)
    if kind.startswith("union_tag"):
        tag = first["ctx"]["discriminator"].strip("'")
        name, given = f"{name}.{tag}", given.get(tag)
    shown = json.dumps(given, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    keyed = ("missing", "extra_forbidden")
    if kind in keyed and any(place[-1] in each.model_fields for each in siblings.values()):
        here = [each for each in (first, *others) if each["loc"][:-1] == place[:-1] and each["type"] in keyed]
        others = [each for each in others if each not in here]
        keys = {str(each["loc"][-1]): each["type"] for each in here}
        text = _explain_variant(name.rpartition(".")[0], str(place[-2]), model, keys)
    elif kind == "extra_forbidden":
        allowed = sorted(model.model_fields)
        close = difflib.get_close_matches(str(place[-1]), allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        text = f"{name} is not a setting; {hint}allowed here: {', '.join(allowed)}"
    elif kind in ("missing", "union_tag_not_found"):
        text = f"{name} is missing; add it (presets/base.yaml has every setting)"
    elif kind == "union_tag_invalid":
        text = f"{name} is {shown}; {first['ctx']['expected_tags']} are allowed"
    elif kind == "value_error":
        text = f"{name}.{message.removeprefix('Value error, ')}".removeprefix(".")  # Params' rules name keys in full
    else:
        text = f"{name} is {shown}; {message[0].lower()}{message[1:]}"
    return text + (f" (and {len(others)} more)" if others else "")


def _explain_variant(group: str, tag: str, model: type[Settings], keys: dict[str, str]) -> str:
    """The keys that a group's method or kind lacks, and those that it does not have."""
    key = next(iter(model.model_fields))
    said = []
    for kind, verb in (("missing", "lacks"), ("extra_forbidden", "has no")):
        if names := [name for name in keys if keys[name] == kind]:
            said.append(f"{verb} {', '.join(names)}")
    remedy = f"scan settings use --method {tag} writes" if group == "pretext" else "presets/base.yaml has"
    return f"{group}.{key} {tag} {' and '.join(said)}; {remedy} its settings"


def _locate(place: tuple[int | str, ...]) -> tuple[str, type[Settings], dict[str, type[Settings]]]:
    """The dotted name of an error's place, the class that has its last key, and that class's siblings in a union."""
    names: list[str] = []
    model: Any = Params
    siblings: dict[str, type[Settings]] = {}
    found = (Params, siblings)
    for part in place:
        if tags := variants(model):  # pydantic puts the tag of the chosen class into the place
            model, siblings = tags[str(part)], tags
            continue
        names.append(str(part))
        fields = getattr(model, "model_fields", {})
        if fields:
            found = (model, siblings)
        model, siblings = (fields[part].annotation if part in fields else None), {}
    return ".".join(names), *found
