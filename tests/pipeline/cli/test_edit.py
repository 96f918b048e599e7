"""``scan edit``: each change, its undoing, and what is refused."""

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.groups import file
from pipeline.groups.apply import read_predictions
from pipeline.groups.numbering import numbered
from tests.pipeline.groups.conftest import CENTERS, content_of, project, write_run

__all__ = ["project"]  # the fixture

CLUSTERS = [0] * 2 + [1] * 5 + [2] * 3 + [None]  # groups 3, 1, 2


def edit(*words):
    return CliRunner().invoke(app, ["edit", *map(str, words)])


def groups():
    return read_predictions()["group"].to_pylist()


@pytest.fixture(autouse=True)
def run(project):
    write_run(CLUSTERS)


def test_a_name_is_given_and_taken_away():
    assert edit("name", 1, " my dog ").stdout == "group 1 is 'my dog' now\n"
    assert file.load().names == {1: "my dog"}
    assert edit("name", 1, "").stdout == "group 1 has no name now\n"
    assert file.load().names == {}


def test_merged_groups_keep_a_name_and_can_be_taken_apart_again():
    edit("name", 2, "cat")
    assert edit("merge", 1, 2, 3).stdout == "groups 2, 3 are shown as group 1 now\n"
    assert set(groups()) == {1, None} and file.load().names == {1: "cat"}
    assert "groups 1, 2, 3 now" in edit("split", 1).stdout
    assert set(groups()) == {1, 2, 3, None}


def test_a_group_is_split_and_its_number_is_not_used_again():
    write_run([0] * 8 + [1] * 4, model=b"2", points=np.repeat(CENTERS[[0, 1, 2]], [3, 5, 4], axis=0))
    first = numbered().next
    one = groups()[0]
    assert edit("split", one).exit_code == 0
    assert groups()[:8] == [first + 1] * 3 + [first] * 5
    assert f"there is no group {one}" in edit("name", one, "x").stderr


def test_a_split_that_cannot_be_is_not_kept():
    before = numbered()
    assert "group 1 has too few images" in edit("split", 1).stderr
    assert file.load() == before and "no change to take back" in edit("undo").stderr


def test_images_are_moved_by_their_name_the_end_of_it_or_their_path():
    assert edit("move", 2, "a/0.jpg", "1.jpg", "/home/me/photos/a/2.jpg").stdout == "3 images are in group 2 now\n"
    assert groups()[:3] == [2, 2, 2]
    assert file.load_answers()[content_of(1)] == (2, "a/1.jpg")
    refused = edit("move", 2, "a/3.jpg", "none.jpg")
    assert "none.jpg is no image of the last run" in refused.stderr and groups()[3] == 1, "all are moved, or none"


def test_a_name_that_several_images_end_in_is_asked_back(project):
    write_run(CLUSTERS, model=b"2")
    assert "0.jpg may be" not in edit("move", 2, "0.jpg").stderr  # a/10.jpg is no image


def test_changes_are_undone_in_turn():
    edit("name", 1, "dog")
    edit("merge", 1, 2)
    edit("move", 1, "a/0.jpg")
    assert "2 more can be" in edit("undo").stdout
    assert groups()[0] == 3 and not file.ANSWERS.exists()
    edit("undo")
    assert file.load().merge == {} and file.load().names == {1: "dog"}
    edit("undo")
    assert file.load().names == {} and "there is no change to take back" in edit("undo").stderr


def test_ignored_groups_are_noted():
    edit("ignore", 2)
    assert file.load().ignore == (2,)
    edit("ignore", 2, "--no")
    assert file.load().ignore == ()


@pytest.mark.parametrize(("words", "said"), [
    (("name", 9, "x"), "there is no group 9; there are 1, 2, 3"),
    (("merge", 1), "got one group"),
    (("merge", 1, 1), "got one group"),
    (("merge", 1, 9), "there is no group 9"),
    (("split", 9), "there is no group 9"),
    (("move", 9, "a/0.jpg"), "there is no group 9"),
    (("name", 1, "a\nb"), "one line without spaces"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_and_changes_nothing(words, said):
    before = numbered(), file.load_answers()
    done = edit(*words)
    assert done.exit_code == 1 and said in done.stderr and done.stderr.startswith("scan: error: ")
    assert (file.load(), file.load_answers()) == before
    assert "no change to take back" in edit("undo").stderr


def test_a_group_that_is_merged_is_named_by_the_one_it_is_shown_as():
    edit("merge", 1, 2)
    assert "group 2 is shown as group 1; give that number" in edit("name", 2, "x").stderr
