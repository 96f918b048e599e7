"""``python -m experiments.corrections FOLDER [SET …]``: how many actions on the page make 95 % of the images right.

FOLDER is that of ``experiments.features``. An oracle that knows the labels has what the page offers: it names each
group after its commonest class (groups of one name are merged); splits a group and names the parts; answers the
questions of *To check*; and starts ``scan run``, which learns from the answers. Each of these is an action. It takes
what makes the most images right for an action, and begins with the groups that the frozen path keeps or, on the same
page, with k-means on the same embeddings and as many groups.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.answers import SEEDS, SETS, group
from experiments.verdict import table
from pipeline.review.questions import questions_of
from scan_core.clustering.answers import learn_answers
from scan_core.clustering.spectral import kmeans_clusters

GOAL = 0.95
ROUND = 20  # answers between two calls of scan run
MOST = 0.5  # actions for each image: then the oracle gives up
PARTS_SEED, STARTS = 0, 10  # of the page's split


@dataclass
class Page:
    """Groups (N,) by the class that they are named after, and what the oracle has done."""

    embeddings: np.ndarray  # (N,D)
    labels: np.ndarray  # (N,)
    chances: np.ndarray  # (N,) probability of the group
    second: np.ndarray  # (N,) the group that is next, by its class
    base: np.ndarray  # (N,) without answers
    actions: int
    rows: list[int] = field(default_factory=list)  # answered

    @property
    def groups(self) -> np.ndarray:
        """With what is learned from the answers."""
        rows = np.array(self.rows, np.int64)
        return learn_answers(self.embeddings, self.base, self.chances, rows, self.labels[rows])

    def right(self, groups: np.ndarray) -> float:
        return float((groups == self.labels).mean())


def named(probabilities: np.ndarray, labels: np.ndarray, embeddings: np.ndarray) -> Page:
    """The page of a grouping, after an action for each group: its name."""
    order = np.argsort(-probabilities, axis=1)
    groups, count = order[:, 0], probabilities.shape[1]
    names = np.array(
        [np.bincount(labels[groups == each]).argmax() if (groups == each).any() else 0 for each in range(count)]
    )
    second = np.where(names[order[:, 1]] == names[groups], names[order[:, min(2, count - 1)]], names[order[:, 1]])
    return Page(embeddings, labels, probabilities.max(axis=1), second, names[groups], len(np.unique(groups)))


def best_split(page: Page, groups: np.ndarray) -> tuple[float, int, np.ndarray]:
    """The images that are right by the best split, for each of its actions; the actions; the groups after it."""
    best = (0.0, 1, groups)
    for each in np.unique(groups):
        members = np.flatnonzero(groups == each)
        if len(members) < 2:
            continue
        parts, _ = kmeans_clusters(page.embeddings[members], 2, PARTS_SEED, STARTS)
        after = groups.copy()
        for part in (0, 1):
            rows = members[parts == part]
            after[rows] = np.bincount(page.labels[rows]).argmax()
        actions = 3 if len(np.unique(after[members])) > 1 else 1
        gain = (page.right(after) - page.right(groups)) * len(groups) / actions
        if gain > best[0]:
            best = (gain, actions, after)
    return best


def answered(page: Page, groups: np.ndarray) -> tuple[float, int, list[int]]:
    """The same for a round of answers. A class that no group has cannot be the answer."""
    known = np.zeros(len(groups), bool)
    known[page.rows] = True
    questions = questions_of(page.embeddings, groups + 1, page.second + 1, page.chances, known)
    asked = [each["image"] for each in questions[:ROUND]]
    new = [row for row in asked if page.labels[row] in set(groups.tolist())]
    if not asked:
        return 0.0, 1, []
    before, page.rows = page.rows, page.rows + new
    gain = (page.right(page.groups) - page.right(groups)) * len(groups)
    page.rows = before
    return gain / (len(asked) + 1), len(asked) + 1, new


def work(page: Page) -> tuple[float, int, bool]:
    """The share that is right at the start, the actions, and whether the goal is reached."""
    start = page.right(page.base)
    while page.right(groups := page.groups) < GOAL and page.actions < MOST * len(groups):
        split, answers = best_split(page, groups), answered(page, groups)
        if split[0] >= answers[0] and split[0] > 0:
            page.actions += split[1]
            page.base = split[2]
        elif answers[2]:
            page.actions += answers[1]
            page.rows += answers[2]
        else:
            break
    return start, page.actions, page.right(page.groups) >= GOAL


def of_kmeans(embeddings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,C) how near each image is to each center, as a softmax over cosines, as a page of k-means would have it."""
    _, centers = kmeans_clusters(embeddings, count, seed, STARTS)
    centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    cosine = embeddings @ centers.T
    scaled = np.exp(20 * (cosine - cosine.max(axis=1, keepdims=True)))
    found: np.ndarray = scaled / scaled.sum(axis=1, keepdims=True)
    return found


def main(folder: Path, names: list[str]) -> None:
    rows = []
    for name in names or SETS:
        for seed in SEEDS:
            images = group(folder, name, seed)
            other = of_kmeans(images.embeddings, SETS[name], seed)
            cells, actions = [], []
            for probabilities in (images.probabilities, other):
                start, count, is_reached = work(named(probabilities, images.labels, images.embeddings))
                cells.append(f"{100 * start:.1f} | {count if is_reached else f'not by {count}'}")
                actions.append(count)
            rows.append(f"| {name} | {seed} | {' | '.join(cells)} | {actions[0] / actions[1]:.2f} |")
            print(rows[-1], file=sys.stderr, flush=True)
    heads = ["set", "seed", "kept: right at first, %", "actions", "k-means: right at first, %", "actions", "ratio"]
    print(table(heads, rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
