"""A comparison in words and numbers, as a person reads it in the terminal."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.comparing.difference import (
    FATES,
    NEW,
    PART,
    SCATTERED,
    Difference,
    Fate,
    changed_settings,
    only_in,
)
from pipeline.comparing.outcome import Outcome, first_of

LISTED = 20  # groups
NAMED = 3  # groups or settings in a line
WIDEST = 30  # characters of a setting's value
ACCURACIES = {"acc": "ACC", "ami": "AMI", "ari": "ARI"}
SPLIT_NAMES = {"val": "validation images", "train": "all images"}

Row = tuple[str, str, str]  # what, in A, in B


def counted(number: int, what: str = "image") -> str:
    """``1 image``, ``2,000 images``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def heading(found: Difference) -> Iterator[str]:
    """Which runs they are, and the images."""
    for letter, outcome in (("A", found.a), ("B", found.b)):
        yield f"{letter}         {outcome.title}"
        yield from (f"          {note}" for note in outcome.notes)
    said = [f"{len(found.rows):,} in both"]
    for letter, outcome, rows in (("A", found.a, found.rows[:, 0]), ("B", found.b, found.rows[:, 1])):
        if alone := only_in(outcome, rows):
            said.append(f"{len(alone):,} only in {letter}, such as {alone[0]}")
    yield f"images    {'; '.join(said)}"
    if found.a.content is None or found.b.content is None:
        yield "          matched by their names, because an older run has no hashes of files"


def settings(found: Difference) -> tuple[list[Row], list[str]]:
    """The settings that differ, and in words those that only one run has: of another method, or an older program."""
    rows = [(name, _value(a), _value(b)) for name, (a, b) in changed_settings(found.a, found.b).items()]
    lines = []
    for letter, one, other in (("A", found.a, found.b), ("B", found.b, found.a)):
        if names := [name for name in one.settings if name not in other.settings]:
            lines.append(f"only in {letter}: {first_of(names, NAMED)}")
    return rows, lines


def scores(found: Difference) -> list[Row]:
    """Number of groups, verdict, states of images, and the scores without and with labels that either run has."""
    a, b = _scores(found.a), _scores(found.b)
    return [(name, a.get(name, "–"), b.get(name, "–")) for name in {**a, **b}]


def scored(found: Difference) -> str:
    """Of which images the scores are."""
    a, b = (SPLIT_NAMES[each.reported] for each in (found.a, found.b))
    return f"scores of {a}" if a == b else f"scores of A's {a}, B's {b}"


def _scores(outcome: Outcome) -> dict[str, str]:
    from pipeline.report.words import SHOWN_QUALITY, states_of

    number, verdict = outcome.number, outcome.verdict
    likely = "" if number.get("given", True) else f" ({number['low']} to {number['high']} plausible)"
    found = {"groups": f"{len(set(outcome.group.tolist()))}{likely}"}
    if verdict:
        found["verdict"] = verdict["word"].upper()
        found |= {state: f"{count:,}" for state, count in (states_of(verdict) if "images" in verdict else [])}
    of_split = outcome.metrics.get(outcome.reported, {})
    quality = outcome.metrics.get("val", {}).get("quality", {}) | of_split.get("quality", {})
    for key, (name, form) in SHOWN_QUALITY.items():
        if key in quality:
            found[name] = f"{quality[key]:{form}}"
    for key, name in ACCURACIES.items():
        if key in of_split.get("selflabel", {}):
            found[f"{name}, with labels"] = f"{of_split['selflabel'][key]:.1%}"
    return found


def agreement(found: Difference) -> Iterator[str]:
    """How far the groups of both runs are the same, and what has become of them."""
    values = found.agreement
    yield f"agreement {values['acc']:.1%} of the images in both are in groups that match one to one"
    yield f"          ARI {values['ari']:.2f}, AMI {values['ami']:.2f} (1: the same groups, 0: chance)"
    counts = Counter(fate.word for fate in found.fates)
    yield f"groups    {', '.join(f'{counts[word]} {word}' for word in FATES if counts[word])}"
    for letter, outcome, groups in (("A", found.a, found.groups[0]), ("B", found.b, found.groups[1])):
        if alone := sorted(set(outcome.group.tolist()) - set(groups)):
            yield f"          without an image that is in both: {_listed(outcome, alone, LISTED)} of {letter}"


def groups(found: Difference) -> Iterator[str]:
    """A line for each group that has changed, and one for all others."""
    changed = [fate for fate in found.fates if not fate.same]
    same = [fate for fate in found.fates if fate.same]
    yield from (f"{fate.word:<9} {line_of(fate, found)}" for fate in changed[:LISTED])
    if len(changed) > LISTED:
        yield f"          and {len(changed) - LISTED} more"
    if same:
        yield f"whole     {first_of([_arrow(fate, found) for fate in same], LISTED)}"


def line_of(fate: Fate, found: Difference) -> str:
    """``3 daisy → 2: 118 of 142 images; 24 went to 5``."""
    if fate.word in (NEW, SCATTERED):
        one, other, way = (found.b, found.a, "from") if fate.word == NEW else (found.a, found.b, "to")
        return f"{one.titled(fate.group)}: {counted(fate.images)}; {_moved(fate, other, way)}"
    *counts, last = [f"{count:,}" for _, count in fate.parts]
    there = f"{', '.join(counts)} and {last}" if counts else last
    if len(counts) >= NAMED:
        there = f"together {sum(count for _, count in fate.parts):,}"
    said = f"{_arrow(fate, found)}: {there} of {counted(fate.images)}"
    return f"{said}; {_moved(fate, found.b, 'to')}" if fate.others else said


def _arrow(fate: Fate, found: Difference) -> str:
    """``3 daisy → 2``."""
    return f"{found.a.titled(fate.group)} → {_listed(found.b, [group for group, _ in fate.parts], NAMED)}"


def _moved(fate: Fate, outcome: Outcome, way: str) -> str:
    """``24 went to 5, 9 to 6 others``: if there are many, those are named that have a part of the group."""
    pairs = fate.others
    first = pairs if len(pairs) <= NAMED else [pair for pair in pairs[:NAMED] if pair[1] >= PART * fate.images]
    rest = pairs[len(first) :]
    ends = [(count, outcome.titled(group)) for group, count in first]
    ends += [(sum(count for _, count in rest), counted(len(rest), "other" if first else "group"))] if rest else []
    verb = "went to" if way == "to" else "came from"
    return ", ".join(f"{count:,} {way if place else verb} {end}" for place, (count, end) in enumerate(ends))


def _listed(outcome: Outcome, numbers: list[int], most: int) -> str:
    return first_of([outcome.titled(number) for number in numbers], most)


def _value(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value, default=str)
    return said if len(said) <= WIDEST else f"…{said[1 - WIDEST :]}"
