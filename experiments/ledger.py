"""Results as Markdown and pictures: one block of ``docs/ledger.md`` an experiment, between two comments."""

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
    "neighbor_consistency": "neighbours in one cluster",
    "silhouette": "silhouette",
    "linear_predictability": "linear predictability",
}


def write_ledger(
    experiments: dict[str, Experiment],
    runs: dict[str, list[list[Run]]],
    found: dict[Run, Result],
    page: Path | None,
    whole: bool = False,
) -> str:
    """The blocks of ``experiments`` as text; with ``page`` they take their places there, pictures beside it.

    Of the ``whole`` ledger, how well quality without labels follows ACC is one more.
    """
    pictures = page.parent / "ledger" if page else None
    blocks = {}
    for name, experiment in experiments.items():
        pairs = zip(experiment.rows, runs[name], strict=True)
        values = [[row.value(found[run]) for run in seeds] for row, seeds in pairs]
        lines = [
            f"### {experiment.title}",
            "",
            *_table(experiment, values, runs[name][0][0].preset),
            "",
            _source(name, runs[name], found),
        ]
        if experiment.axis and pictures:
            if experiment.rows[0].curve:
                lines_of = zip(experiment.rows, runs[name], strict=True)
                curves = [[row.curve(found[run]) for run in seeds] for row, seeds in lines_of if row.curve]
                picture = draw_lines(pictures / f"{name}.png", experiment, curves)
            else:
                picture = draw_points(pictures / f"{name}.png", experiment, values, runs[name][0][0].preset)
            lines += ["", f"![{experiment.title}](ledger/{picture.name})"]
        if name == "table4":
            lines += ["", *confusion_by_superclass([found[run] for run in runs[name][-1]])]
        blocks[name] = "\n".join(lines)
    if whole:
        preset = next(iter(runs.values()))[0][0].preset
        # A setting may stand in several tables, spelled otherwise each time: it counts once. Where other neighbours are
        # mined, how many of them are together is another measure.
        smoothing = Run(preset, 0).params().neighbors.smoothing
        same = {
            run.params().model_dump_json(): (run, result)
            for run, result in found.items()
            if run.preset == preset and not run.labelled and run.params().neighbors.smoothing == smoothing
        }
        blocks["quality"] = "\n".join(_quality(preset, dict(same.values()), pictures))
    if page:
        _put(page, blocks)
    return "\n\n".join(blocks.values())


def _table(experiment: Experiment, values: list[list[dict[str, float]]], preset: str) -> Iterator[str]:
    measures = list(dict.fromkeys(name for row in values for each in row for name in each))
    head, published = experiment.published(preset)
    heads = [name.upper() if name in ("acc", "nmi", "ari") else name for name in measures]
    first = "" if experiment.rows[0].curve else experiment.axis
    yield f"| {' | '.join([first, *heads, *[head] * bool(head)])} |"
    yield "| --- |" + " --- |" * (len(measures) + bool(head))
    for row, number, found in zip(experiment.rows, published, values, strict=True):
        cells = [summary([each[name] for each in found if name in each]) for name in measures]
        yield f"| {' | '.join([row.label, *cells, *[number or '–'] * bool(head)])} |"


def summary(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _source(name: str, runs: list[list[Run]], found: dict[Run, Result]) -> str:
    """Where a table's numbers come from."""
    seeds = ", ".join(str(run.seed) for run in runs[0])
    return (
        f"`python -m experiments {name}`; preset `{runs[0][0].preset}`, seeds {seeds}, each with its own split; "
        f"validation images, percent, mean ± standard deviation. {_made(found[run] for row in runs for run in row)}"
    )


def _made(found: Iterable[Result]) -> str:
    """When and where; what the results differ in, a date say, is named once each, oldest first."""
    made = sorted((result.machine for result in found), key=lambda each: each.get("date", ""))
    said = {
        key: ", ".join(dict.fromkeys(each.get(key, "unknown") for each in made))
        for key in ("date", "commit", "processor", "cores", "packages")
    }
    return "{date}, commit {commit}, {processor}, {cores} cores; {packages}.".format(**said)


def _quality(preset: str, found: dict[Run, Result], pictures: Path | None) -> Iterator[str]:
    """How well each measure without labels follows ACC, over all runs of a preset."""
    from scipy.stats import spearmanr
    from sklearn.metrics import adjusted_rand_score

    yield "### Quality without labels, beside ACC"
    yield ""
    yield f"| over {len(found)} runs of `{preset}` | rank correlation with ACC (Spearman) |"
    yield "| --- | --- |"
    points = {}
    for key, label in QUALITY.items():
        pairs = [
            (result.metrics["val"]["quality"][key], result.metrics["val"]["selflabel"]["acc"])
            for result in found.values() if key in result.metrics["val"].get("quality", {})
        ]  # fmt: skip
        if len(pairs) > 2:
            points[label] = np.array(pairs)
            yield f"| {label} | {spearmanr(*zip(*pairs, strict=True)).statistic:.2f} |"
    by_changes: dict[tuple[str, ...], list[Run]] = {}
    for run in found:
        by_changes.setdefault(tuple(map(repr, run.changes)), []).append(run)
    agreement = []
    for runs in by_changes.values():
        aris = [adjusted_rand_score(found[a].clusters, found[b].clusters) for a, b in combinations(runs, 2)]
        if aris:
            accuracy = statistics.mean(found[run].metrics["val"]["selflabel"]["acc"] for run in runs)
            agreement.append((statistics.mean(aris), accuracy))
    if len(agreement) > 2:
        points["agreement between seeds (ARI)"] = np.array(agreement)
        rho = spearmanr(*zip(*agreement, strict=True)).statistic
        yield f"| agreement between seeds (ARI; {len(agreement)} settings, their mean ACC) | {rho:.2f} |"
    yield ""
    yield f"`python -m experiments all`; validation images. {_made(found.values())}"
    if pictures:
        picture = draw_quality(pictures / "quality.png", points)
        yield ""
        yield f"![Quality without labels, beside ACC](ledger/{picture.name})"


def _put(page: Path, blocks: dict[str, str]) -> None:
    """Replaces what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ScanError(f"{page} has no place for {name}; it needs the lines {first} and {last}")
        before, rest = text.split(first)
        text = f"{before}{first}\n\n{block}\n\n{last}{rest.split(last)[1]}"
    page.write_text(text, encoding="utf-8")
