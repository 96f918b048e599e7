"""The verdict in words."""

import pytest

from pipeline.report.words import range_of, states_of, what_to_try, why

ESTIMATED = {"given": False, "number": 12, "low": 9, "high": 15}


def verdict(word, *groups, **images):
    return {"word": word, "groups": [{"word": each} for each in groups], "images": images}


@pytest.mark.parametrize(("given", "said"), [
    (verdict("strong", "strong", "strong"), "of 2 groups 2 hold together"),
    (verdict("weak", "weak", "strong", "none"), "of 3 groups 1 hold together, 1 look mixed, 1 cannot"),
    (verdict("none", "none"), "the groups cannot be told from groups of images without any structure"),
])  # fmt: skip
def test_the_reason_counts_the_groups(given, said):
    assert why(given).startswith(said)


def test_what_to_try_names_the_number_of_groups_if_it_was_estimated():
    assert what_to_try(verdict("strong"), ESTIMATED) == ""
    assert what_to_try(verdict("weak"), ESTIMATED).startswith("--groups 9, or other weights")
    assert what_to_try(verdict("weak"), {"given": True, "number": 12}).startswith("fewer groups, or")
    assert "--train" in what_to_try(verdict("none"), ESTIMATED)
    assert "fewer groups" in what_to_try(verdict("none"), ESTIMATED | {"low": 12})


def test_the_number_is_said_with_its_range_unless_it_was_given():
    assert range_of(ESTIMATED) == "12 groups (9 to 15 are plausible)"
    assert range_of({"given": True, "number": 7}) == "7 groups"


def test_all_three_states_are_counted():
    assert states_of(verdict("weak", sure=3)) == [("sure", 3), ("to check", 0), ("fits nowhere", 0)]
