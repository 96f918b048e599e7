"""Weights of the settings, by name or by path, and their hashes."""

import hashlib
from pathlib import Path

from pipeline.params import Params
from scan_core.data.open import resolve
from scan_core.errors import ScanError
from scan_core.pretext.settings import AdaptedPretext
from scan_core.weights.hub import OWNER, is_on_hub
from scan_core.weights.published import PUBLISHED, load_published

FOLDER = Path("weights")  # of the project


def weights_file(name: str, root: Path) -> Path:
    """The file of weights, which may be missing: of a name of ``scan weights get``, or a path from the project."""
    named = name in PUBLISHED or is_on_hub(name)
    return root / FOLDER / f"{name.removeprefix(OWNER)}.safetensors" if named else resolve(name, root)


def named_weights(params: Params) -> list[tuple[str, str]]:
    """The settings that name weights, each with its value."""
    named = [("backbone.weights", params.backbone.weights)] if params.backbone.weights else []
    if isinstance(params.pretext, AdaptedPretext):
        named += [("pretext.weights", params.pretext.weights), ("pretext.judge", params.pretext.judge)]
    return named + [(f"embed.spaces.{number}.weights", each.weights) for number, each in enumerate(params.embed.spaces)]


def sign_weights(key: str, name: str, root: Path) -> str:
    """The SHA-256 of the file of weights, which is made first if it is missing and a package has them.

    ``key`` is the setting, for the error. Raises ``ScanError`` if there is no file: a run downloads no weights.
    """
    path = weights_file(name, root)
    if name in PUBLISHED and not path.exists():
        write_published(name, path)
    if not path.is_file() and is_on_hub(name):
        raise ScanError(f"{key} is {name}; there is no file at {path}: download it with scan weights get {name}")
    if not path.is_file():
        known = ", ".join(PUBLISHED)
        raise ScanError(
            f"{key} is {name}; there is no file at {path}: make it with scan weights import, or use one of {known}"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_published(name: str, path: Path) -> None:
    """Writes the published weights ``name`` to ``path``. Raises ``ScanError`` if their package is not installed."""
    from scan_core.models.files import save_backbone

    found = load_published(name)
    save_backbone(path, found.tensors, found.origin, found.backbone, found.preprocessing)
