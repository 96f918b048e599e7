"""The code that a stage depends on: a digest of the ``meaning`` of each module in the stage's import closure.

Modules are found where Python would find them; they are read and never imported.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.meaning import NOTHING, meaning, part_of

OURS = ("scan_core", "pipeline", "stages")
# How a stage is run, shown and recorded: no output depends on it. pipeline.params and pipeline.yaml_file only read
# settings; their classes reach a stage through the modules of scan_core that use them.
OUTSIDE = (
    *("pipeline.cli", "pipeline.environment", "pipeline.fingerprint", "pipeline.params", "pipeline.progress"),
    *("pipeline.resume", "pipeline.stage", "pipeline.command", "pipeline.tracking", "pipeline.yaml_file"),
    # Where weights lie; and what comes after a run, photos and answers, which no stage reads.
    *("pipeline.weights", "pipeline.groups.placed", "pipeline.groups.learned"),
)
# A module that a stage imports for one value of a setting alone: for others, its code changes no output.
ONLY_FOR = {"scan_core.pretext.adapted": ("pretext", "adapted")}  # of a group, its method
SETTINGS = "settings"  # a stage depends on the classes of such a module that it uses, not on the others


def stage_code(stage: str, methods: Mapping[str, str] | None = None) -> dict[str, str]:
    """The SHA-256 of each module that ``stage`` imports, by its name, and of each file that these read, by its path.

    ``methods`` are those that run, by the group of their settings; None: any.
    """
    waiting = [f"stages.{stage}", "pipeline.artifacts"]  # pipeline.stage, which is outside, reads artifacts for all
    seen, digests = set(waiting), dict[str, str]()
    while waiting:
        name = waiting.pop()
        module, _, definition = name.partition(":")
        file = module_file(module)
        if file is None:
            raise ModuleNotFoundError(f"there is no module {module}")
        package = module if file.stem == "__init__" else module.rpartition(".")[0]
        source = file.read_text(encoding="utf-8")
        meant, imports, constants = meaning(part_of(source, definition) if definition else source)
        if meant != NOTHING:  # the __init__ of a package may hold a docstring alone
            digests[name] = hashlib.sha256(meant.encode()).hexdigest()
        for read in _files_read(file.parent, constants):
            path = f"{package.replace('.', '/')}/{read.relative_to(file.parent).as_posix()}"
            digests[path] = hashlib.sha256(read.read_bytes()).hexdigest()
        unused = {module for module, (group, method) in ONLY_FOR.items() if methods and methods[group] != method}
        new = set(_modules(imports, package)) - seen - unused
        seen |= new
        waiting += new
    return dict(sorted(digests.items()))


@functools.cache
def _folders(top: str) -> list[str]:
    """Where a top package lies. A submodule is not looked up likewise, which would run its parents."""
    spec = importlib.util.find_spec(top)
    return list((spec and spec.submodule_search_locations) or ())


def module_file(name: str) -> Path | None:
    """The file of a module, or None."""
    top, *rest = name.split(".")
    for folder in _folders(top):
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
    return None


def _modules(imports: list[ast.Import | ast.ImportFrom], package: str) -> Iterator[str]:
    """The project's modules that a module of ``package`` imports, and the packages that hold them."""
    for node in imports:
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{module}.{name}" for name in names]
        for parts in [name.split(".") for name in names]:
            for end in range(1, len(parts) + 1 if parts[0] in OURS else 0):
                name = ".".join(parts[:end])
                if name in OUTSIDE:
                    break
                if parts[end - 1] == SETTINGS and end < len(parts):  # only the classes that are imported
                    yield f"{name}:{parts[end]}"
                    break
                if module_file(name):
                    yield name


def _files_read(folder: Path, constants: set[object]) -> Iterator[Path]:
    """Files in ``folder`` that are no code, if one of the module's strings is their name or that of their folder."""
    for path in folder.iterdir():
        if path.name in constants and path.suffix != ".py" and not (path / "__init__.py").exists():
            yield from [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
