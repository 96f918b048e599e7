"""``presets/``: every setting with its default, what each preset changes, and how a preset becomes ``params.yaml``."""

import difflib
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from pipeline.params import PARAMS_FILE, Params, WrongSetting, settings, validate
from pipeline.yaml_file import read_yaml
from scan_core.errors import ScanError
from scan_core.settings import variants

PRESETS = Path("presets")
# Where the program's own files lie: in a clone at its top, in an installed package in a folder of their own.
TEMPLATE = Path(__file__).resolve().with_name("template")
TEMPLATE = TEMPLATE if TEMPLATE.is_dir() else TEMPLATE.parent.parent
BASE = "base.yaml"  # every setting of every method and kind
KEPT = Path(".scan")  # settings that were in use and are not a preset

# --- Reading


def presets_folder() -> Path:
    """``presets/`` of the project, or the program's own if the project has none."""
    return PRESETS if PRESETS.is_dir() else TEMPLATE / PRESETS


def list_presets(folder: Path | None = None) -> dict[str, Path]:
    """Name → file, in order, 50 before 100. Raises ``ScanError`` if there are none."""
    folder = folder or presets_folder()
    files = sorted(folder.glob("*.yaml"), key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(9), path.stem))
    found = {path.stem: path for path in files if path.name != BASE}
    if not found:
        raise ScanError(f"{folder}/ is missing from {Path.cwd()}, or empty; run from the project's folder")
    return found


def find_preset(name: str) -> Path:
    """The file of a preset, by its name or its path. Raises ``ScanError`` listing the presets."""
    found = list_presets()
    for preset, path in found.items():
        if name in (preset, path.name, str(path)):
            return path
    close = difflib.get_close_matches(name.lower().replace("-", "_"), found, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ScanError(f"{name} is not a preset; {hint}there are: {', '.join(found)}")


def read_header(path: Path) -> dict[str, str]:
    """What a preset's first comment says: ``title``, its first line, ``source``, ``expected``, ``cost``."""
    header = [line.lstrip("# ").rstrip() for line in _header(path.read_text(encoding="utf-8"))]
    _, *parts = re.split(r"\b(Source|Expected|Cost): ", " ".join(header))
    said = {key.lower(): text.strip() for key, text in zip(parts[::2], parts[1::2], strict=True)}
    return {"title": header[0].rstrip(",;:") if header else "", **said}


def preset_values(path: Path) -> dict[str, Any]:
    """All settings of a preset, in the order of ``params.yaml``. They are not validated."""
    values: dict[str, Any] = complete(read_yaml(path) or {}, read_yaml(path.with_name(BASE)))
    return values


def read_preset(path: Path) -> Params:
    """The validated settings of a preset. Raises ``ScanError`` naming the first wrong key and what is allowed."""
    return validate(preset_values(path), path)


def complete(values: Any, base: Any, kind: Any = Params, drop: bool = False) -> Any:
    """``values`` with what they lack from ``base``, group by group.

    ``base`` has the settings of all methods and kinds, of which a group gets those that its class in ``kind`` has.
    ``drop`` leaves out ``values`` that only another method or kind has; else they stay, and validating them fails.
    """
    if not (isinstance(values, dict) and isinstance(base, dict)):
        return values
    fields = getattr(kind, "model_fields", {})
    if tags := variants(kind):
        tag = next(iter(next(iter(tags.values())).model_fields))  # method or kind
        chosen = tags.get(str(values.get(tag, base[tag])))
        if chosen is None:
            return values  # validating them says which are allowed
        fields = chosen.model_fields
    completed = {}
    for key in dict.fromkeys([*base, *values]):
        if key in fields and key in base:
            default = {} if isinstance(base[key], dict) else base[key]
            completed[key] = complete(values.get(key, default), base[key], fields[key].annotation, drop)
        elif key in values and not (drop and key in base):
            completed[key] = values[key]
    return completed


# --- Writing


def in_use() -> str | None:
    """The preset that ``params.yaml`` is, to the byte; None if it is none of them."""
    given = PARAMS_FILE.read_text(encoding="utf-8", errors="replace") if PARAMS_FILE.exists() else None
    return next((name for name, path in list_presets().items() if given and preset_text(path) == given), None)


def preset_text(path: Path) -> str:
    """A preset as ``params.yaml``: its header, all settings, and what base and preset say of each."""
    text = path.read_text(encoding="utf-8")
    base, _ = _comments(path.with_name(BASE).read_text(encoding="utf-8"))
    own, _ = _comments(text)
    return "".join(f"{line}\n" for line in _header(text)) + as_yaml(preset_values(path), base | own)


def use_preset(path: Path) -> Path | None:
    """Writes a preset to ``params.yaml``. Returns where settings of the user's own were kept, if there were any."""
    read_preset(path)
    return _replace_params(preset_text(path))


def change_params(values: dict[str, Any], title: str) -> Path | None:
    """Puts ``values``, groups of settings, into ``params.yaml``; the other settings stay, with their comments.

    A group of another method or kind than before gets its settings from the base. The header, which described the old
    settings, becomes ``title`` and the name of the preset that the others are of. Returns where settings of the user's
    own were kept, if there were any. Raises ``ScanError`` if the result is not valid.
    """
    old, new = changed_params(values)
    text = PARAMS_FILE.read_text(encoding="utf-8")
    defaults, _ = _comments((presets_folder() / BASE).read_text(encoding="utf-8"))
    beside, above = _comments(text.removeprefix("".join(f"{line}\n" for line in _header(text))))
    before, after = flat(old), flat(new)
    # A comment on a value that changes was about the old value.
    beside = {key: said for key, said in beside.items() if key in after and before.get(key) == after[key]}
    others = f"those of {preset}" if (preset := in_use()) else "what they were"
    header = f"# {' '.join(title.split())}\n# The other settings are {others}.\n"
    return _replace_params(header + as_yaml(new, defaults | beside, above))


def add_missing() -> list[str]:
    """Gives ``params.yaml`` the settings that it lacks, as an older program did not have them, with the base's values.

    All else stays as it is, comments too. Returns their names.
    """
    old, text = read_yaml(PARAMS_FILE), PARAMS_FILE.read_text(encoding="utf-8")
    if not isinstance(old, dict):
        return []
    base = presets_folder() / BASE
    new = complete(old, read_yaml(base))
    there = flat(old)
    added = [name for name, value in flat(new).items() if name not in there and not isinstance(value, dict)]
    if added:
        header = "".join(f"{line}\n" for line in _header(text))
        beside, above = _comments(text.removeprefix(header))
        defaults, _ = _comments(base.read_text(encoding="utf-8"))
        known = {name: said for name, said in defaults.items() if name in added}
        _write(PARAMS_FILE, (header + as_yaml(new, known | beside, above)).encode())
    return added


def changed_params(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of ``params.yaml``, and what ``change_params`` would make of them, which is valid."""
    old = read_yaml(PARAMS_FILE)
    if not isinstance(old, dict):
        validate(old, PARAMS_FILE)
    changed = {group: {**(old.get(group) or {}), **changes} for group, changes in values.items()}
    new = complete(old | changed, read_yaml(presets_folder() / BASE), drop=True)
    try:
        settings(new)
    except WrongSetting as error:
        raise ScanError(
            f"{PARAMS_FILE} stays as it is, because with these settings {error}; change that first"
        ) from None
    return old, new


def as_yaml(
    values: dict[str, Any], beside: dict[str, str] | None = None, above: dict[str, str] | None = None, prefix: str = ""
) -> str:
    """Settings as they may stand in ``params.yaml``, groups last, with comments by dotted name."""
    text, indent = "", "  " * prefix.count(".")
    for key, value in sorted(values.items(), key=lambda item: isinstance(item[1], dict)):
        name, group = f"{prefix}{key}", isinstance(value, dict)
        text += "\n" if group and not prefix else ""
        text += "".join(f"{indent}{line}\n" for line in (above or {}).get(name, "").splitlines())
        text += f"{indent}{key}:" + ("" if group else f" {_scalar(value)}")
        text += f" # {beside[name]}\n" if beside and name in beside else "\n"
        text += as_yaml(value, beside, above, f"{name}.") if group else ""
    return text if prefix else text + (above or {}).get("", "")


def _scalar(value: Any) -> str:
    """JSON, which is YAML. A word that cannot be taken for anything else has no quotes."""
    bare = re.fullmatch("(?!null|true|false)[a-z][a-z0-9_]*", value) if isinstance(value, str) else None
    return value if bare else json.dumps(value, default=str)


def _header(text: str) -> list[str]:
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _comments(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Comments by dotted name: those beside a setting, and lines above one; "" has those at the end of the file."""
    beside: dict[str, str] = {}
    above: dict[str, str] = {}
    lines = ""
    names: list[str] = []
    indents: list[int] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            lines += line.strip() + "\n"
        elif found := re.match(r"""( *)([\w-]+):((?:\s+(?:'[^']*'|"[^"]*"|[^\s#'"]\S*))*)(?:\s+#\s*(.*))?$""", line):
            while indents and len(found[1]) <= indents[-1]:
                indents.pop()
                names.pop()
            indents.append(len(found[1]))
            names.append(found[2])
            name = ".".join(names)
            if found[4]:
                beside[name] = found[4].rstrip()
            if lines:
                above[name], lines = lines, ""
    return beside, above | ({"": lines} if lines else {})


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name → value, of settings and of groups."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        named[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            named |= flat(value, f"{prefix}{key}.")
    return named


def _replace_params(text: str) -> Path | None:
    """Returns where the settings that were there are kept, if they were not a preset."""
    kept = None
    if PARAMS_FILE.exists() and in_use() is None:
        old = PARAMS_FILE.read_bytes()
        kept = KEPT / f"params-{hashlib.sha256(old).hexdigest()[:8]}.yaml"  # the same settings have the same name
        KEPT.mkdir(exist_ok=True)
        _write(kept, old)
    _write(PARAMS_FILE, text.encode())
    return kept


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)
