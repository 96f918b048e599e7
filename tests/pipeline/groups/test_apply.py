"""What a person reads: numbers, names, merges, splits and answers, applied to what the model says."""

import numpy as np
import pytest

from pipeline.groups import file
from pipeline.groups.apply import Grouping, embeddings_of, read_predictions
from pipeline.groups.numbering import numbered
from tests.pipeline.groups.conftest import CENTERS, content_of, write_run
from tests.tiny import refused

CLUSTERS = [0] * 2 + [1] * 5 + [2] * 3 + [None]  # groups 3, 1, 2


@pytest.fixture
def run(project):
    write_run(CLUSTERS)
    numbered()


def change(**values):
    file.save(file.changed(file.load(), **values))


def column(name):
    return read_predictions()[name].to_pylist()


def test_clusters_become_numbers_and_names_and_files_without_a_group_have_none(run):
    change(names={1: "daisy"})
    assert column("group") == [3] * 2 + [1] * 5 + [2] * 3 + [None]
    assert column("name") == [""] * 2 + ["daisy"] * 5 + [""] * 3 + [None]
    assert column("runner_up") == [1] * 2 + [2] * 5 + [3] * 3 + [None]
    assert column("split")[-1] == "rejected" and column("source")[-1] == "a/10.jpg"
    np.testing.assert_allclose(column("probability")[:-1], 0.6)


def test_merged_groups_are_one_and_their_probabilities_add_up(run):
    change(merge={3: 1})
    assert column("group")[:3] == [1, 1, 1]
    np.testing.assert_allclose(column("probability")[:3], [0.9, 0.9, 0.6])  # the runner-up of group 3 was 1
    assert column("runner_up")[:3] == [None, None, 2] and column("runner_up")[7] == 1
    assert column("runner_up_probability")[0] is None


def test_an_answer_holds_whatever_the_model_says_and_the_model_becomes_the_runner_up(run):
    file.save_answers({content_of(0): (2, "a/0.jpg"), content_of(2): (1, "")})
    assert column("group")[:3] == [2, 3, 1] and column("probability")[0] == column("probability")[2] == 1
    assert column("runner_up")[:3] == [3, 1, 2]
    change(merge={2: 1})
    assert column("group")[0] == 1, "an answer follows a merge"


def test_an_answer_for_a_group_that_is_not_there_is_refused(run):
    file.save_answers({content_of(0): (9, "")})
    refused(Grouping, "answers.csv", "no group 9", "1, 2, 3")


def test_a_split_group_becomes_its_kinds_the_larger_one_first(project):
    points = np.repeat(CENTERS[[0, 1, 2]], [3, 5, 4], axis=0)
    write_run([0] * 8 + [1] * 4, points=points)
    numbered()
    change(split={1: (3, 4)}, next=5)
    assert column("group") == [4] * 3 + [3] * 5 + [2] * 4
    near = CENTERS[[0]] + 0.1
    said = Grouping().apply(np.array([[0, 1]]), np.array([[0.8, 0.1]]), ["new"], near)
    assert said.group.tolist() == [4] and said.runner_up.tolist() == [2], "new images go to the nearest part"


def test_a_group_of_too_few_different_images_cannot_be_split(run):
    change(split={1: (4, 5)}, next=6)
    refused(column_of_groups, "group 1 has too few images to be split into 2")


def column_of_groups():
    return column("group")


def test_embeddings_are_found_by_row_in_train_and_in_val(run):
    ids = np.array([7, 0, 3])
    assert np.array_equal(embeddings_of(ids), CENTERS[[2, 0, 1]])


def test_a_single_cluster_has_no_runner_up(project):
    write_run([0] * 3, runner_up=[0, 0, 0])
    said = Grouping().apply(np.array([[0]]), np.array([[1.0]]), ["x"], CENTERS[:1])
    assert said.group.tolist() == [1] and said.runner_up.tolist() == [0]
