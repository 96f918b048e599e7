"""groups.yaml and answers.csv: what may stand in them, and that they come back as they were written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.groups import file
from pipeline.groups.file import Groups
from tests.tiny import refused

FULL = Groups(
    names={1: "daisy", 3: "Ärger: „quoted“ #1"}, merge={4: 1}, split={2: (5, 6)}, ignore=(6,), clusters=(2, 1, 3, 4),
    next=7, model="ab",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _here(project):
    """Files are relative to the project."""


def test_what_is_written_is_read_and_says_what_each_part_is():
    file.save(FULL)
    assert file.load() == FULL
    text = file.FILE.read_text()
    assert '  1: "daisy"\n' in text and "# number: the group that it is shown as\nmerge:\n  4: 1\n" in text


def test_without_a_file_there_is_nothing_said():
    assert file.load() == Groups() and file.load_answers() == {}


@given(name=st.text(min_size=1, max_size=20).filter(lambda text: text == text.strip() and text.isprintable()))
def test_any_printable_name_survives(name, tmp_path_factory):
    groups = file.changed(FULL, names={1: name})
    file.save(groups)
    assert file.load().names == {1: name}


def test_a_person_may_write_by_hand_what_matters():
    file.FILE.write_text("names:\n  1: daisy\nclusters: [1, 2]\nnext: 3\n")
    assert file.load().names == {1: "daisy"} and file.load().shown == [1, 2]


@pytest.mark.parametrize(("text", "said"), [
    ("- a", "groups.yaml holds a list; names, merge"),
    ("next: 1\nnmes: {1: a}", "groups.yaml, line 2: nmes is no part of it; names, merge, split"),
    ("next: 3\nnames:\n  1: a\n  2: []\n", "groups.yaml, line 4: names.2 is []; input should be a valid string"),
    ("names: {9: a}\nclusters: [1, 2]\nnext: 3", "there is no group 9; there are 1, 2"),
    ('names: {1: "a\\tb"}\nclusters: [1]\nnext: 2', "one line"),
    ("names: {1: ' a'}\nclusters: [1]\nnext: 2", "one line"),
    ("names: {one: a}\nclusters: [1]\nnext: 2", "names.one is"),
    ("merge: {1: 2, 2: 1}\nclusters: [1, 2]\nnext: 3", "circle"),
    ("merge: {1: 2}\nsplit: {2: [3, 4]}\nclusters: [1, 2]\nnext: 5", "group 2 is in merge and in split"),
    ("split: {2: [1, 4]}\nclusters: [1, 2]\nnext: 5", "one number to two groups"),
    ("clusters: [1, 2]\nnext: 2", "one number to two groups"),
    ("names: [", "groups.yaml, line 1: 'names: [' opens a bracket"),
])  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(text, said):
    file.FILE.write_text(text)
    refused(file.load, "groups.yaml", said)


def test_groups_are_shown_after_merges_and_splits():
    assert FULL.shown == [1, 3, 5, 6]
    assert Groups(clusters=(1, 2, 3), merge={1: 2, 2: 3}, next=4).shown_as(1) == 3


def test_answers_come_back_and_a_wrong_line_is_named():
    answers = {"ab": (3, "a,b.jpg"), "aa": (1, "")}
    file.save_answers(answers)
    assert file.load_answers() == answers
    with file.ANSWERS.open("a") as opened:
        opened.write("ac,three,\n")
    refused(file.load_answers, "answers.csv, line 4", "group is 'three'")
    file.ANSWERS.write_text("image,group\n")
    refused(file.load_answers, "no columns content and group")
    file.save_answers({})
    assert not file.ANSWERS.exists()
