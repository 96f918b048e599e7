"""``scan``: every command that is not a stage. Each error is printed as one line."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from pipeline.artifacts import CANDIDATES, METRICS, PREDICTIONS, REPORT, load_csv, load_json, require, step_titles
from pipeline.cli_run import GROUPS, LABELS, PHOTOS, TRAIN, compare_numbers, look, numbers_of, run_source, show_groups
from pipeline.cli_weights import weights
from pipeline.fingerprint import DVC_FILE
from pipeline.params import read_params
from pipeline.progress import say
from pipeline.tracking.spool import tracking_address, without_passwords
from scan_core.errors import ScanError, exhausted


class Commands(typer.core.TyperGroup):
    """Commands whose expected errors end in one line and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Its error is printed without passwords: addresses in it may hold some."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # of scan show | head: typer ends quietly
            raise
        except Exception as error:
            words = exhausted(error)
            if not words and not isinstance(error, ScanError | OSError):
                raise
            say(f"scan: error: {without_passwords(' '.join((words or str(error)).split()))}")
            sys.exit(1)


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(weights, name="weights")
app.command()(look)

# What ``show`` calls the measures of metrics.json.
SHOWN = {"acc": "ACC", "acc_many_to_one": "many to one", "nmi": "NMI", "ami": "AMI", "ari": "ARI"}
SHOWN_QUALITY = {
    "neighbor_agreement": ("neighbor agreement", ".1%"),
    "linear_predictability": ("linear predictability", ".1%"),
    "heads_ari": ("head agreement (ARI)", ".2f"),
    "silhouette": ("silhouette", ".2f"),
}
SHOWN_PROBES = {"knn_acc": "nearest neighbors", "linear_probe_acc": "linear probe"}


@app.command()
def check() -> None:
    """Validate params.yaml without running anything."""
    read_params()


@app.command()
def use(
    name: str | None = typer.Argument(None, help="A preset; without one, the presets are listed."),
    method: str | None = typer.Option(None, help="Change pretext.method alone; its new settings get their defaults."),
) -> None:
    """Write a preset, or another pretext.method, to params.yaml; a copy of your own settings is kept."""
    from pipeline import presets

    if name and method:
        raise ScanError(f"scan use got {name} and --method {method}; use the preset first, then --method")
    if method:
        kept = presets.change_params({"pretext": {"method": method}}, f"pretext.method is {method}, by scan use")
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


@app.command()
def params(
    name: str | None = typer.Argument(None, help="A preset's name; by default params.yaml is printed."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON with sorted keys."),
) -> None:
    """Print the validated settings of params.yaml or of a preset."""
    from pipeline import presets

    settings = presets.read_preset(presets.find_preset(name)) if name else read_params()
    values = settings.model_dump(mode="json")
    if as_json:
        print(json.dumps(values, indent=2, sort_keys=True))
    else:
        print(presets.as_yaml(values), end="")


@app.command()
def show() -> None:
    """Print the results of the last run and where its files are."""
    import pyarrow.parquet as pq

    metrics = load_json(METRICS)
    # Not data.protocol: params.yaml may have been edited since. Where all images are reported on, all are train's.
    splits = pq.read_table(require(PREDICTIONS), columns=["split"])["split"].unique().to_pylist()
    reported, title = ("val", "Validation images") if "val" in splits else ("train", "All images")
    if "acc" in metrics[reported]["selflabel"]:
        show_scores(metrics[reported], title)
    else:
        show_groups()
    quality = metrics["val"]["quality"] | metrics[reported]["quality"]  # the heads are compared on val alone
    found = [f"{name} {quality[key]:{form}}" for key, (name, form) in SHOWN_QUALITY.items() if key in quality]
    if found:
        print("\nwithout labels: " + ", ".join(found))
    probes = metrics["val"].get("uses_labels", {})
    if probes:
        found = [f"{name} {probes[measure]:.1%}" for measure, name in SHOWN_PROBES.items()]
        print("labels used, on embeddings: " + ", ".join(found))
    print(f"\nreport       {REPORT}\npredictions  {PREDICTIONS}\nmetrics      {METRICS}\nall runs     make ui")


def show_scores(scores: dict[str, Any], title: str) -> None:
    """Prints the scores of each step against labels."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}, in %", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    measures = [name for name in SHOWN if name in scores["selflabel"]]
    for name in [SHOWN[measure] for measure in measures] + ["clusters in use", "confident"]:
        table.add_column(name, justify="right", no_wrap=name != "clusters in use")  # 80 characters in all
    for step, label in step_titles(load_csv(CANDIDATES)).items():
        of_step = scores[step]
        cells = [f"{100 * of_step[name]:.1f}" if name in of_step else "" for name in measures]
        share = of_step.get("confident_share")
        table.add_row(label, *cells, f"{of_step['clusters_used']:g}", "" if share is None else f"{100 * share:.0f}")
    Console().print(table)


@app.command()
def run(
    photos: str = typer.Argument(help=PHOTOS),
    groups: str | None = typer.Option(None, help=GROUPS),
    labels: str = typer.Option("none", help=LABELS),
    train: bool = typer.Option(False, "--train", help=TRAIN),
) -> None:
    """Group the images of a source: look at it, plan, set params.yaml, run the pipeline, show the groups."""
    numbers = numbers_of(groups)
    if len(numbers) > 1:
        compare_numbers(photos, [number for number in numbers if number != "auto"])
        return
    run_source(photos, numbers[0] if numbers else None, labels, train)
    show()


@app.command()
def send() -> None:
    """Deliver the records that MLflow could not take while the stages ran."""
    from pipeline.tracking.delivery import send_waiting

    sent = send_waiting(Path.cwd())
    say(f"sent the records of {sent} stage{'' if sent == 1 else 's'}")


@app.command()
def ui(port: int = typer.Option(5000, help="The port; only this machine can open the page.")) -> None:
    """Open the MLflow UI on the database that the stages write."""
    import os

    address = tracking_address(Path.cwd())
    if address.startswith(("http:", "https:")):
        say(f"the runs are on the server that MLFLOW_TRACKING_URI names: {without_passwords(address)}")
        return
    if not DVC_FILE.exists():  # MLflow would create an empty database here
        raise ScanError(f"{DVC_FILE} is missing from {Path.cwd()}; run from the project's folder")
    say(f"MLflow on http://127.0.0.1:{port}, reading {without_passwords(address)}; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # The address is passed in the environment because everyone on the machine can list a command's arguments.
    os.execve(sys.executable, command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": address})


if __name__ == "__main__":
    app()
