"""``python -m bench``: measures this machine's CPU, into bench/results/cpu.md and cpu.json.

Every part runs in its own process. Nothing else should run meanwhile.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import clustering, frozen, mining, predict, prepare, recipes, startup, steps, views
from bench.machine import machine
from bench.timing import Row, measure_alone

RESULTS = Path("bench/results")
PEERS = ".venv/peers"  # where ``make bench`` installs kornia and lightly
SECONDS, ROUNDS = 2.0, 5
FEW_ROUNDS = 3  # if one takes seconds
IMAGES = 50_000  # of a synthetic ImageNet

INTRODUCTION = (
    "`make bench`. The candidates that are compared take turns: in one process, in a new process per turn if memory "
    "matters, or as whole commands. A ratio is the median of the rounds' ratios (lowest to highest). Two were too slow "
    "to repeat: scikit-learn's neighbors, and exact ones of a million. The matrix product is timed after the rounds. "
    "Memory is the peak of the process that is measured, or of the command. Rates differ up to twofold from hour to "
    "hour on a machine that others use, ratios less."
)

PARTS: dict[str, tuple[str, list[tuple[Callable[..., list[Row]], tuple[object, ...]]]]] = {
    "views": ("Augmentation", [(views.measure, (SECONDS, ROUNDS))]),
    "steps": ("Training steps against their ceiling", [
        (steps.compare_with_ceiling, (steps.pretext_step, SECONDS, ROUNDS, "digits", 512)),
        (steps.compare_with_ceiling, (steps.scan_step, SECONDS, ROUNDS, "digits", 128, False)),
        (steps.compare_with_ceiling, (steps.selflabel_step, SECONDS, ROUNDS, "digits", 512)),
        (steps.heads, (SECONDS, ROUNDS)),
        (steps.compare_with_ceiling, (steps.pretext_step, 0.1, FEW_ROUNDS, "resnet18", 512)),
        (steps.compare_with_ceiling, (steps.scan_step, SECONDS, FEW_ROUNDS, "resnet18", 128, False)),
        (steps.compare_with_ceiling, (steps.selflabel_step, SECONDS, FEW_ROUNDS, "resnet18", 256)),
        (steps.compare_with_ceiling, (steps.scan_step, SECONDS, ROUNDS, "resnet18", 512, True)),
    ]),
    "recipes": ("A pretext step against the usual recipes", [(recipes.measure, (512, FEW_ROUNDS))]),
    "embedding": ("Embedding", [
        (steps.compare_with_ceiling, (steps.embedding, SECONDS, ROUNDS, "digits")),
        (steps.compare_with_ceiling, (steps.embedding, SECONDS, FEW_ROUNDS, "resnet18")),
    ]),
    "frozen": ("Frozen networks", [(frozen.measure, (SECONDS, ROUNDS)), (frozen.measure_runs, ())]),
    "predict": ("Groups of other photos", [(predict.measure, (384, 4096, FEW_ROUNDS))]),
    "predict_memory": ("Memory for many photos", [(predict.measure_memory, ((5000, 50_000),))]),
    "clustering": ("Groups from stored embeddings", [
        (clustering.measure, ()), (clustering.measure_million, ()), (clustering.measure_published, ()),
        (clustering.measure_published_temi, ()),
    ]),
    "mining": ("Neighbors", [(mining.measure_exact, ()), (mining.measure_approximate, ())]),
    "prepare": ("Preparing images", [(prepare.measure, (IMAGES, ROUNDS))]),
    "startup": ("Start-up", [(startup.measure, (FEW_ROUNDS,))]),
}  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Markdown. A ratio is the median (lowest to highest of the rounds)."""
    lines = ["| what | per second | compared with | ratio | target | outside the model | memory |", "| " + "--- | " * 7]
    for row in rows:
        ratio = f"{row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})" if row.ratios else ""
        overhead = "" if row.overhead is None else f"{100 * row.overhead:.0f} %"
        memory = f"{row.mib:,.0f} MiB" if row.mib else ""
        what = f"{row.what}: {row.note}" if row.note else row.what
        rate = f"{row.rate:,.0f}" if row.rate >= 10 else f"{row.rate:.2f}"
        lines.append(f"| {what} | {rate} | {row.peer} | {ratio} | {row.target} | {overhead} | {memory} |")
    return lines


def write_results(measured: dict[str, list[Row]], machine: dict[str, str]) -> str:
    """Writes both result files and returns the page. A part that was not measured keeps its old rows and date."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "cpu.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored |= {name: {"machine": machine, "rows": [asdict(row) for row in rows]} for name, rows in measured.items()}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    lines = ["# Benchmarks on the CPU", "", INTRODUCTION]
    for name, (title, _) in PARTS.items():
        if name in stored:
            made = stored[name]["machine"]
            lines += [
                "", f"## {title}", "",
                f"{made['date']}, commit {made.get('commit', 'not noted')}, {made['processor']}, {made['cores']} "
                f"cores, {made['memory']}; Python {made['python']}, {made['packages']}.", "",
                *table([Row(**row) for row in stored[name]["rows"]]),
            ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    (RESULTS / "cpu.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Measures the parts that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them by default")
    names = parser.parse_args().parts or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]} is not a part; allowed: {', '.join(PARTS)}")
    here = machine()
    sys.path.append(PEERS)  # last, because the versions in the lock come first
    for name in names:
        rows: list[Row] = []
        for function, arguments in PARTS[name][1]:
            started = time.monotonic()
            rows += measure_alone(function, *arguments)
            print(f"{name}: {rows[-1].what} ({time.monotonic() - started:.0f} s)", flush=True)
        page = write_results({name: rows}, here)
    print(page)


if __name__ == "__main__":
    main()
