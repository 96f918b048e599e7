"""``python -m experiments table2 neighbors``: the paper's tables and figures, as DVC experiments over seeds."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from experiments.ledger import write_ledger
from experiments.runs import results, send
from experiments.tables import EXPERIMENTS, Experiment
from pipeline.presets import find_preset
from pipeline.progress import clock, say
from scan_core.errors import ScanError

PAGE = Path("docs/ledger.md")
SEEDS = (0, 1, 2, 3, 4)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(help=f"{', '.join(EXPERIMENTS)}; all: the whole ledger.")],
    preset: Annotated[str, typer.Option(help="Run it on another preset than its own.")] = "",
    seed: Annotated[list[int] | None, typer.Option(min=0, help="May be given several times; else 0 to 4.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; the cores are shared among them.")] = 2,
    to_mlflow: Annotated[bool, typer.Option(help="Deliver every stage's record to MLflow at the end.")] = False,
) -> None:
    """Run tables and figures over seeds and print them; docs/ledger.md takes those of all seeds."""
    try:
        wanted, seeds = choose(names), tuple(seed or SEEDS)
        preset = find_preset(preset).stem if preset else ""
        started = time.monotonic()
        runs = {
            name: [[row.run(preset or table.preset, seed) for seed in seeds] for row in table.rows]
            for name, table in wanted.items()
        }
        found = results((run for rows in runs.values() for row in rows for run in row), jobs, say)
        say(f"{len(found)} runs; this call took {clock(time.monotonic() - started)}")
        page = PAGE if not preset and seeds == SEEDS else None
        print(write_ledger(wanted, runs, found, page, list(wanted) == list(EXPERIMENTS)))
        if to_mlflow:
            send(say)
    except ScanError as error:
        say(f"experiments: error: {error}")
        sys.exit(1)


def choose(names: list[str]) -> dict[str, Experiment]:
    """The experiments of these names. Raises ``ScanError`` for one there is not."""
    unknown = [name for name in names if name not in EXPERIMENTS and name != "all"]
    if unknown:
        raise ScanError(f"{unknown[0]} is no experiment; allowed: all, {', '.join(EXPERIMENTS)}")
    return dict(EXPERIMENTS) if "all" in names else {name: EXPERIMENTS[name] for name in names}


if __name__ == "__main__":
    app()
