"""``python -m experiments.names FOLDER``: how often a suggested name is right, by labels that it does not see.

FOLDER is that of ``experiments.features``. Draws, groups and verdicts are those of ``experiments.verdict``. A name is
*right* if it is the class of most of a group's images or a kind of it ("beagle" for dogs), *wider* if that class is a
kind of it ("mammal"), else *wrong*. The constants of ``scan_core.weights.words`` were chosen on ``FIT``.

Each set has two rows: names by the classifier, and names as by a text tower, whose vectors are here those that the
classifier has for its classes, and for a wider word the mean of its classes'.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from experiments.verdict import FIT, REPORTED, draw, load
from scan_core.evaluation.verdict import NONE, STRONG, WEAK, judge_groups, unit_rows
from scan_core.weights.words import classifier_of, covers, hypernyms, match_words, suggest_words, vocabulary

DRAWS = 10
WAYS = ("classifier", "vectors")
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


def stand_in(weight: np.ndarray) -> np.ndarray:
    """Vectors (V,F) of ``vocabulary()`` from those (1000,F) that a classifier has for its classes."""
    ids, table = covers()
    names = [hypernyms()[word_id][1] for word_id in ids]
    unit = unit_rows(weight)
    return np.stack([unit[table[:, names.index(word)] > 0].mean(axis=0) for word in vocabulary()])


def main(folder: Path) -> None:
    """Prints the table."""
    sets, classifier = load(folder), classifier_of("efficientnet_lite0")
    assert classifier is not None
    vectors, known = stand_in(classifier[0]), vocabulary()
    print("| set | names | draws | strong groups | named | right / wider / wrong", end=" ")
    print("| weak groups | named | right / wider / wrong |")
    print("| --- " * 9 + "|")
    for names, start in ((FIT, 0), (REPORTED, 100)):
        for name in (each for each in names if each in sets):
            with np.load(folder / f"{name.split(',')[0]}.npz") as file:
                classes = [CIFAR.get(str(each), str(each)) for each in file["classes"]]
            counts = {way: {word: Counter[str]() for word in (STRONG, WEAK, NONE)} for way in WAYS}
            for seed in range(start, start + DRAWS):
                drawn = draw(sets, name, "noise" if name == "noise" else "classes", seed)
                verdict = judge_groups(drawn.embeddings, drawn.clusters, drawn.num_clusters, 0)
                suggested = suggest_words(drawn.features, drawn.clusters, classifier)
                found = {
                    WAYS[0]: {group: each.word for group, each in suggested.items()},
                    WAYS[1]: match_words(drawn.features, drawn.clusters, vectors, known),
                }
                for way, words in found.items():
                    for group, each in enumerate(verdict.groups):
                        counts[way][each.word]["groups"] += 1
                        if group in words and each.word != NONE:
                            label = classes[np.bincount(drawn.labels[drawn.clusters == group]).argmax()]
                            counts[way][each.word].update(["named", judged(words[group], label)])
            for way in WAYS:
                cells = [name, way, str(DRAWS)]
                for word in (STRONG, WEAK):
                    said = counts[way][word]
                    cells += [str(said["groups"]), str(said["named"])]
                    cells.append(" / ".join(str(said[each]) for each in ("right", "wider", "wrong")))
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
