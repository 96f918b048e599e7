"""The learning rate against the formula, and at the points where it must be known."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.training.schedule import learning_rate
from tests.tiny import optimizer


def rates(steps=4, epochs=10, **values):
    chosen = optimizer(lr=0.4, **values)
    return [learning_rate(chosen, step, steps, epochs) for step in range(steps * epochs)]


def test_constant_is_constant():
    assert rates(schedule="constant") == [0.4] * 40


def test_warmup_is_linear_to_the_rate_by_the_end_of_its_last_step():
    for schedule in ("constant", "cosine"):
        start = rates(schedule=schedule, warmup_epochs=2)[:8]
        assert start == pytest.approx([0.4 * step / 8 for step in range(1, 9)])


def test_cosine_is_its_formula_after_the_warmup():
    found = rates(schedule="cosine", warmup_epochs=2, final_lr=0.004)
    for step in range(8, 40):
        wanted = 0.004 + (0.4 - 0.004) * (1 + math.cos(math.pi * (step - 8) / 32)) / 2
        assert found[step] == pytest.approx(wanted)
    assert found[8] == pytest.approx(0.4)
    assert found[24] == pytest.approx((0.4 + 0.004) / 2)


def test_cosine_ends_at_the_final_rate():
    chosen = optimizer(lr=0.4, schedule="cosine", final_lr=4e-4)
    assert learning_rate(chosen, 40, 4, 10) == pytest.approx(4e-4)
    assert learning_rate(chosen, 39, 4, 10) == pytest.approx(4e-4 + (0.4 - 4e-4) * math.sin(math.pi / 80) ** 2)


def test_a_warmup_as_long_as_the_training_is_all_there_is():
    assert rates(schedule="cosine", warmup_epochs=10)[-1] == pytest.approx(0.4)
    assert rates(schedule="cosine", warmup_epochs=20)[-1] == pytest.approx(0.2)
    assert learning_rate(optimizer(lr=0.4, schedule="cosine", warmup_epochs=10), 40, 4, 10) == pytest.approx(0.4)


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5), st.floats(0, 0.4))
def test_rates_are_positive_and_cosine_never_rises_after_the_warmup(steps, epochs, warmup, final):
    found = rates(steps, epochs, schedule="cosine", warmup_epochs=warmup, final_lr=final)
    assert all(0 < rate <= 0.4 + 1e-12 for rate in found)
    after = found[warmup * steps :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
