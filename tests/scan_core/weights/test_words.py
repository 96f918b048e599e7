"""Suggested names: the widest word that tells a group from the others, none twice, none where none fits."""

import numpy as np
import pytest

from scan_core.weights.words import (
    WIDEST,
    classifier_of,
    covers,
    hypernyms,
    match_words,
    suggest_words,
    vocabulary,
)

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


def matched(*words, noise=0.3, offset=0.0, seed=0):
    """Names of a group of 20 images near the vector of each of ``words``; "" is a group near none."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(vocabulary()), 64))
    wanted = [vectors[vocabulary().index(word)] if word else rng.normal(size=64) for word in words]
    features = np.repeat(wanted, 20, axis=0) + noise * rng.normal(size=(20 * len(words), 64))
    features = features / np.linalg.norm(features, axis=1, keepdims=True) + offset * rng.normal(size=64)
    found = match_words(features, np.repeat(np.arange(len(words)), 20), vectors + 5, vocabulary())
    return [found.get(number, "") for number in range(len(words))]


def test_every_word_of_the_vocabulary_is_there_once():
    assert len(vocabulary()) == len(set(vocabulary())) > 1000 and {"dog", "tench"} < set(vocabulary())


def test_groups_get_the_words_that_their_images_are_near():
    assert matched("dog", "tench", "bird") == ["dog", "tench", "bird"]


@pytest.mark.parametrize("offset", [1.0, 10.0])
def test_what_all_images_or_all_words_have_in_common_does_not_count(offset):
    assert matched("dog", "tench", "bird", offset=offset) == ["dog", "tench", "bird"]


def test_a_word_is_told_by_where_it_differs_from_all_words_and_not_by_how_far():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1000, 64)) + 100
    vectors[:, 0] = 100
    vectors[0], vectors[1] = 100, 100
    vectors[0, 0] += 0.5  # a small step in the group's direction, and a larger one that leads half away from it
    vectors[1, :2] += 3
    features = np.eye(64)[[0] * 5 + [5] * 5]
    found = match_words(features, np.repeat([1, 2], 5), vectors, [str(number) for number in range(1000)])
    assert found[1] == "0"


def test_two_groups_of_one_kind_do_not_share_a_name():
    found = matched("dog", "dog", "tench", "bird")
    assert found.count("dog") == 1 and found[2:] == ["tench", "bird"]


def test_groups_that_no_word_fits_have_none():
    for seed in range(10):
        assert matched(*[""] * 8, seed=seed) == [""] * 8
        assert matched("dog", "tench", "", seed=seed)[2] == ""
    assert matched("dog") == [""], "a single group is what all have in common"


@pytest.mark.slow
def test_the_classifier_is_that_of_the_package():
    weight, bias = classifier_of("efficientnet_lite0")
    assert weight.shape == (1000, 1280) and bias.shape == (1000,) and classifier_of("dinov2_small") is None
