"""What the program has learned from a person's answers: ``scan run`` learns it, and it counts when groups are read.

It is of one model and of some answers: whoever takes one of them back has the groups from before, to the byte.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.groups import file
from pipeline.groups.file import Groups

FILE = Path(".scan/learned.npz")


@dataclass(frozen=True)
class Learned:
    """The groups of the run's images, and a linear head for others."""

    all_answers: bool  # whether there is no answer that it has not learned from
    group_of: dict[str, int]  # content of each image of the run → its group
    groups: np.ndarray  # (G,) int64: their numbers
    weight: np.ndarray  # (G,D) float32
    bias: np.ndarray  # (G,) float32

    def of(self, content: str, embedding: np.ndarray) -> int:
        """The group of an image, whose ``embedding`` (D,) is needed if it is none of the run's."""
        found = self.group_of.get(content)
        return int(self.groups[(self.weight @ embedding + self.bias).argmax()]) if found is None else found


def base_of(groups: Groups, answers: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """What is learned from: model, splits, merges, and the group of each answer."""
    said = {content: group for content, (group, _) in answers.items()}
    found: dict[str, Any] = json.loads(
        json.dumps({"model": groups.model, "split": groups.split, "merge": groups.merge, "answers": said})
    )
    return found


def still_holds(base: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether what was learned from ``base`` counts ``now``: later merges and answers leave it as it is."""
    same = base["model"] == now["model"] and base["split"] == now["split"]
    return same and all(base[key].items() <= now[key].items() for key in ("merge", "answers"))


def load_learned(groups: Groups, answers: Mapping[str, tuple[int, str]]) -> Learned | None:
    """What was learned from these answers, or from some of them; None if nothing was."""
    if not answers or not FILE.exists():
        return None
    try:
        with np.load(FILE, allow_pickle=False) as kept:
            base = json.loads(str(kept["base"]))
            if not still_holds(base, base_of(groups, answers)):
                return None
            shown = np.array([groups.shown_as(group) for group in kept["groups"].tolist()], np.int64)
            group_of = dict(zip(kept["contents"].tolist(), shown[kept["places"]].tolist(), strict=True))
            return Learned(len(base["answers"]) == len(answers), group_of, shown, kept["weight"], kept["bias"])
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile):  # cut off: it is learned again
        return None


def learn() -> int | None:
    """Learns from the answers, if there are new ones. Returns how many images that were not asked about it has moved.

    None if there is nothing new. Images of the run are learned from and may move; others follow a linear head that has
    learned their groups.
    """
    import pyarrow.parquet as pq
    import torch

    from pipeline import artifacts
    from pipeline.groups.apply import Grouping, embeddings_of, read_predictions
    from scan_core.clustering.answers import learn_answers
    from scan_core.clustering.heads import classify

    if not file.load_answers():
        return None
    grouping = Grouping()
    if grouping.learned is not None and grouping.learned.all_answers:
        return None
    base, answers = base_of(grouping.groups, grouping.answers), grouping.answers
    grouping = Grouping()
    grouping.answers = {}
    table = read_predictions(grouping).select(["source", "content", "group", "probability"]).drop_null()
    of_run = pq.read_table(artifacts.require(artifacts.PREDICTIONS), columns=["id", "source"]).drop_null()
    ids = dict(zip(of_run["source"].to_pylist(), of_run["id"].to_pylist(), strict=True))
    rows = [row for row in table.to_pylist() if row["source"] in ids]
    embeddings = embeddings_of(np.array([ids[row["source"]] for row in rows], np.int64))
    contents, own = [row["content"] for row in rows], np.array([row["group"] for row in rows], np.int64)
    answered = np.array([row for row, content in enumerate(contents) if content in answers], np.int64)
    said = np.array([grouping.groups.shown_as(answers[contents[row]][0]) for row in answered], np.int64)
    after = learn_answers(embeddings, own, np.array([row["probability"] for row in rows]), answered, said)
    groups, places = np.unique(after, return_inverse=True)
    generator = torch.Generator().manual_seed(0)
    weight, bias = classify(torch.from_numpy(embeddings), torch.from_numpy(places), len(groups), generator)
    partial = FILE.with_suffix(".partial.npz")
    np.savez(
        partial, base=json.dumps(base), contents=np.array(contents), places=places, groups=groups,
        weight=weight[0].numpy(), bias=bias[0].numpy(),
    )  # fmt: skip
    partial.replace(FILE)
    return int((after != own).sum() - (said != own[answered]).sum())
