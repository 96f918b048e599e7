"""``scan model``: the model of the last run, for other programs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import artifacts
from pipeline.progress import alive
from scan_core.data.open import expanded
from scan_core.errors import ScanError

if TYPE_CHECKING:
    import numpy as np

CHECKED = 64  # stored images
FORMAT = ".onnx"

model = typer.Typer(no_args_is_help=True, help="Take the model of the last run to other programs.")


@model.command()
def export(file: Annotated[str, typer.Argument(help="The file to write, such as model.onnx.")]) -> None:
    """Write the model of the last run as an ONNX file: stored pixels in, probabilities and an embedding out."""
    with alive("export"):
        from pipeline.predict import model_files
        from scan_core.models.export import check_export, export_model

    path = expanded(file)
    if path.suffix != FORMAT:
        raise ScanError(f"the file is {file}; a name that ends in {FORMAT} is allowed")
    if not path.parent.is_dir():
        raise ScanError(f"the file is {file}, but there is no folder {path.parent}; make it, or name another file")
    files, stats = model_files(), artifacts.load_json(artifacts.IMAGES / "stats.json")
    about = {key: stats[key] for key in ("size", "channels", "fit")} | {"groups": _groups()}
    with alive("export"):
        export_model(files, stats, path, about)
    size, channels = stats["size"], stats["channels"]
    print(f"wrote     {path}, {path.stat().st_size / 1e6:,.1f} MB: images (B,{size},{size},{channels}) uint8")
    try:
        with alive("check"):
            found = check_export(path, files, stats, _stored(stats))
    except ScanError:
        path.unlink()  # so that nobody uses it
        raise
    if found is None:
        print("checked   not yet: install onnxruntime and run this again, which compares the file with the model")
        return
    print(
        f"checked   {found.same} of {found.images} stored images are in the same group; "
        f"a probability differs by at most {found.difference:.1g}"
    )


def _groups() -> dict[int, tuple[int, str]]:
    """The number and the name of the group of each cluster; a split one is whole."""
    from pipeline.groups.apply import Grouping

    grouping = Grouping()
    shown = map(grouping.groups.shown_as, grouping.groups.clusters)
    return {cluster: (group, grouping.name(group)) for cluster, group in enumerate(shown)}


def _stored(stats: dict[str, Any]) -> "np.ndarray":
    """Some images of the store, (N,size,size,channels) uint8; their order is random."""
    import torch

    from pipeline.stage import Stage
    from scan_core.compute.device import Compute

    images = Stage.images(Compute(torch.device("cpu"), "fp32"))[0]
    pixels = images.squares(torch.arange(min(CHECKED, stats["count"])), stats["size"])
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()
