"""Confusion by superclass (the paper's Figure 10): classes named by WordNet ids, grouped by their common hypernyms."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.runs import Result

GROUPS = 16  # at least so many, if the classes allow it


def hypernyms() -> dict[str, tuple[str, str]]:
    """WordNet id → its first hypernym's id and its own name, for ImageNet's classes and all above them."""
    lines = Path(__file__).with_name("wordnet.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["id"]: (row["parent"], row["name"]) for row in rows}


def superclasses(classes: list[str], groups: int = GROUPS) -> dict[str, str]:
    """WordNet id → name of its superclass: the tree is cut from above into ``groups`` or more, always its fullest part.

    A part that falls into single classes only is left whole.
    """
    tree = hypernyms()
    paths = {each: _path(each, tree) for each in classes}
    parts = {"n00001740": list(classes)}  # entity, the root
    closed: set[str] = set()
    while len(parts) < groups and len(closed) < len(parts):
        fullest = max((part for part in parts if part not in closed), key=lambda part: (len(parts[part]), part))
        below: dict[str, list[str]] = {}
        for each in parts[fullest]:
            path = paths[each]
            at = path.index(fullest)
            below.setdefault(path[min(at + 1, len(path) - 1)], []).append(each)
        if all(len(members) == 1 for members in below.values()) or list(below) == [fullest]:
            closed.add(fullest)
        else:
            del parts[fullest]
            parts |= below
    return {each: tree[part][1] for part, members in parts.items() for each in members}


def confusion_by_superclass(results: list[Result]) -> Iterator[str]:
    """Markdown: the superclasses' confusion, summed over results, and the share of errors that stay inside one."""
    pairs = [(row["actual"], row["predicted"]) for result in results for row in result.curves["confusion"]]
    classes = sorted({actual for actual, _ in pairs})
    if not set(classes) <= hypernyms().keys():
        return
    group = superclasses(classes)
    known = [(actual, predicted) for actual, predicted in pairs if predicted in group]
    names = sorted(set(group.values()))
    counts = np.zeros((len(names), len(names)))
    for actual, predicted in known:
        counts[names.index(group[actual]), names.index(group[predicted])] += 1
    wrong = [(actual, predicted) for actual, predicted in known if actual != predicted]
    inside = sum(group[actual] == group[predicted] for actual, predicted in wrong)
    chance = sum(group[a] == group[b] for a in classes for b in classes if a != b) / (len(classes) * (len(classes) - 1))
    yield f"**Confusion by superclass** (Figure 10): {100 * inside / max(len(wrong), 1):.0f} % of the images in a wrong"
    yield f"class are in one of their own superclass; at random it would be {100 * chance:.0f} %."
    yield ""
    yield f"| % of the class's images in | {' | '.join(names)} |"
    yield "| --- |" + " ---: |" * len(names)
    for name, row in zip(names, counts / counts.sum(axis=1, keepdims=True).clip(min=1), strict=True):
        size = sum(each == name for each in group.values())
        yield f"| {name} ({size}) | {' | '.join(f'{100 * value:.0f}' for value in row)} |"


def _path(each: str, tree: dict[str, tuple[str, str]]) -> list[str]:
    """From the root down to the class."""
    path = [each]
    while tree[path[-1]][0]:
        path.append(tree[path[-1]][0])
    return path[::-1]
