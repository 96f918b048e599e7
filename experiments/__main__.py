"""``python -m experiments table2 neighbors``: the paper's tables and figures, as DVC experiments over seeds."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.frozen import FROZEN_EXPERIMENTS
from experiments.ledger import write_ledger
from experiments.runs import Run, deliver_to_mlflow, run_all
from experiments.tables import EXPERIMENTS as PAPER
from experiments.tables import Experiment
from pipeline.presets import find_preset
from pipeline.progress import clock, say
from scan_core.errors import ScanError

PAGE = Path("docs/ledger.md")
EXPERIMENTS = PAPER | FROZEN_EXPERIMENTS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(help=f"{', '.join(EXPERIMENTS)}; all: the whole ledger.")],
    preset: Annotated[str, typer.Option(help="Replaces the preset of each experiment.")] = "",
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="May be repeated; those of the ledger by default.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, which share the cores.")] = 2,
    to_mlflow: Annotated[bool, typer.Option(help="Delivers the records of all stages to MLflow at the end.")] = False,
) -> None:
    """Runs tables and figures over seeds and prints them. With the ledger's seeds, docs/ledger.md takes them, too."""
    try:
        experiments = select_experiments(names)
        preset = find_preset(preset).stem if preset else ""
        if preset and (method := Run(preset, 0).params().cluster.method) != "scan":
            raise ScanError(f"--preset is {preset}, with cluster.method {method}; the paper's experiments need scan")
        started = time.monotonic()
        runs = {
            name: [
                [row.run(preset or experiment.preset, each) for each in seed or experiment.seeds]
                for row in experiment.rows
            ]
            for name, experiment in experiments.items()
        }
        results = run_all((run for rows in runs.values() for row in rows for run in row), jobs, say)
        say(f"{len(results)} runs; this call took {clock(time.monotonic() - started)}")
        page = None if preset or seed else PAGE
        print(write_ledger(experiments, runs, results, page, list(experiments) == list(EXPERIMENTS)))
        if to_mlflow:
            deliver_to_mlflow(say)
    except ScanError as error:
        say(f"experiments: error: {error}")
        sys.exit(1)


def select_experiments(names: list[str]) -> dict[str, Experiment]:
    """The experiments of these names. Raises ``ScanError`` for an unknown name."""
    unknown = [name for name in names if name not in EXPERIMENTS and name != "all"]
    if unknown:
        raise ScanError(f"{unknown[0]} is not an experiment; allowed: all, {', '.join(EXPERIMENTS)}")
    return dict(EXPERIMENTS) if "all" in names else {name: EXPERIMENTS[name] for name in names}


if __name__ == "__main__":
    app()
