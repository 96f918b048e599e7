"""What the page shows of a run, as JSON: the groups, weak ones first, the images, and what a person should look at."""

from collections import Counter
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.groups.apply import Grouping, read_predictions
from pipeline.groups.suggestions import suggested_names
from pipeline.report.words import reasons, what_to_try, why
from pipeline.review.checks import promise, to_check
from pipeline.review.images import StoredImages
from pipeline.review.questions import questions_of
from scan_core.evaluation.belonging import CHECK, NOWHERE, SURE
from scan_core.evaluation.verdict import NONE, STRONG, WEAK

STATES = (SURE, CHECK, NOWHERE)  # their numbers in the page's data
WORK_FIRST = (WEAK, NONE, STRONG)  # order of the groups
PROTOTYPES, LEAST_SURE, RANDOM, SIMILAR, CLASSES = 8, 4, 8, 3, 3  # of a group that are shown
SUREST = 10  # images whose mean a prototype is near to


class Contents:
    """The page's data of ``images``, with what a person has said of them at this moment."""

    def __init__(
        self, images: StoredImages, more: dict[str, Any] | None = None, grouping: Grouping | None = None
    ) -> None:
        """``more`` is what the page has folded away; ``grouping`` None is that of the last run."""
        self.images, self.grouping, self.more = images, grouping or Grouping(), more
        table = read_predictions(self.grouping)
        place = {source: row for row, source in enumerate(table["source"].to_pylist())}
        rows = np.array([place[source] for source in images.sources], np.int64)
        shown = table.take(rows)
        self.groups = shown["group"].to_numpy().astype(np.int64)  # (N,)
        self.probabilities = shown["probability"].to_numpy()
        self.runner_up = shown["runner_up"].fill_null(0).to_numpy().astype(np.int64)
        states = shown["state"].to_pylist()
        self.states = np.array([STATES.index(state) for state in states], np.int64)
        self.unreadable = sum(split == "rejected" for split in table["split"].to_pylist())
        self.answered = np.array([content in self.grouping.answers for content in images.contents], np.int64)
        self.verdict = artifacts.load_json(images.at(artifacts.VERDICT))
        self.number = artifacts.load_json(artifacts.GROUPS)

    def everything(self) -> dict[str, Any]:
        """All keys."""
        images = self.images
        listed = {
            "source": images.sources,
            "split": images.splits,
            "date": [images.date(image) for image in range(len(images))],
            **{name: [round(float(each), 4) for each in images.places.get(name, ())] for name in ("x", "y")},
            "label": images.labels,
        }
        findings = artifacts.load_csv(artifacts.ITEMS / "findings.csv")
        return {
            "copies": images.copies,
            "odd": images.odd | {"outliers": self._outliers()},
            "more": self.more,
            "rejected": [row for row in findings if row["kind"] in ("rejected", "ignored")],
            **self.changing(),
            "images": listed | self._of_images(),
        }

    def changing(self) -> dict[str, Any]:
        """The keys that a correction may change; of ``images`` only such columns."""
        tried = what_to_try(self.verdict, self.number)
        counts = Counter(self.states.tolist())
        return {
            "run": {
                "images": len(self.images), "number": len(set(self.groups.tolist())),
                "low": self.number.get("low", self.number["number"]),
                "high": self.number.get("high", self.number["number"]), "given": self.number["given"],
                "labels": bool(self.images.labels), "edited": self.grouping.is_edited or bool(self.grouping.answers),
            },
            "verdict": {
                "word": self.verdict["word"], "why": reasons(self.verdict) or [why(self.verdict)],
                "try": [tried] if tried else [],
            },
            "counts": {
                **{state: counts[number] for number, state in enumerate(STATES)},
                "unreadable": self.unreadable, "copies": sum(map(len, self.images.copies)),
            },
            "promise": promise(self.grouping),
            "check": to_check(self.grouping, self.images.contents, self.states == 0),
            "groups": self._of_groups(),
            "questions": questions_of(
                self.images.embeddings, self.groups, self.runner_up, self.probabilities, self.answered > 0
            ),
            "images": self._of_images(),
        }  # fmt: skip

    def _of_images(self) -> dict[str, list[Any]]:
        return {
            "group": self.groups.tolist(),
            "state": self.states.tolist(),
            "probability": [round(float(each), 4) for each in self.probabilities],
            "runner_up": self.runner_up.tolist(),
            "answered": self.answered.tolist(),
        }

    def _outliers(self) -> list[int]:
        """Images that fit nowhere, the least probable first."""
        found = np.flatnonzero(self.states == STATES.index(NOWHERE))
        ordered: list[int] = found[np.argsort(self.probabilities[found], kind="stable")].tolist()
        return ordered

    def _of_groups(self) -> list[dict[str, Any]]:
        shown = [group for group in self.grouping.groups.shown if (self.groups == group).any()]
        words, suggested = self.grouping.words(self.verdict), suggested_names(self.grouping)
        vectors, labels = self.images.embeddings, np.array(self.images.labels)
        members = {group: np.flatnonzero(self.groups == group) for group in shown}
        centers = np.stack([vectors[rows].mean(axis=0) for rows in members.values()]) if shown else np.empty((0, 1))
        centers /= np.linalg.norm(centers, axis=1, keepdims=True).clip(min=1e-9)
        likeness = centers @ centers.T
        found = []
        for place, group in enumerate(shown):
            rows = members[group]
            surest = rows[np.argsort(-self.probabilities[rows], kind="stable")]
            near = vectors[rows] @ vectors[surest[:SUREST]].mean(axis=0)
            least = surest[::-1][self.answered[surest[::-1]] == 0][:LEAST_SURE].tolist()
            states = Counter(self.states[rows].tolist())
            others = [other for other in np.argsort(-likeness[place], kind="stable").tolist() if other != place]
            known = Counter(label for label in labels[rows].tolist() if label) if len(labels) else Counter[str]()
            found.append({
                "number": group, "name": self.grouping.name(group), "suggested": suggested.get(group, ""),
                "word": words[group], "size": len(rows), "ignored": group in self.grouping.groups.ignore,
                "states": {state: states[number] for number, state in enumerate(STATES)},
                "prototypes": rows[np.argsort(-near, kind="stable")[:PROTOTYPES]].tolist(), "least_sure": least,
                "random": np.random.default_rng(group).permutation(rows)[:RANDOM].tolist(),
                "similar": [
                    {"group": shown[other], "similarity": round(float(likeness[place, other]), 3)}
                    for other in others[:SIMILAR]
                ],
                "classes": [[label, count / sum(known.values())] for label, count in known.most_common(CLASSES)],
                "can_split": len(rows) > 1 and (
                    group in self.grouping.groups.clusters or group in self.grouping.groups.merge.values()
                ),
            })  # fmt: skip
        return sorted(found, key=lambda each: (WORK_FIRST.index(each["word"]), -each["size"], each["number"]))


def halves(contents: Contents, group: int, parts: int) -> list[list[int]]:
    """The images of the groups that a split would make, those nearest to the middle of each first. Nothing changes.

    Raises ``ScanError`` if the group cannot be split so.
    """
    from pipeline.groups.edits import split_groups
    from scan_core.errors import ScanError

    after, numbers = split_groups(contents.grouping.groups, group, parts)
    trial = Grouping()
    trial.groups = after
    table = read_predictions(trial)
    of_source = dict(zip(table["source"].to_pylist(), table["group"].to_pylist(), strict=True))
    now = np.array([of_source[source] for source in contents.images.sources])
    found, vectors = [], contents.images.embeddings
    for number in numbers:
        rows = np.flatnonzero(now == number)
        if not len(rows):
            raise ScanError(f"group {group} cannot be split into {parts}: one of them would be empty")
        near = vectors[rows] @ vectors[rows].mean(axis=0)
        found.append(rows[np.argsort(-near, kind="stable")].tolist())
    return found
