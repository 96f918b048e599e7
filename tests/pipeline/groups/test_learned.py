"""What was learned from answers: when it counts, for whom, and that it can be taken back."""

import numpy as np
import pytest

from pipeline.groups import edits, learned
from pipeline.groups.apply import Grouping, read_predictions
from pipeline.groups.learned import learn
from tests.pipeline.groups.conftest import content_of, write_run

KINDS, COUNT, MOVES = 4, 240, 20  # kinds 0 and 1 are in one cluster


def points():
    rng = np.random.default_rng(0)
    found = np.eye(KINDS, 16)[np.arange(COUNT) % KINDS] + rng.normal(0, 0.15, (COUNT, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def run(project):
    write_run([max(row % KINDS - 1, 0) for row in range(COUNT)], points=points())
    groups = np.array(read_predictions()["group"].to_pylist())
    return groups, int(groups[0]), int(groups[2])  # of all images, of kinds 0 and 1, and of kind 2


def move(rows, group):
    return edits.move({f"a/{row}.jpg": content_of(row) for row in rows}, group)


def shown():
    return np.array(read_predictions()["group"].to_pylist())


def test_the_kind_moves_with_the_next_run_and_not_before(run):
    groups, _, other = run
    moved = [row for row in range(COUNT) if row % KINDS == 1][:MOVES]
    move(moved, other)
    assert (shown() != groups).sum() == MOVES
    count = learn()
    after, rest = shown(), [row for row in range(COUNT) if row % KINDS == 1 and row not in moved]
    assert (after[rest] == other).mean() > 0.5 and count == (after != groups).sum() - MOVES > 10
    assert (after[moved] == other).all() and learn() is None, "there is nothing new"
    rows = read_predictions().select(["runner_up", "probability"]).to_pylist()
    assert rows[rest[0]]["runner_up"] == groups[rest[0]] or after[rest[0]] == groups[rest[0]]


def test_an_answer_that_is_taken_back_takes_what_follows_with_it_to_the_byte(run):
    groups, _, other = run
    before = read_predictions()
    move([row for row in range(COUNT) if row % KINDS == 1][:MOVES], other)
    learn()
    assert not read_predictions().equals(before)
    edits.undo()
    assert read_predictions().equals(before) and learn() is None
    assert np.array_equal(shown(), groups)


@pytest.mark.parametrize(("change", "counts"), [
    (lambda one, other: edits.name(one, "dog"), True), (lambda one, other: move([2], one), True),
    (lambda one, other: edits.merge([3, other]) if other != 3 else edits.merge([2, other]), True),
    (lambda one, other: edits.split(one), False), (lambda one, other: move([1], one), False),
])  # fmt: skip
def test_later_corrections_leave_it_unless_they_contradict_it(run, change, counts):
    groups, one, other = run
    moved = [row for row in range(COUNT) if row % KINDS == 1][:MOVES]  # 1 is one of them
    move(moved, other)
    learn()
    followed = [row for row in np.flatnonzero(shown() != groups).tolist() if row not in moved]
    change(one, other)
    now = shown()
    shown_as = Grouping().groups.shown_as(other)
    assert (now[followed] == shown_as).all() == counts


def test_a_photo_that_comes_later_follows_a_head_that_has_learned_the_groups(run):
    groups, _, other = run
    move([row for row in range(COUNT) if row % KINDS == 1][:MOVES], other)
    learn()
    grouping, new = Grouping(), points()[[1, 3]]
    found = grouping.apply(np.array([[0, 1], [2, 1]]), np.array([[0.6, 0.3]] * 2), ["new 1", "new 3"], new)
    assert found.group.tolist() == [other, groups[3]] and found.runner_up[0] == groups[1]


def test_a_new_model_or_a_damaged_file_is_no_reason_to_stop(run):
    _, _, other = run
    move([row for row in range(COUNT) if row % KINDS == 1][:MOVES], other)
    learn()
    learned.FILE.write_bytes(learned.FILE.read_bytes()[:200])
    assert Grouping().learned is None and learn() > 10
    write_run([max(row % KINDS - 1, 0) for row in range(COUNT)], model=b"2", points=points())
    assert Grouping().learned is None and learn() > 10
