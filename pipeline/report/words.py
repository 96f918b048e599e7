"""The verdict in words: what it is, why, and what to try. The page and the terminal say the same."""

from typing import Any

from scan_core.evaluation.verdict import NONE, STRONG, WEAK

HOLD, MIXED, CHANCE = "hold together", "look mixed", "cannot be told from chance"
IN_WORDS = {STRONG: HOLD, WEAK: MIXED, NONE: CHANCE}
# What the quality without labels in metrics.json is called, and how it is written.
SHOWN_QUALITY = {
    "neighbor_agreement": ("neighbor agreement", ".1%"),
    "linear_predictability": ("linear predictability", ".1%"),
    "heads_ari": ("head agreement (ARI)", ".2f"),
    "silhouette": ("silhouette", ".2f"),
}


def why(verdict: dict[str, Any]) -> str:
    """One sentence on ``verdict``, the content of reports/verdict.json."""
    words = [group["word"] for group in verdict["groups"]]
    if verdict["word"] == NONE:
        return "the groups cannot be told from groups of images without any structure"
    parts = [f"{words.count(word)} {said}" for word, said in IN_WORDS.items() if word in words]
    return f"of {len(words)} groups " + ", ".join(parts)


def reasons(verdict: dict[str, Any]) -> list[str]:
    """What the verdict was made of, against groups of the same images whose structure was destroyed."""
    said = {
        "agreement": "neighbors are in one group more often than by chance: by {:.0%} of what is possible",
        "margin": "images that lie between two groups are {:.0%} fewer than by chance",
        "density": "images are nearer to their neighbors than by chance: by {:.0%} of what is possible",
    }
    return [text.format(verdict["figures"][name]) for name, text in said.items() if name in verdict["figures"]]


def what_to_try(verdict: dict[str, Any], groups: dict[str, Any]) -> str:
    """What may help, or "" if nothing is needed. ``groups`` is the content of data/groups.json."""
    number, low = groups["number"], groups.get("low", groups["number"])
    if verdict["word"] == STRONG:
        return ""
    fewer = f"--groups {low}" if low < number else "fewer groups"
    if verdict["word"] == NONE:
        return f"other weights (scan weights list), {fewer}, or --train on many thousands of images"
    return f"{fewer}, or other weights (scan weights list)"


def range_of(groups: dict[str, Any]) -> str:
    """``12 groups (9 to 15 are plausible)``."""
    said = f"{groups['number']} groups"
    return said if groups["given"] else f"{said} ({groups['low']} to {groups['high']} are plausible)"


def states_of(verdict: dict[str, Any]) -> list[tuple[str, int]]:
    """How many images are sure, to check, and fit nowhere."""
    from scan_core.evaluation.belonging import CHECK, NOWHERE, SURE

    return [(state, verdict["images"].get(state, 0)) for state in (SURE, CHECK, NOWHERE)]
