"""What each stage's code is, found from its imports: ``python -m tests.closure`` prints the code deps for dvc.yaml."""

import ast
from pathlib import Path

# How a stage is run, shown and recorded. A change there changes no artifact, so it must not rerun a stage.
NOT_DEPS = {
    "pipeline.stage", "pipeline.machine", "pipeline.progress", "pipeline.tracking", "pipeline.delivery",
    "pipeline.rows", "pipeline.served_model", "pipeline.packaging", "pipeline.resume", "pipeline.fingerprint",
    "pipeline.cli",
}  # fmt: skip
EXTRA = {  # files that a module reads
    "pipeline.report": ["pipeline/report.html.j2"],
    "scan_core.imagenet": ["scan_core/imagenet_subsets"],
}
OURS = ("scan_core", "pipeline", "stages")


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at the top or inside a function; not what only a type checker sees."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            candidates = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        else:
            continue
        found |= {name for name in candidates if name.split(".")[0] in OURS and module_file(name).is_file()}
    return found


def module_file(name: str) -> Path:
    """``scan_core.losses`` to ``scan_core/losses.py``."""
    return Path(*name.split(".")).with_suffix(".py")


def code_of(stage: str) -> list[str]:
    """The files whose change may change what ``stage`` writes."""
    # Every stage reads parameters and artifacts through these two, whether it imports them itself or not.
    waiting, seen = [f"stages.{stage}", "pipeline.params", "pipeline.artifacts"], set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in NOT_DEPS:
            seen.add(name)
            waiting.extend(imports(module_file(name)))
    files = {module_file(name).as_posix() for name in seen}
    return sorted(files | {extra for name in seen for extra in EXTRA.get(name, [])})


if __name__ == "__main__":
    for name in ("prepare", "pretext", "embed", "neighbors", "cluster", "selflabel", "evaluate"):
        print(f"  {name}:")
        print("\n".join(f"      - {path}" for path in code_of(name)))
