"""The default data set over seeds: ``python -m bench.digits`` runs the pipeline for seeds 0-4, each with
``data.split_seed`` equal to it, as DVC experiments of their own, and writes bench/results/digits.{json,md}.

Five full runs, about three minutes each on two cores. The workspace and its params.yaml stay as they are.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dvc.api

from bench.machine import Memory, machine
from pipeline.artifacts import STEPS

RESULTS = Path("bench/results")


def measured(command: list[str]) -> tuple[str, float, float]:
    """Runs a command; its output, seconds and peak memory in GiB. Raises where it fails."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    memory = Memory(process.pid)
    output, _ = process.communicate()
    samples = memory.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return output, time.monotonic() - started, max(size for _, size in samples) / 2**30


def run_seed(seed: int, split_seed: int) -> dict[str, Any]:
    """One experiment in a copy of the project: its metrics, seconds and peak memory."""
    name = f"digits-{split_seed}-{seed}-{int(time.time())}"
    settings = ["-S", f"seed={seed}", "-S", f"data.split_seed={split_seed}"]
    _, seconds, memory = measured(["dvc", "exp", "run", "--temp", "--force", "--name", name, *settings])
    metrics = json.loads(dvc.api.read("reports/metrics.json", rev=name))
    return {"seed": seed, "split_seed": split_seed, "seconds": seconds, "gib": memory, "metrics": metrics}


def summary(values: list[float]) -> str:
    """Mean ± standard deviation and each value, in percent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def write(runs: list[dict[str, Any]], command: str) -> str:
    """Both result files; returns the Markdown."""
    here = machine()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "digits.json").write_text(
        json.dumps({"machine": here, "command": command, "runs": runs}, indent=1) + "\n"
    )
    pairs = ", ".join(f"{run['seed']}/{run['split_seed']}" for run in runs)
    lines = [
        "# Digits",
        "",
        f"`{command}`; seed/split seed {pairs}; validation images, percent: mean ± standard deviation (each run).",
        f"{here['date']}, {here['processor']}, {here['cores']} cores, {here['memory']}; Python {here['python']}, "
        f"{here['packages']}.",
        "",
        "| | ACC | NMI | ARI |",
        "| --- | --- | --- | --- |",
    ]
    for step, label in STEPS.items():
        cells = [summary([run["metrics"]["val"][step][measure] for run in runs]) for measure in ("acc", "nmi", "ari")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    purity = summary([run["metrics"]["val"]["neighbors"]["purity_20"] for run in runs])
    train_purity = summary([run["metrics"]["train"]["neighbors"]["purity_20"] for run in runs])
    seconds, memory = [run["seconds"] for run in runs], [run["gib"] for run in runs]
    lines += [
        "",
        f"- purity at 20 neighbours, train: {train_purity}; val: {purity}",
        f"- seconds for a run, all seven stages, DVC and MLflow included: {statistics.mean(seconds):.0f} "
        f"({', '.join(f'{value:.0f}' for value in seconds)})",
        f"- peak memory of all processes together, GiB: {max(memory):.2f}",
        "",
    ]
    text = "\n".join(lines)
    (RESULTS / "digits.md").write_text(text)
    return text


def main() -> None:
    """Parses the seeds, runs them, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    runs = []
    for seed in arguments.seeds:
        runs.append(run_seed(seed, seed))
        accuracy = runs[-1]["metrics"]["val"]["selflabel"]["acc"]
        print(f"seed {seed}: ACC {accuracy:.4f} in {runs[-1]['seconds']:.0f} s", flush=True)
    command = "python -m bench.digits" + ("" if arguments.seeds == [0, 1, 2, 3, 4] else f" --seeds {arguments.seeds}")
    print("\n" + write(runs, command))


if __name__ == "__main__":
    main()
