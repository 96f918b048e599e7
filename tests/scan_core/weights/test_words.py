"""Suggested names: the widest word that tells a group from the others, none twice, none where none fits."""

import numpy as np
import pytest

from scan_core.weights.words import WIDEST, classifier_of, covers, hypernyms, suggest_words

IDS, TABLE = covers()
NAMES = [hypernyms()[word][1] for word in IDS]
# A classifier whose class is the largest of a thousand features.
PLAIN = np.eye(1000, dtype=np.float32), np.zeros(1000, np.float32)


def classes_of(word):
    return np.flatnonzero(TABLE[:, NAMES.index(word)])


def images_of(*classes):
    """(n,1000): an image of each of ``classes``, a little unsure."""
    features = np.full((len(classes), 1000), 0.005, np.float32)
    features[np.arange(len(classes)), list(classes)] = 1
    return 33 * features / np.linalg.norm(features, axis=1, keepdims=True)


def suggested(**groups):
    features = np.concatenate([images_of(*classes) for classes in groups.values()])
    numbers = np.repeat(np.arange(len(groups)) + 3, [len(classes) for classes in groups.values()])
    found = suggest_words(features, numbers, PLAIN)
    return {name: found[number + 3].word if number + 3 in found else "" for number, name in enumerate(groups)}


def test_classes_are_imagenets_in_its_order_and_wide_words_are_left_out():
    assert TABLE.shape[0] == 1000 and (TABLE.sum(axis=0) <= WIDEST).all() and (TABLE.sum(axis=0) >= 1).all()
    assert NAMES[IDS.index("n01440764")] == "tench" and TABLE[0, IDS.index("n01440764")] == 1
    assert TABLE[281, NAMES.index("domestic cat")] == 1, "tabby"
    assert "dog" in NAMES and "artifact" not in NAMES


def test_a_group_of_one_class_has_its_word_and_one_of_many_that_of_their_kind():
    dogs, birds = classes_of("dog"), classes_of("bird")
    found = suggested(dogs=dogs[:60], birds=birds[:40], tench=[0] * 30)
    assert found == {"dogs": "dog", "birds": "bird", "tench": "tench"}


def test_among_groups_of_one_kind_narrower_words_are_found():
    dogs = classes_of("dog")
    found = suggested(one=[dogs[0]] * 20, other=[dogs[50]] * 20)
    assert all(found.values()) and found["one"] != found["other"] and "dog" not in found.values()


def test_no_word_is_given_twice():
    found = suggested(one=[0] * 20, other=[0] * 20, third=[5] * 20)
    assert [*found.values()].count("tench") <= 1


def test_images_of_everything_and_of_nothing_have_no_name():
    rng = np.random.default_rng(0)
    everything = {f"g{number}": rng.integers(0, 1000, 200) for number in range(3)}
    assert set(suggested(**everything).values()) == {""}


@pytest.mark.slow
def test_the_classifier_is_that_of_the_package():
    weight, bias = classifier_of("efficientnet_lite0")
    assert weight.shape == (1000, 1280) and bias.shape == (1000,) and classifier_of("dinov2_small") is None
