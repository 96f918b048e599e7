"""``scan settings``: what is set, what is allowed, and the presets."""

import json
from pathlib import Path

import typer

from pipeline.fingerprint import DVC_FILE
from pipeline.mend import mend
from pipeline.params import PARAMS_FILE, read_params
from scan_core.errors import ScanError

settings = typer.Typer(no_args_is_help=True, help="Show, check and change the settings in params.yaml.")


@settings.command()
def show(
    name: str | None = typer.Argument(None, help="A preset's name; by default params.yaml is printed."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON with sorted keys."),
) -> None:
    """Print the validated settings of params.yaml or of a preset."""
    from pipeline import presets

    values = (presets.read_preset(presets.find_preset(name)) if name else read_params()).model_dump(mode="json")
    if as_json:
        print(json.dumps(values, indent=2, sort_keys=True))
    else:
        print(presets.as_yaml(values), end="")


@settings.command()
def check() -> None:
    """Validate params.yaml without running anything, and mend what a DVC that was killed has left."""
    read_params()
    mend()


@settings.command()
def use(
    name: str | None = typer.Argument(None, help="A preset; without one, the presets are listed."),
    method: str | None = typer.Option(None, help="Change pretext.method alone; its new settings get their defaults."),
) -> None:
    """Write a preset, or another pretext.method, to params.yaml; a copy of your own settings is kept."""
    from pipeline import presets

    if (name or method) and not any(path.exists() for path in (PARAMS_FILE, DVC_FILE, presets.PRESETS)):
        raise ScanError(
            f"there is no project in {Path.cwd()}; run from the project's folder, or make one with scan init"
        )
    if name and method:
        raise ScanError(f"scan settings use got {name} and --method {method}; use the preset first, then --method")
    if method:
        change = f"pretext.method is {method}, by scan settings use"
        kept = presets.change_params({"pretext": {"method": method}}, change)
        print(f"params.yaml has pretext.method {method} now" + _kept(kept) + "\nnext      dvc repro")
        return
    if name is None:
        used, names = presets.in_use(), presets.list_presets()
        width = max(map(len, names))
        for preset, path in names.items():
            print(f"{'*' if preset == used else ' '} {preset:<{width}}  {presets.read_header(path)['title']}")
        print("\n* is in params.yaml" if used else "\nparams.yaml is not one of them")
        return
    path = presets.find_preset(name)
    kept = presets.use_preset(path)
    print(f"params.yaml is now {path}" + _kept(kept))
    header = presets.read_header(path)
    for key in ("expected", "cost"):
        if key in header:
            print(f"{key:<9} {header[key]}")
    print("next      dvc repro")


def _kept(path: Path | None) -> str:
    return f"; a copy of the old settings is {path}" if path else ""
