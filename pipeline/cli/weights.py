"""``scan weights``: weights that others have published."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from scan_core.errors import ScanError

if TYPE_CHECKING:
    from scan_core.weights.convert import Imported

weights = typer.Typer(no_args_is_help=True, help="Use weights that others have published.")


@weights.command("list")
def list_weights() -> None:
    """List the weights that are known by name, what they were trained on, and whether that used labels."""
    from rich.console import Console
    from rich.table import Table

    from scan_core.weights.published import ON_HUB, PUBLISHED

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "MB", "features", "pixels", "trained on", "with labels", "license"):
        table.add_column(column, justify="right" if column in ("MB", "features", "pixels") else "left", no_wrap=True)
    for name, each in {**PUBLISHED, **ON_HUB}.items():
        numbers = map(str, (each.megabytes, each.features, each.side))
        table.add_row(name, *numbers, each.trained_on, each.labels, each.license)
    Console(highlight=False).print(table)
    print("\nThe EfficientNets are installed. scan weights get NAME downloads the others, or any network")
    print("that timm has on the Hugging Face hub: its name there, timm/NAME.")


@weights.command("get")
def get_weights(
    name: str = typer.Argument(help="A name of scan weights list, or timm/NAME for another network of timm's."),
    revision: str | None = typer.Option(
        None, help="A branch, tag or commit on the hub; by default that of the file that is there, or else the newest."
    ),
) -> None:
    """Write published weights to weights/NAME.safetensors. What is not installed is downloaded from the hub."""
    from pipeline.weights import weights_file
    from scan_core.weights.hub import is_on_hub, load_from_hub, recorded_origin
    from scan_core.weights.published import load_published

    path = weights_file(name, Path())
    if not is_on_hub(name):
        if revision is not None:
            raise ScanError(
                f"--revision is {revision}; only weights on the hub have revisions, and {name} is not there"
            )
        _write_weights(name, load_published(name), path)
    elif revision is None and _is_intact(path) and (origin := recorded_origin(path)):
        print(f"{path} is there, from {origin['repository']} at revision {origin['revision']}")
        print("--revision main gets the newest")
    else:
        with load_from_hub(name, path, revision) as found:
            read = (found.origin[key] for key in ("repository", "revision", "license"))
            _write_weights("{} at revision {}, license {}".format(*read), found, path)


def _is_intact(path: Path) -> bool:
    """Whether the file of weights can be used, and that of its text tower if it came with one."""
    from scan_core.models.files import load_frozen
    from scan_core.weights.hub import TOKENIZER, recorded_origin
    from scan_core.weights.text import text_towers

    try:
        load_frozen(path)
    except ScanError:
        return False
    if TOKENIZER not in recorded_origin(path):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in text_towers(path.parent)


@weights.command("import")
def import_weights(
    file: str = typer.Argument(help="A checkpoint: .pth, .pt, .pth.tar, .bin or .safetensors."),
    kind: str = typer.Option(..., "--from", help="Its format: moco_v2, torchvision, timm or dino (v1 and v2)."),
    backbone: str | None = typer.Option(None, help="resnet18, resnet34 or resnet50; by default inferred."),
    model: str | None = typer.Option(None, help="timm's name of the network; for dino, by default inferred."),
    stem: str | None = typer.Option(None, help="For a ResNet with a 3x3 stem: small, or stl, which has max-pooling."),
    to: str | None = typer.Option(None, help="The file to write; by default in weights/, named like the checkpoint."),
) -> None:
    """Convert a published checkpoint into a file for backbone.weights; no code that is pickled in it is run."""
    from scan_core.weights.convert import import_checkpoint

    source = Path(file)
    found = import_checkpoint(source, kind, backbone, model, stem)
    name = source.name.split(".pt")[0].removesuffix(".bin").removesuffix(".safetensors")
    if name in ("model", "pytorch_model"):  # all files of Hugging Face have one of these names
        name = found.backbone.model or name
    path = Path(to or f"weights/{name}.safetensors")
    if path.suffix != ".safetensors" or (path.exists() and path.samefile(source)):
        raise ScanError(f"--to is {path}; a .safetensors file other than the checkpoint is allowed")
    _write_weights(f"{file}, {kind}", found, path)


def _write_weights(read: str, found: "Imported", path: Path) -> None:
    """Writes the file, and prints what it holds and the settings that use it."""
    from pipeline.presets import as_yaml
    from scan_core.models.files import save_backbone
    from scan_core.weights.text import save_text, text_file

    images = found.preprocessing
    save_backbone(path, found.tensors, found.origin, found.backbone, images)
    if found.text is not None:
        save_text(path, found.text)
    left_out = ", ".join(f"{what} ({count})" for what, count in found.left_out.items()) or "nothing"
    print(f"read      {read}\nnetwork   {found.origin['network']}, {len(found.tensors)} tensors")
    print(f"left out  {left_out}\nwrote     {path}")
    if found.text is not None:
        print(f"names     {text_file(path)}, for names of groups")
    for note in found.notes:
        print(f"note      {note}")
    frozen = {
        "pretext": {"method": "frozen"},
        "embed": {"spaces": [{"weights": path.as_posix(), "side": None, "mirror": False}]},
        "cluster": {"method": "frozen"},
        "selflabel": {"epochs": 0},
    }
    trained = {
        "data": {"size": found.size, "view": images.side, "mean": images.mean, "std": images.std},
        "backbone": found.backbone.model_dump(mode="json") | {"weights": path.as_posix()},
    }
    print("\nTo group images on these features, set in params.yaml:")
    print(as_yaml(frozen), end="")
    print("\nTo train this network further, set instead:")
    print(as_yaml(trained), end="")
