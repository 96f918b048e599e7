"""The report's figures as rows of a measure and its value: what was run, scores by step, and what needs no labels."""

import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import step_titles
from pipeline.params import Params
from pipeline.report.tables import (
    PROBES,
    SHORT_TITLES,
    SPLIT_TITLES,
    candidate_table,
    quality_table,
    reported_split,
    score_table,
)

TRUST = {"purity": "expected purity", "agreement": "neighbors in it", "stability": "found again"}
Rows = list[list[str]]  # of a measure and its value


def score_rows(
    params: Params, stats: dict[str, Any], metrics: dict[str, dict[str, Any]], kept: dict[str, str],
    verdict: dict[str, Any], plots: dict[str, list[dict[str, Any]]], numbers: tuple[int, ...],
) -> Rows:  # fmt: skip
    """All rows, in the order in which they are read.

    ``stats`` are those of the image store, ``kept`` is the choice of self-labeling, ``plots`` are the rows of each
    plot, ``numbers`` (C,) are those of the groups that the clusters are.
    """
    protocol = params.data.protocol
    splits = ("train", "val") if reported_split(protocol) == "train" else ("val", "train")
    short = [SHORT_TITLES[protocol][split] for split in splits]
    tested = {"split": "validation images", "all": "the tenth"}[protocol]
    rows = _of_run(params, stats, kept)
    titles = step_titles(plots["candidates"])
    for split in splits:
        columns, steps = score_table(metrics[split], titles)
        rows += [_row(f"{SPLIT_TITLES[protocol][split]}, in %: {step}", columns, cells) for step, cells in steps]
    rows.append([_about_scores(params, metrics[splits[0]], plots), ""])
    for name, meaning, (first, *others) in quality_table(metrics, splits, plots["sizes"]):
        rows.append([f"{name} ({_joined([short[1], 'chance'], others)}). {meaning}", first])
    rows += [
        [f"{PROBES[name]}, fitted with labels, on {tested}: no result of clustering", f"{100 * value:.1f} %"]
        for name, value in metrics["val"].get("uses_labels", {}).items()
    ]
    methods = candidate_table(plots["candidates"])
    for name, is_kept, cells in methods:
        columns = ["agreement", "ACC"][: len(cells)]
        rows.append(_row(f"Method {name}{', which was kept' * is_kept}", columns, [f"{cell} %" for cell in cells]))
    if methods:
        rows.append(["Agreement is the share of images in the same group of another method; it decides, no label.", ""])
    return rows + _of_groups(verdict, numbers)


def _row(title: str, columns: list[str], cells: list[str]) -> list[str]:
    """The first of the columns, and the others beside its title: a value has little room on a phone."""
    others = _joined(columns[1:], cells[1:])
    return [f"{title}: {columns[0]}" + (f" ({others})" if others else ""), cells[0]]


def _joined(columns: list[str], cells: list[str]) -> str:
    return " · ".join(f"{column} {cell}" for column, cell in zip(columns, cells, strict=True) if cell != "–")


def _of_run(params: Params, stats: dict[str, Any], kept: dict[str, str]) -> Rows:
    rows = [[f"Images of {stats['view']}×{stats['view']} pixels", f"{stats['count']:,}"]]
    if params.embed.spaces:
        named = [_name(each.weights) + (f" at {each.side} pixels" if each.side else "") for each in params.embed.spaces]
        rows.append([f"Features of {' and '.join(named)}, which others have trained, maybe with labels", ""])
    else:
        network = f"Network: {params.backbone.name}, width {params.backbone.width}."
        said = f"{network} The model is from {kept['kept']} self-labeling, chosen without labels"
        rows.append([said + (f": {kept['reason']}" if kept["reason"] else ""), ""])
    return [*rows, ["Seed", str(params.seed)], ["Seed of the split", str(params.data.split_seed)]]


def _about_scores(params: Params, reported: dict[str, Any], plots: dict[str, list[dict[str, Any]]]) -> str:
    """What the scores mean, as far as there are any."""
    final, clusters = reported["selflabel"], len(plots["sizes"])
    classes = len({row["actual"] for row in plots["confusion"]})
    said = [f"An image is confident if its most probable group has a probability above {params.selflabel.threshold}."]
    if reported["kmeans_pixels"]:
        said.append(f"Of k-means: mean ± deviation over {params.evaluate.kmeans_runs} starts.")
    if "acc" in final:
        said.append("ACC: accuracy after each class is matched to one group, on the images that are scored.")
        if "acc_many_to_one" in final:
            said.append(
                f"With {clusters} groups for {classes} classes, images of unmatched groups count as wrong. Many to one "
                "matches each group to its most frequent class; it grows with the number of groups."
            )
        elif classes > clusters:
            said.append(f"With {clusters} groups for {classes} classes, images of unmatched classes count as wrong.")
        if "top5" in final:
            said.append("Top 5: the class is matched to one of the image's five most probable groups.")
        said.append("AMI is NMI corrected for chance.")
    return " ".join(said)


def _of_groups(verdict: dict[str, Any], numbers: tuple[int, ...]) -> Rows:
    about = (
        "Strong groups are found again in other clusterings of half of the images, and their images' neighbors are in "
        "them. Weak ones look mixed. None: no purer than chance, or too few images. The purity is expected by a model "
        "fitted on other sets with known classes; no label was used here."
    )
    rows = []
    for number, group in sorted(zip(numbers, verdict["groups"], strict=True), key=lambda pair: pair[0]):
        found = {title: f"{100 * group['figures'][name]:.0f} %" for name, title in TRUST.items() if group["figures"]}
        title = f"Group {number}, {group['word']}"
        rows.append(_row(title, [*found], [*found.values()]) if found else [f"{title}: too few images", ""])
    return [[about, ""], *rows]


def settings_text(params: Params) -> str:
    """params.yaml without its comments; of a path that begins at the root of this computer, the last part."""

    def lines(values: dict[str, Any], indent: str) -> list[str]:
        found = []
        for key, value in values.items():
            if isinstance(value, dict):
                found += [f"{indent}{key}:", *lines(value, f"{indent}  ")]
            else:
                found.append(f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
        return found

    return "\n".join(lines(_without_places(params.model_dump(mode="json")), "")) + "\n"


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return _name(value) if isinstance(value, str) else value


def _name(value: str) -> str:
    """A name as it is; of a path that begins at the root or at a person's folder, the last part."""
    return f"…/{Path(value).name}" if value.startswith(("/", "~")) or Path(value).is_absolute() else value
