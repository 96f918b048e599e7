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
        "probabilities": np.linspace(0.4, 0.85, count),
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


def test_what_is_answered_or_has_no_second_group_is_not_asked():
    answered, runner_up = np.zeros(40, bool), np.arange(40) % 2 + 1
    answered[5:8], runner_up[8:10] = True, 0
    _, found = asked(answered=answered, runner_up=runner_up)
    assert {each["image"] for each in found} == {*range(5), *range(10, 40)}
    assert asked(answered=np.ones(40, bool))[1] == []


def test_the_first_question_says_most_about_all_images_and_the_next_what_it_leaves_open():
    given, found = asked()
    like = (given["embeddings"] @ given["embeddings"].T).clip(min=0) ** 2
    counts = 1 - given["probabilities"] + 0.5
    first = int((like @ counts).argmax())
    assert found[0]["image"] == first
    gain = np.maximum(like - like[first], 0) @ counts
    gain[first] = -1
    assert found[1]["image"] == int(gain.argmax()) and given["groups"][found[1]["image"]] != given["groups"][first]
    answered = np.zeros(40, bool)
    answered[first] = True
    assert asked(answered=answered)[1][0]["image"] == found[1]["image"], "an answer counts as a question asked"


def test_images_of_which_the_model_is_not_certain_count_more():
    chances = np.where(np.arange(40) % 2, 1.0, 0.4)
    given, found = asked(probabilities=chances)
    assert given["groups"][found[0]["image"]] == 1
    assert asked(probabilities=1.4 - chances)[1][0]["group"] == 2


def test_there_are_at_most_so_many_questions():
    assert len(asked(count=500)[1]) == ASKED
