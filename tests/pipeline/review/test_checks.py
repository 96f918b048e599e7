"""The share of sure images that are right."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.groups import edits
from pipeline.groups.apply import Grouping
from pipeline.review import checks
from tests.project import ROOT

SURE = np.array([True] * 18 + [False] * 4)


def contents():
    return [f"{row:032x}" for row in range(22)]


def test_nothing_is_promised_before_a_check(project):
    assert checks.promise(Grouping()) is None
    drawn = checks.to_check(Grouping(), contents(), SURE)
    assert sorted(drawn["images"]) == list(range(18)) and drawn["right"] == [None] * 18
    assert drawn == checks.to_check(Grouping(), contents(), SURE), "a reload asks the same"


@pytest.mark.parametrize(("right", "wrong"), [(5, 0), (3, 2), (0, 1)])
def test_the_interval_is_wilson_s(project, right, wrong):
    for row in range(right + wrong):
        checks.check(Grouping(), contents()[row], row < right)
    found, count = checks.promise(Grouping()), right + wrong
    z, share = norm.ppf(0.975), right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert (found["checked"], found["right"], found["void"]) == (count, right, False)
    assert (found["low"], found["high"]) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert checks.to_check(Grouping(), contents(), SURE)["right"].count(True) == right


def test_a_changed_answer_takes_the_place_of_the_first(project):
    for right in (False, True):
        checks.check(Grouping(), contents()[3], right)
    assert checks.promise(Grouping())["right"] == 1 == checks.promise(Grouping())["checked"]


@pytest.mark.parametrize(("change", "void"), [
    (lambda: edits.name(1, "dog"), False), (lambda: edits.ignore(1), False), (lambda: edits.merge([1, 2]), True),
    (lambda: edits.split(1), True), (lambda: edits.move({"a/0.jpg": contents()[0]}, 2), True),
])  # fmt: skip
def test_a_promise_is_void_once_groups_change_and_undone_it_holds_again(project, change, void):
    checks.check(Grouping(), contents()[0], True)
    change()
    assert checks.promise(Grouping())["void"] is void
    edits.undo()
    assert checks.promise(Grouping())["void"] is False
    change()
    checks.check(Grouping(), contents()[1], True)
    assert checks.promise(Grouping())["checked"] == (1 if void else 2), "what was said of other groups is left behind"
    assert set(json.loads(checks.FILE.read_text())) == {"of", "right"}


def test_the_interval_covers_the_truth_in_95_of_100_checks(project):
    """500 simulated checks of 30 images, at several shares."""
    rng, covered = np.random.default_rng(0), 0
    from scipy.stats import binomtest

    for _ in range(500):
        share = rng.uniform(0.6, 0.99)
        low, high = binomtest(int(rng.binomial(30, share)), 30).proportion_ci(checks.CONFIDENCE, method="wilson")
        covered += low <= share <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_what_is_proved_is_said_in_words_and_not_once_it_is_void(project):
    assert checks.promised(Grouping()) == ""
    for row in range(30):
        checks.check(Grouping(), f"{row:032x}", row != 3)
    assert checks.promised(Grouping()) == "sure images: 97 % right (30 checked; 95 %: 83 to 99)"
    edits.name(1, "dog")
    shutil.copy(ROOT / "dvc.yaml", project)
    said = CliRunner().invoke(app, []).stdout
    assert "checked      sure images: 97 % right" in said
    edits.merge([1, 2])
    assert checks.promised(Grouping()) == "" and "checked " not in CliRunner().invoke(app, []).stdout
