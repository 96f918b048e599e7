"""``presets/*.yaml``: complete settings, each with its source, expected result and cost; and how one comes into use."""

import difflib
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pipeline.params import PARAMS_FILE, read_params
from scan_core.errors import ScanError

PRESETS = Path("presets")
KEPT = Path(".scan")  # settings that were in use and are no preset


def list_presets() -> dict[str, Path]:
    """Name → file, in order, 50 before 100. Raises ``ScanError`` where there are none."""
    files = sorted(PRESETS.glob("*.yaml"), key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(9), path.stem))
    found = {path.stem: path for path in files}
    if not found:
        raise ScanError(f"{PRESETS}/ is missing from {Path.cwd()}, or empty; run from the project's folder")
    return found


def find_preset(name: str) -> Path:
    """The file of a preset, by its name or its path. Raises ``ScanError`` listing those there are."""
    found = list_presets()
    for preset, path in found.items():
        if name in (preset, path.name, str(path)):
            return path
    close = difflib.get_close_matches(name.lower().replace("-", "_"), found, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ScanError(f"{name} is not a preset; {hint}there are: {', '.join(found)}")


def read_header(path: Path) -> dict[str, str]:
    """What a preset's first comment says: ``title``, its first line, ``source``, ``expected``, ``cost``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line.lstrip("# ").rstrip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    _, *parts = re.split(r"\b(Source|Expected|Cost): ", " ".join(header))
    said = {key.lower(): text.strip() for key, text in zip(parts[::2], parts[1::2], strict=True)}
    return {"title": header[0].rstrip(",;:") if header else "", **said}


def in_use() -> str | None:
    """The preset that ``params.yaml`` is, to the byte; None where it is none of them."""
    given = PARAMS_FILE.read_bytes() if PARAMS_FILE.exists() else None
    return next((name for name, path in list_presets().items() if path.read_bytes() == given), None)


def use_preset(path: Path) -> Path | None:
    """Makes ``params.yaml`` a copy of a preset. Returns where its own settings were kept, if it held some."""
    read_params(path)
    return _replace_params(path.read_bytes())


def change_params(values: dict[str, Any], title: str) -> Path | None:
    """Puts ``values``, groups of settings, into ``params.yaml``; the others stay, with their comments.

    The header, which is of what stood there, gives way to ``title`` and where the others are from. Returns where its
    own settings were kept, if it held some. Raises ``ScanError`` where what results is not valid.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 1000  # no line is broken
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    settings = yaml.load(PARAMS_FILE.read_bytes())
    for group, changes in values.items():
        for key, value in changes.items():
            if settings[group][key] != value:
                _change(settings[group], key, value)
    stream = io.StringIO()
    yaml.dump(settings, stream)
    body = "".join(itertools.dropwhile(lambda line: line.startswith("#"), stream.getvalue().splitlines(keepends=True)))
    others = f"those of {preset}" if (preset := in_use()) else "what they were"
    written = f"# {' '.join(title.split())}\n# The other settings are {others}.\n{body}".encode()
    KEPT.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=KEPT, suffix=".yaml") as file:
        file.write(written)
        file.flush()
        try:
            read_params(Path(file.name))
        except ScanError as error:
            why = f"for with these settings {str(error).removeprefix(f'{file.name}: ')}"
            raise ScanError(f"{PARAMS_FILE} stays as it is, {why}; scan use digits first") from None
    return _replace_params(written)


def _change(group: Any, key: str, value: Any) -> None:
    """Sets a value of a group of ruamel's. The comment on a number, or on a group within, was about the old value."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, dict):  # replaced, for it may be of another kind; what follows its last line stays
        old, value = group[key], CommentedMap(value)
        for name, each in value.items():
            if isinstance(each, list):
                value[name] = CommentedSeq(each)
                value[name].fa.set_flow_style()
        if list(old)[-1] in old.ca.items:
            value.ca.items[list(value)[-1]] = old.ca.items[list(old)[-1]]
    if isinstance(value, (dict, int, float)):
        group.ca.items.pop(key, None)
    group[key] = value


def _replace_params(content: bytes) -> Path | None:
    """Returns where the settings that stood there were kept, where they were of no preset."""
    kept = None
    if PARAMS_FILE.exists() and in_use() is None:
        old = PARAMS_FILE.read_bytes()
        kept = KEPT / f"params-{hashlib.sha256(old).hexdigest()[:8]}.yaml"  # the same settings have the same name
        KEPT.mkdir(exist_ok=True)
        _write(kept, old)
    _write(PARAMS_FILE, content)
    return kept


def as_yaml(values: dict[str, Any], indent: str = "") -> str:
    """Settings as they may stand in ``params.yaml``, in their order."""
    text = ""
    for key, value in values.items():
        if isinstance(value, dict):
            text += ("" if indent else "\n") + f"{indent}{key}:\n" + as_yaml(value, indent + "  ")
        else:  # JSON is YAML; quotes are left out where a word cannot be taken for anything else
            bare = re.fullmatch("(?!null|true|false)[a-z][a-z0-9_]*", value) if isinstance(value, str) else None
            text += f"{indent}{key}: {value if bare else json.dumps(value)}\n"
    return text


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)
