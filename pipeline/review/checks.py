"""How many sure images are right, by a person who has looked at some that were drawn at random."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.groups.apply import Grouping

FILE = Path("checks.json")
DRAWN = 30  # images
CONFIDENCE = 0.95


def grouping_digest(grouping: Grouping) -> str:
    """Which model and which corrections a check is of: names and what is left out do not count."""
    said: list[Any] = [grouping.groups.model_dump_json(exclude={"names", "ignore", "next"})]
    said += [sorted(grouping.answers.items()), sorted(grouping.learned.group_of.items()) if grouping.learned else None]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def promise(grouping: Grouping) -> dict[str, Any] | None:
    """The share of sure images that are right: how many were checked, and Wilson's interval of ``CONFIDENCE``.

    None if none were. It is void once groups or answers have changed.
    """
    from scipy.stats import binomtest

    kept = _load()
    checked, right = len(kept["right"]), sum(kept["right"].values())
    if not checked:
        return None
    low, high = binomtest(right, checked).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "checked": checked, "right": right, "low": float(low), "high": float(high),
        "void": kept["of"] != grouping_digest(grouping),
    }  # fmt: skip


def promised(grouping: Grouping) -> str:
    """What a person's check has proved of sure images, in words; "" if there was none, or if groups have changed."""
    found = promise(grouping)
    if found is None or found["void"]:
        return ""
    share, low, high = (round(100 * each) for each in (found["right"] / found["checked"], found["low"], found["high"]))
    return f"sure images: {share} % right ({found['checked']} checked; 95 %: {low} to {high})"


def to_check(grouping: Grouping, contents: list[str], sure: np.ndarray) -> dict[str, Any]:
    """Which of the N images to look at, drawn at random from the ``sure`` (N,) ones, and what was said of them."""
    digest, kept = grouping_digest(grouping), _load()
    said = kept["right"] if kept["of"] == digest else {}
    rows = np.flatnonzero(sure)
    drawn = np.random.default_rng(int(digest, 16)).permutation(rows)[:DRAWN].tolist()
    return {"images": drawn, "right": [said.get(contents[image]) for image in drawn]}


def check(grouping: Grouping, content: str, right: bool) -> str:
    """Notes whether an image is in the right group. What was noted of other groups is left behind."""
    digest, kept = grouping_digest(grouping), _load()
    said = kept["right"] if kept["of"] == digest else {}
    artifacts.replace_text(FILE, json.dumps({"of": digest, "right": said | {content: right}}, indent=1) + "\n")
    return "right" if right else "wrong"


def _load() -> dict[str, Any]:
    return artifacts.load_json(FILE) if FILE.exists() else {"of": "", "right": {}}
