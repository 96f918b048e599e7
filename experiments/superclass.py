"""Confusion by superclass (the paper's Figure 10): classes with WordNet ids as names, grouped by common hypernyms."""

from collections.abc import Iterator

import numpy as np

from experiments.runs import Result
from scan_core.weights.words import hypernyms

GROUPS = 16  # the least number of superclasses, if the classes allow it


def superclasses(classes: list[str], groups: int = GROUPS) -> dict[str, str]:
    """WordNet id → name of its superclass.

    The tree is cut from the root down until it has ``groups`` parts or more. The part with most classes is cut next,
    unless only single classes would be left of it.
    """
    tree = hypernyms()
    paths = {wordnet_id: _path(wordnet_id, tree) for wordnet_id in classes}
    parts = {"n00001740": list(classes)}  # entity, the root
    closed: set[str] = set()
    while len(parts) < groups and len(closed) < len(parts):
        fullest = max((part for part in parts if part not in closed), key=lambda part: (len(parts[part]), part))
        below: dict[str, list[str]] = {}
        for wordnet_id in parts[fullest]:
            path = paths[wordnet_id]
            child = min(path.index(fullest) + 1, len(path) - 1)
            below.setdefault(path[child], []).append(wordnet_id)
        if all(len(members) == 1 for members in below.values()) or list(below) == [fullest]:
            closed.add(fullest)
        else:
            del parts[fullest]
            parts |= below
    return {wordnet_id: tree[part][1] for part, members in parts.items() for wordnet_id in members}


def confusion_by_superclass(results: list[Result]) -> Iterator[str]:
    """Markdown: the confusion of superclasses, summed over results, and the share of errors inside one superclass."""
    pairs = [(row["actual"], row["predicted"]) for result in results for row in result.curves["confusion"]]
    classes = sorted({actual for actual, _ in pairs})
    if not set(classes) <= hypernyms().keys():
        return
    group = superclasses(classes)
    assigned = [(actual, predicted) for actual, predicted in pairs if predicted in group]  # to a cluster with a class
    names = sorted(set(group.values()))
    counts = np.zeros((len(names), len(names)))
    for actual, predicted in assigned:
        counts[names.index(group[actual]), names.index(group[predicted])] += 1
    wrong = [(actual, predicted) for actual, predicted in assigned if actual != predicted]
    inside = sum(group[actual] == group[predicted] for actual, predicted in wrong)
    chance = sum(group[a] == group[b] for a in classes for b in classes if a != b) / (len(classes) * (len(classes) - 1))
    yield f"**Confusion by superclass** (Figure 10): {100 * inside / max(len(wrong), 1):.0f} % of the images in a wrong"
    yield f"class are in one of their own superclass; at random it would be {100 * chance:.0f} %."
    yield ""
    yield f"| % of the class's images in | {' | '.join(names)} |"
    yield "| --- |" + " ---: |" * len(names)
    for name, row in zip(names, counts / counts.sum(axis=1, keepdims=True).clip(min=1), strict=True):
        size = sum(superclass == name for superclass in group.values())
        yield f"| {name} ({size}) | {' | '.join(f'{100 * value:.0f}' for value in row)} |"


def _path(wordnet_id: str, tree: dict[str, tuple[str, str]]) -> list[str]:
    """From the root down to the class."""
    path = [wordnet_id]
    while tree[path[-1]][0]:
        path.append(tree[path[-1]][0])
    return path[::-1]
