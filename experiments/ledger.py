"""Results as Markdown and figures: one block of ``docs/ledger.md`` per experiment, between two comments."""

import statistics
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from experiments.figures import draw_lines, draw_points, draw_quality
from experiments.runs import Result, Run
from experiments.superclass import confusion_by_superclass
from experiments.tables import Experiment
from scan_core.errors import ScanError

QUALITY = {
    "heads_ari": "agreement of the heads (ARI)",
    "neighbor_agreement": "neighbor agreement",
    "silhouette": "silhouette",
    "linear_predictability": "linear predictability",
}

Results = dict[Run, Result]
MANY = 10  # seeds


def write_ledger(
    experiments: dict[str, Experiment],
    runs: dict[str, list[list[Run]]],
    results: Results,
    page: Path | None,
    whole: bool = False,
) -> str:
    """The blocks of ``experiments`` as text. If there is a ``page``, it takes them, and figures are drawn next to it.

    ``runs`` has the runs of each experiment by row and seed. The ``whole`` ledger has one more block: how well quality
    without labels follows ACC. Raises ``ScanError`` if the page has no place for a block.
    """
    figures = page.parent / "ledger" if page else None
    blocks = {
        name: "\n".join(_block(name, experiment, runs[name], results, figures))
        for name, experiment in experiments.items()
    }
    if whole:
        preset = next(iter(runs.values()))[0][0].preset
        blocks["quality"] = "\n".join(_quality(preset, comparable(preset, results), figures))
    if page:
        replace_blocks(page, blocks)
    return "\n\n".join(blocks.values())


def _block(
    name: str, experiment: Experiment, runs: list[list[Run]], results: Results, figures: Path | None
) -> Iterator[str]:
    preset = runs[0][0].preset
    rows = list(zip(experiment.rows, runs, strict=True))
    values = [[row.value(results[run]) for run in seeds] for row, seeds in rows]
    yield from [f"### {experiment.title}", ""]
    yield from _table(experiment, values, preset)
    yield from ["", _source(name, runs, results)]
    if experiment.x_label and figures:
        path = figures / f"{name}.png"
        if experiment.rows[0].curve:
            curves = [[row.curve(results[run]) for run in seeds] for row, seeds in rows if row.curve]
            draw_lines(path, experiment, curves)
        else:
            draw_points(path, experiment, values, preset)
        yield from ["", f"![{experiment.title}](ledger/{path.name})"]
    if name == "table4":
        yield ""
        yield from confusion_by_superclass([results[run] for run in runs[-1]])


def comparable(preset: str, results: Results) -> Results:
    """The preset's runs without labels, each setting once: tables may name the same setting in different ways.

    Runs with other ``neighbors.smoothing`` are left out because they measure the agreement of other neighbors.
    """
    smoothing = Run(preset, 0).params().neighbors.smoothing
    by_params = {
        run.params().model_dump_json(): (run, result)
        for run, result in results.items()
        if run.preset == preset and not run.labeled and run.params().neighbors.smoothing == smoothing
    }
    return dict(by_params.values())


def _table(experiment: Experiment, values: list[list[dict[str, float]]], preset: str) -> Iterator[str]:
    measures = list(dict.fromkeys(name for seeds in values for scores in seeds for name in scores))
    heading, published = experiment.published(preset)
    headings = [name.upper() if name in ("acc", "nmi", "ari") else name for name in measures]
    first = "" if experiment.rows[0].curve else experiment.x_label
    yield f"| {' | '.join([first, *headings, *[heading] * bool(heading)])} |"
    yield "| --- |" + " --- |" * (len(measures) + bool(heading))
    for row, number, seeds in zip(experiment.rows, published, values, strict=True):
        cells = [summary([scores[name] for scores in seeds if name in scores]) for name in measures]
        yield f"| {' | '.join([row.label, *cells, *[number or '–'] * bool(heading)])} |"


def summary(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, in percent, and the best of ``MANY`` seeds, as the paper has it."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    best = f", best {100 * max(values):.1f}" if len(values) >= MANY else ""
    return f"{100 * statistics.mean(values):.1f}{spread}{best}"


def _source(name: str, runs: list[list[Run]], results: Results) -> str:
    """Where a table's numbers come from."""
    seeds = ", ".join(str(run.seed) for run in runs[0])
    return (
        f"`python -m experiments {name}`; preset `{runs[0][0].preset}`, seeds {seeds}, each with its own split; "
        f"validation images, percent, mean ± standard deviation. {_made(results[run] for row in runs for run in row)}"
    )


def _made(results: Iterable[Result]) -> str:
    """When and where the results were made. Different dates, commits or machines are all named, oldest first."""
    machines = sorted((result.machine for result in results), key=lambda machine: machine.get("date", ""))
    values = {
        key: ", ".join(dict.fromkeys(machine.get(key, "unknown") for machine in machines))
        for key in ("date", "commit", "processor", "cores", "packages")
    }
    return "{date}, commit {commit}, {processor}, {cores} cores; {packages}.".format(**values)


def _quality(preset: str, results: Results, figures: Path | None) -> Iterator[str]:
    """How well each measure without labels follows ACC, over all runs of a preset."""
    from scipy.stats import spearmanr

    metrics = [result.metrics["val"] for result in results.values()]
    points = {
        label: [(val["quality"][key], _acc(val)) for val in metrics if key in val.get("quality", {})]
        for key, label in QUALITY.items()
    }
    points["agreement between seeds (ARI)"] = agreement = agreement_between_seeds(results)
    points = {label: pairs for label, pairs in points.items() if len(pairs) > 2}
    yield from ["### Quality without labels, and ACC", ""]
    yield f"| over {len(results)} runs of `{preset}` | rank correlation with ACC (Spearman) |"
    yield "| --- | --- |"
    for label, pairs in points.items():
        if pairs is agreement:
            label = f"agreement between seeds (ARI; {len(agreement)} settings, their mean ACC)"
        yield f"| {label} | {spearmanr(*zip(*pairs, strict=True)).statistic:.2f} |"
    yield from ["", f"`python -m experiments all`; validation images. {_made(results.values())}"]
    if figures:
        path = figures / "quality.png"
        draw_quality(path, {label: np.array(pairs) for label, pairs in points.items()})
        yield from ["", f"![Quality without labels, and ACC](ledger/{path.name})"]


def agreement_between_seeds(results: Results) -> list[tuple[float, float]]:
    """(mean ARI between the clusters of two seeds, mean ACC) of each setting with several seeds."""
    from sklearn.metrics import adjusted_rand_score

    by_changes: dict[str, list[Result]] = {}
    for run, result in results.items():
        by_changes.setdefault(repr(run.changes), []).append(result)
    pairs = []
    for seeds in by_changes.values():
        aris = [adjusted_rand_score(one.clusters, other.clusters) for one, other in combinations(seeds, 2)]
        if aris:
            pairs.append((statistics.mean(aris), statistics.mean(_acc(result.metrics["val"]) for result in seeds)))
    return pairs


def _acc(metrics: dict[str, dict[str, float]]) -> float:
    return metrics["selflabel"]["acc"]


def replace_blocks(page: Path, blocks: dict[str, str]) -> None:
    """Replaces what is between ``<!-- name -->`` and ``<!-- /name -->``. Raises ``ScanError`` if one is missing."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ScanError(f"{page} has no place for {name}; it needs the lines {first} and {last}")
        before, rest = text.split(first)
        text = f"{before}{first}\n\n{block}\n\n{last}{rest.split(last)[1]}"
    page.write_text(text, encoding="utf-8")
