"""``scan``: what is not a stage."""

import sys
from pathlib import Path

import typer

from pipeline.artifacts import METRICS, PREDICTIONS, REPORT, STEPS, load_json
from pipeline.params import read_params
from pipeline.progress import say
from pipeline.tracking import tracking_address
from scan_core.errors import ScanError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def check() -> None:
    """Validate params.yaml without running anything."""
    try:
        read_params()
    except ScanError as error:
        say(f"scan: error: {error}")
        sys.exit(1)


@app.command()
def data(
    path: str = typer.Argument(help="A folder, a zip or tar, a .parquet file or folder of them, or a .npy file."),
    sheet: str = typer.Option(".scan/contact_sheet.png", help="Where to put a picture of some of the images."),
) -> None:
    """Look at a source without running anything: counts, sizes, rejects, copies, and settings that would fit."""
    from pipeline import look
    from pipeline.stage import worker_count

    try:
        found = look.look(path, read_params().data, Path.cwd(), Path(".scan"), worker_count())
        look.show(found, Path(sheet), look.contact_sheet(found, Path(sheet)))
    except ScanError as error:
        say(f"scan: error: {error}")
        sys.exit(1)


@app.command()
def show() -> None:
    """Print the results of the last run and where its files are."""
    from rich.console import Console
    from rich.table import Table

    try:
        metrics = load_json(METRICS)
        protocol = read_params().data.protocol
    except ScanError as error:
        say(f"scan: error: {error}")
        sys.exit(1)
    reported, title = ("train", "All images") if protocol == "all" else ("val", "Validation images")
    table = Table(title=f"{title}, in %", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    measures = [name for name in ("acc", "nmi", "ari") if name in metrics[reported]["selflabel"]]
    for name in [measure.upper() for measure in measures] + ["clusters in use", "confident"]:
        table.add_column(name, justify="right")
    for step, label in STEPS.items():
        scores = metrics[reported][step]
        cells = [f"{100 * scores[name]:.1f}" for name in measures] + [f"{scores['clusters_alive']:g}"]
        share = scores.get("confident_share")
        table.add_row(label, *cells, "" if share is None else f"{100 * share:.0f}")
    Console().print(table)
    print(f"\nreport       {REPORT}\npredictions  {PREDICTIONS}\nmetrics      {METRICS}\nall runs     make ui")


@app.command()
def send() -> None:
    """Send MLflow the records that it could not take when they were made."""
    from pipeline.delivery import send_waiting

    try:
        sent = send_waiting(Path.cwd())
    except Exception as error:  # noqa: BLE001 (mlflow and its HTTP client raise many kinds)
        say(f"scan: error: {tracking_address(Path.cwd())} does not take them: {' '.join(str(error).split())[:300]}")
        sys.exit(1)
    say(f"sent the records of {sent} stage{'' if sent == 1 else 's'}")


@app.command()
def ui(port: int = typer.Option(5000, help="Where the page is served, on this machine alone.")) -> None:
    """Open the MLflow UI on the database that the stages write."""
    import os

    address = tracking_address(Path.cwd())
    if address.startswith(("http:", "https:")):
        say(f"the runs are on the server that MLFLOW_TRACKING_URI names: {address}")
        return
    say(f"MLflow on http://127.0.0.1:{port}, reading {address}; Ctrl-C ends it")
    os.execv(sys.executable, [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address,
        "--host", "127.0.0.1", "--port", str(port),
    ])  # fmt: skip


if __name__ == "__main__":
    app()
