"""``python -m bench``: what is measured on this machine, into bench/results/cpu.md and cpu.json.

Every part runs in a process of its own, with nothing beside it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import mining, prepare, recipes, startup, steps, views
from bench.machine import machine
from bench.timing import Row, alone

RESULTS = Path("bench/results")
PEERS = ".venv/peers"  # where ``make bench`` installs kornia and lightly
SECONDS, SPELLS = 2.0, 5
FEWER = 3  # where one takes seconds
IMAGES = 50_000  # of a synthetic ImageNet

PARTS: dict[str, tuple[str, list[tuple[Callable[..., list[Row]], tuple[object, ...]]]]] = {
    "views": ("Augmentation", [(views.measure, (SECONDS, SPELLS))]),
    "steps": ("Training steps beside their ceiling", [
        (steps.beside, (steps.pretext_step, SECONDS, SPELLS, "digits", 512)),
        (steps.beside, (steps.scan_step, SECONDS, SPELLS, "digits", 128, False)),
        (steps.beside, (steps.selflabel_step, SECONDS, SPELLS, "digits", 512)),
        (steps.heads, (SECONDS, SPELLS)),
        (steps.beside, (steps.pretext_step, 0.1, FEWER, "resnet18", 512)),
        (steps.beside, (steps.scan_step, SECONDS, FEWER, "resnet18", 128, False)),
        (steps.beside, (steps.selflabel_step, SECONDS, FEWER, "resnet18", 256)),
        (steps.beside, (steps.scan_step, SECONDS, SPELLS, "resnet18", 512, True)),
    ]),
    "recipes": ("A pretext step beside the usual recipes", [(recipes.recipes, (512, FEWER))]),
    "embedding": ("Embedding", [
        (steps.beside, (steps.embedding, SECONDS, SPELLS, "digits")),
        (steps.beside, (steps.embedding, SECONDS, FEWER, "resnet18")),
    ]),
    "mining": ("Neighbours", [(mining.exact, ()), (mining.approximate, ())]),
    "prepare": ("Preparing images", [(prepare.measure, (IMAGES, SPELLS))]),
    "startup": ("Start-up", [(startup.measure, (FEWER,))]),
}  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Markdown; ratios are median (lowest to highest of the spells)."""
    lines = ["| what | a second | beside | ratio | bar | outside the model | memory |", "| " + "--- | " * 7]
    for row in rows:
        ratio = f"{row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})" if row.ratios else ""
        outside = "" if row.outside is None else f"{100 * row.outside:.0f} %"
        memory = f"{row.mib:,.0f} MiB" if row.mib else ""
        what = f"{row.what}: {row.note}" if row.note else row.what
        rate = f"{row.rate:,.0f}" if row.rate >= 10 else f"{row.rate:.2f}"
        lines.append(f"| {what} | {rate} | {row.peer} | {ratio} | {row.bar} | {outside} | {memory} |")
    return lines


def write(found: dict[str, list[Row]], here: dict[str, str]) -> str:
    """Both result files: parts that were not measured now keep what they had, with their date. Returns the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "cpu.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored |= {name: {"machine": here, "rows": [asdict(row) for row in rows]} for name, rows in found.items()}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Benchmarks on the CPU", "",
        "`make bench`. Sides that are compared take turns: in one process, each turn in a new one where memory "
        "matters, or as whole commands; a ratio is the median of the turns' ratios (lowest to highest). Two were too "
        "slow to repeat: scikit-learn's neighbours, and exact ones of a million. The matrix product is timed after "
        "the turns. Memory is the peak of the process that is measured, or of the command. Rates differ up "
        "to twofold from hour to hour on a machine that others use, ratios less.",
    ]  # fmt: skip
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
    """Measures the parts that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them by default")
    chosen = parser.parse_args().parts or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]} is no part; allowed: {', '.join(PARTS)}")
    here = machine()
    sys.path.append(PEERS)  # last: what the lock has comes first
    for name in chosen:
        rows: list[Row] = []
        for function, arguments in PARTS[name][1]:
            started = time.monotonic()
            rows += alone(function, *arguments)
            print(f"{name}: {rows[-1].what} ({time.monotonic() - started:.0f} s)", flush=True)
        page = write({name: rows}, here)
    print(page)


if __name__ == "__main__":
    main()
