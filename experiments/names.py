"""``python -m experiments.names FOLDER``: how often a suggested name is right, by labels that it does not see.

FOLDER is that of ``experiments.features``. Draws, groups and verdicts are those of ``experiments.verdict``. A name is
*right* if it is the class of most of a group's images or a kind of it ("beagle" for dogs), *wider* if that class is a
kind of it ("mammal"), else *wrong*. The constants of ``scan_core.weights.words`` were chosen on ``FIT``.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from experiments.verdict import FIT, REPORTED, draw, load
from scan_core.evaluation.verdict import NONE, STRONG, WEAK, judge_groups
from scan_core.weights.words import classifier_of, hypernyms, suggest_words

DRAWS = 10
CIFAR = {
    "airplane": "n02691156", "automobile": "n02958343", "bird": "n01503061", "cat": "n02121620", "deer": "n02430045",
    "dog": "n02084071", "frog": "n01639765", "horse": "n02374451", "ship": "n04194289", "truck": "n04490091",
}  # fmt: skip


def kinds(word_id: str) -> list[str]:
    """A WordNet id and all that it is a kind of; CIFAR-10's deer, which ImageNet has none of, only itself."""
    tree, found = hypernyms(), []
    while word_id:
        found.append(word_id)
        word_id = tree.get(word_id, ("", ""))[0]
    return found


def judged(word: str, label: str) -> str:
    """right, wider or wrong: ``word`` for a group whose most frequent class is the WordNet id ``label``."""
    named = [word_id for word_id, (_, name) in hypernyms().items() if name == word]
    if any(label in kinds(word_id) for word_id in named):
        return "right"
    return "wider" if set(named) & set(kinds(label)) else "wrong"


def main(folder: Path) -> None:
    """Prints the table."""
    sets, classifier = load(folder), classifier_of("efficientnet_lite0")
    assert classifier is not None
    print(
        "| set | draws | strong groups | named | right / wider / wrong | weak groups | named | right / wider / wrong |"
    )
    print("| --- " * 8 + "|")
    for names, start in ((FIT, 0), (REPORTED, 100)):
        for name in (each for each in names if each in sets):
            with np.load(folder / f"{name.split(',')[0]}.npz") as file:
                classes = [CIFAR.get(str(each), str(each)) for each in file["classes"]]
            counts: dict[str, Counter[str]] = {STRONG: Counter(), WEAK: Counter(), NONE: Counter()}
            for seed in range(start, start + DRAWS):
                drawn = draw(sets, name, "noise" if name == "noise" else "classes", seed)
                verdict = judge_groups(drawn.embeddings, drawn.clusters, drawn.num_clusters, 0)
                words = suggest_words(drawn.features, drawn.clusters, classifier)
                for group, each in enumerate(verdict.groups):
                    counts[each.word]["groups"] += 1
                    if group in words and each.word != NONE:
                        label = classes[np.bincount(drawn.labels[drawn.clusters == group]).argmax()]
                        counts[each.word].update(["named", judged(words[group].word, label)])
            cells = [name, str(DRAWS)]
            for word in (STRONG, WEAK):
                said = counts[word]
                cells += [str(said["groups"]), str(said["named"])]
                cells.append(" / ".join(str(said[each]) for each in ("right", "wider", "wrong")))
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
