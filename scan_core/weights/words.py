"""Words for groups, "dog?", for a person to accept or not: by a network's text tower, or by its classifier.

A classifier of ImageNet knows a thousand kinds. WordNet says what each is a kind of, so that a group of several breeds
is of dogs, and not of the one that is most frequent. A text tower is asked about the same words.
"""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from scan_core.evaluation.verdict import unit_rows
from scan_core.weights.published import PUBLISHED, package_file

# Chosen on Tiny ImageNet's last 25 classes and CIFAR-10's animals; ``experiments.names`` reports on others.
SHARE_POWER = 0.5  # a smaller one prefers narrower words
LEAST_SHARE, LEAST_SCORE = 0.25, 0.75  # of a group's images that are of the kind; of the word
VOCABULARY_GROUPS = 2
WIDEST = 120  # kinds that a word may cover: "dog" has 118, "artifact" 522
# Of a word by text, in standard deviations over the words; the best of 1,344 reaches 3.3 by chance. Chosen without a
# text tower, on the same sets, with the classifier's weights in place of vectors of words.
LEAST_MARGIN = 4.5


class Suggestion(NamedTuple):
    """A word for a group."""

    word: str
    share: float  # of the group's images, by the classifier's own probabilities


@cache
def hypernyms() -> dict[str, tuple[str, str]]:
    """WordNet id → its first hypernym's id and its own name, for ImageNet's classes and all their hypernyms."""
    lines = Path(__file__).with_name("wordnet.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["id"]: (row["parent"], row["name"]) for row in rows}


@cache
def covers() -> tuple[list[str], np.ndarray]:
    """The words as WordNet ids (V,), and whether each of ImageNet's classes is of that kind: (1000,V) float32."""
    tree = hypernyms()
    parents = {parent for parent, _ in tree.values()}
    classes, words = sorted(set(tree) - parents), sorted(tree)  # ImageNet's own order is that of the ids
    place = {word: column for column, word in enumerate(words)}
    table = np.zeros((len(classes), len(words)), np.float32)
    for row, each in enumerate(classes):
        while each:
            table[row, place[each]] = 1
            each = tree[each][0]
    kept = table.sum(axis=0) <= WIDEST
    for word, (
        parent,
        _,
    ) in tree.items():  # "mackerel shark" covers the great white shark alone: its own word is better
        if parent and (table[:, place[word]] == table[:, place[parent]]).all():
            kept[place[parent]] = False
    return [word for word, there in zip(words, kept, strict=True) if there], table[:, kept]


@cache
def vocabulary() -> tuple[str, ...]:
    """The words (V,) that a text tower is asked about, each once."""
    return tuple(dict.fromkeys(hypernyms()[word][1] for word in covers()[0]))


def classifier_of(name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight (1000,F) and bias (1000,) of the classifier of published weights; None if there is none with them."""
    import torch

    if name not in PUBLISHED:
        return None
    tensors = torch.load(package_file(name), map_location="cpu", weights_only=True)
    weight, bias = (tensors[f"_fc.{part}"].numpy() for part in ("weight", "bias"))
    return weight, bias


def suggest_words(
    features: np.ndarray, groups: np.ndarray, classifier: tuple[np.ndarray, np.ndarray]
) -> dict[int, Suggestion]:
    """Group → word, for the groups (N,) of images with ``features`` (N,F), those that the classifier was trained on.

    A word fits a group if many of its images are of that kind, and more than of the other groups'. No word is given
    twice; a group that none fits has none. Of images that are no photos, such as drawings, words are wrong: the
    classifier is as sure of them.
    """
    ids, table = covers()
    weight, bias = classifier
    numbers = np.unique(groups)
    shares = np.empty((len(numbers), len(ids)))
    for row, number in enumerate(numbers):
        logits = features[groups == number] @ weight.T + bias
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares[row] = (chances / chances.sum(axis=1, keepdims=True)).mean(axis=0) @ table
    # Few groups say little of what is usual: the vocabulary itself counts as some more.
    usual = np.concatenate([shares, np.tile(table.mean(axis=0), (VOCABULARY_GROUPS, 1))]).mean(axis=0)
    scores = shares**SHARE_POWER * np.log((shares + 1e-6) / (usual + 1e-6))
    scores[shares < LEAST_SHARE] = 0
    tree = hypernyms()
    return {
        int(numbers[row]): Suggestion(tree[ids[column]][1], float(shares[row, column]))
        for row, column in zip(*linear_sum_assignment(-scores), strict=True)
        if scores[row, column] >= LEAST_SCORE
    }


def match_words(features: np.ndarray, groups: np.ndarray, vectors: np.ndarray, words: Sequence[str]) -> dict[int, str]:
    """Group → word, for the groups (N,) of images with ``features`` (N,D) in the space of the words' ``vectors`` (V,D).

    A word fits a group if its vector is near the group's mean. What all groups have in common is taken off them, and
    what all words have in common off the words: otherwise images are nearer to each other than to any text, and the
    same words are near all of them. No word is given twice; a group that none fits has none, and so has a single one.
    """
    numbers = np.unique(groups)
    if len(numbers) < 2:
        return {}
    unit = unit_rows(features)
    centroids = unit_rows(np.stack([unit[groups == number].mean(axis=0) for number in numbers]))  # (G,D)
    centroids = unit_rows(centroids - centroids.mean(axis=0))
    likeness = centroids @ unit_rows(vectors - vectors.mean(axis=0)).T  # (G,V)
    margins = (likeness - likeness.mean(axis=1, keepdims=True)) / likeness.std(axis=1, keepdims=True)
    return {
        int(numbers[row]): words[column]
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True)
        if margins[row, column] >= LEAST_MARGIN
    }
