"""Numbers: the largest group is 1 at first; a group keeps its number over runs, and none is given twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.groups import file
from pipeline.groups.file import Groups
from pipeline.groups.numbering import MEMBERS, numbered, numbers_of_run, renumber
from tests.pipeline.groups.conftest import content_of, write_run


def test_the_largest_group_is_the_first(project):
    write_run([0] * 2 + [1] * 5 + [2] * 3 + [None])
    assert numbered().clusters == (3, 1, 2) and numbered().next == 4
    assert file.load().clusters == (3, 1, 2), "it is written"


def test_groups_keep_their_numbers_names_and_corrections_over_a_new_model(project):
    write_run([0] * 2 + [1] * 5 + [2] * 3)
    file.save(file.changed(numbered(), names={1: "five", 2: "three"}, merge={3: 1}, ignore=(2,)))
    write_run([1] * 2 + [2] * 5 + [0] * 3 + [3] * 9, model=b"new")
    groups = numbered()
    assert groups.clusters == (2, 3, 1, 4) and groups.next == 5
    assert groups.names == {1: "five", 2: "three"} and groups.merge == {3: 1} and groups.ignore == (2,)


def test_a_group_that_is_gone_takes_its_name_along_and_its_number_is_not_given_again(project):
    write_run([0] * 4 + [1] * 4)
    file.save(file.changed(numbered(), names={1: "one", 2: "two"}))
    write_run([0] * 4, model=b"second")
    assert numbered().clusters == (1,) and numbered().names == {1: "one"}
    write_run([0] * 4 + [1] * 4, model=b"third")
    assert numbered().clusters == (1, 3)


def test_the_same_model_changes_nothing(project):
    write_run([0] * 4 + [1] * 6)
    before = numbered()
    written = file.FILE.stat().st_mtime_ns
    assert numbered() == before and file.FILE.stat().st_mtime_ns == written


def test_a_group_that_shares_little_with_an_old_one_is_new(project):
    write_run([0] * 10 + [1] * 10)
    numbered()
    # Of old group 1 (images 0 to 9) the new cluster 0 has three, among ten of old group 2.
    write_run([0] * 3 + [1] * 7 + [0] * 10, model=b"new")
    assert numbered().clusters == (2, 1)


def test_a_group_of_new_images_with_a_handful_of_an_old_one_is_new(project):
    write_run([0] * 10 + [1] * 8)
    numbered()
    # All old images of the new cluster 1 are of group 2, which has gone; but they are 3 of 20, and 3 of 8.
    write_run([0] * 15 + [1] * 20, model=b"new")
    assert numbered().clusters == (1, 3)


def test_without_notes_of_members_all_groups_are_new(project):
    write_run([0] * 4 + [1] * 6)
    numbered()
    MEMBERS.unlink()
    write_run([0] * 4 + [1] * 6, model=b"new")
    assert numbered().clusters == (4, 3)


@given(clusters=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_numbers_are_distinct_and_below_the_next_one(clusters, seed):
    contents = [content_of(row) for row in range(len(clusters))]
    numbers, following = renumber(Groups(next=1 + seed), contents, np.array(clusters), 6)
    assert len(set(numbers)) == 6 and following == 7 + seed and set(numbers) == set(range(1 + seed, 7 + seed))
    sizes = np.bincount(clusters, minlength=6)
    assert (np.diff(sizes[np.argsort(numbers)]) <= 0).all()


def test_a_run_that_has_not_ended_has_the_numbers_that_it_will_have_also_beside_a_damaged_file(project):
    write_run([0] * 2 + [1] * 5 + [2] * 3)
    assert numbers_of_run(artifacts.PREDICTIONS) == (3, 1, 2) and not file.FILE.exists()
    numbered()
    write_run([1] * 2 + [2] * 5 + [0] * 9, model=b"new")
    assert numbers_of_run(artifacts.PREDICTIONS) == (2, 3, 1)
    file.FILE.write_text("groups: [")
    assert numbers_of_run(artifacts.PREDICTIONS) == (1, 3, 2)


def test_without_a_run_the_stage_that_is_missing_is_named(project):
    from tests.tiny import refused

    refused(numbered, "selflabel.safetensors is missing", "dvc repro")


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(0)
