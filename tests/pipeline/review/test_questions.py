"""Which images a person is asked about."""

import numpy as np

from pipeline.review.questions import ASKED, questions_of


def asked(count=40, groups=2, **changes):
    rng = np.random.default_rng(0)
    group = np.arange(count) % groups + 1
    vectors = np.eye(groups, 8)[group - 1] + rng.normal(0, 0.1, (count, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given = {
        "embeddings": vectors.astype(np.float32), "groups": group, "runner_up": group % groups + 1,
        "probabilities": np.linspace(0.4, 0.85, count), "sure": np.zeros(count, bool),
        "answered": np.zeros(count, bool),
    }  # fmt: skip
    return given | changes, questions_of(**(given | changes))


def test_each_image_is_asked_once_with_its_groups_and_the_nearest_of_either():
    given, found = asked()
    images = [each["image"] for each in found]
    assert len(images) == len(set(images)) == 40
    for each in found:
        row, group = each["image"], given["groups"]
        assert (each["group"], each["runner_up"]) == (group[row], given["runner_up"][row])
        near = given["embeddings"] @ given["embeddings"][row]
        for key, number in (("own", group[row]), ("other", given["runner_up"][row])):
            others = [other for other in np.argsort(-near) if other != row and group[other] == number]
            assert each[key] == others[:3]


def test_what_is_sure_answered_or_has_no_second_group_is_not_asked():
    sure, answered, runner_up = np.zeros(40, bool), np.zeros(40, bool), np.arange(40) % 2 + 1
    sure[:5], answered[5:8], runner_up[8:10] = True, True, 0
    chances = np.full(40, 0.5)
    chances[:4] = 0.95
    _, found = asked(sure=sure, answered=answered, runner_up=runner_up, probabilities=chances)
    assert {each["image"] for each in found} == {4, *range(10, 40)}
    assert asked(answered=np.ones(40, bool))[1] == []


def test_undecided_images_come_first_and_not_one_like_another():
    chances = np.full(40, 0.8)
    chances[[7, 9, 12]] = 0.4
    given, found = asked(probabilities=chances)
    assert {each["image"] for each in found[:3]} == {7, 9, 12}
    vectors = given["embeddings"].copy()
    vectors[9] = vectors[7]  # the same picture twice
    chances[12] = 0.5
    first = [each["image"] for each in asked(embeddings=vectors, probabilities=chances)[1]]
    assert first.index(12) < max(first.index(7), first.index(9)), "the second of two that are alike waits"


def test_there_are_at_most_so_many_questions():
    assert len(asked(count=500)[1]) == ASKED
