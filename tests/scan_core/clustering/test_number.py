"""The number of groups: on plain groups it is the true one; what is tried, and the interval."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from scan_core.clustering.number import Division, apart, divide, estimate_number, extremes, interval, numbers_to_try
from tests.scan_core.clustering.test_spectral import groups


def estimated(sizes, seed=0, shuffle=True):
    points, _ = groups(sizes)
    points = np.random.default_rng(seed).permutation(points) if shuffle else points
    reports = []
    return estimate_number(points, numbers_to_try(len(points)), seed, reports.append), reports


@pytest.mark.parametrize("sizes", [(40, 40), (40, 40, 40), (30,) * 6, (90, 30, 30, 15)])
def test_plain_groups_are_counted(sizes):
    found, _ = estimated(sizes)
    assert found.number == len(sizes) and found.low <= len(sizes) <= found.high <= 2 * found.low


def test_every_number_is_tried_once_and_reported():
    found, reports = estimated((30, 30, 30))
    assert [each.groups for each in found.tried] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert reports == list(range(1, 11))
    assert max(each.score for each in found.tried) <= 1
    found = found.as_json()
    assert found["given"] is False and found["number"] == 3 and found["tried"][0]["groups"] == 2


def test_the_same_seed_gives_the_same_estimate():
    assert estimated((30, 20, 25))[0] == estimated((30, 20, 25))[0]


@pytest.mark.parametrize(("count", "last"), [(4, 2), (16, 2), (24, 3), (80, 10), (800, 100), (10**6, 100)])
def test_numbers_to_try_rise_and_end_where_groups_would_be_small(count, last):
    numbers = numbers_to_try(count)
    assert numbers[0] == 2 and numbers[-1] <= last and numbers == sorted(set(numbers))
    assert last < 12 or numbers[-1] > last / 1.2
    assert all(other / one <= 1.5 for one, other in itertools.pairwise(numbers))


@pytest.mark.parametrize("count", [4, 5, 9])
def test_few_images_are_two_groups(count):
    points = groups((count, 1))[0]
    assert estimate_number(points, numbers_to_try(count + 1), 0, lambda _: None).number == 2


def test_images_that_are_all_alike_are_counted_without_an_error():
    points = np.tile(groups((1, 1))[0][:1], (40, 1))
    assert estimate_number(points, numbers_to_try(40), 0, lambda _: None).number >= 2


def test_only_the_sample_is_looked_at(monkeypatch):
    from scan_core.clustering import number

    monkeypatch.setattr(number, "SAMPLE", 60)
    points = groups((20, 20, 20, 40))[0]
    found = estimate_number(points, [2, 3, 4], 0, lambda _: None)
    assert found == estimate_number(points[:60], [2, 3, 4], 0, lambda _: None) and found.number == 3


def test_how_far_groups_are_apart_is_the_silhouette_by_image_and_by_group():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 4))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    clusters = rng.choice([0, 2, 3], 50, p=[0.7, 0.2, 0.1])
    values = silhouette_samples(points, clusters, metric="cosine")
    by_image, by_group = apart(points, clusters)
    assert by_image == pytest.approx(values.mean(), abs=1e-6)
    assert by_group == pytest.approx(np.mean([values[clusters == each].mean() for each in (0, 2, 3)]), abs=1e-6)
    assert apart(points, np.zeros(50, np.int64)) == (0.0, 0.0)
    assert extremes(np.array([0, 0, 0, 2])) == (0.75, 0.25)


def test_a_division_says_how_large_its_groups_are_and_whether_both_methods_find_them():
    points, _ = groups((60, 20))
    (found,) = divide(points, [2], 0, lambda _: None)
    assert (found.largest, found.smallest) == (0.75, 0.25) and found.agreement == 1.0 and found.score == 1.0


def tried(scores):
    return [Division(groups, score, 0, 0, 0, 0, 0) for groups, score in scores.items()]


def test_the_interval_lies_where_the_scores_are_high_and_holds_the_number():
    rising = tried({2: 0.1, 4: 0.1, 6: 0.2, 8: 1.0, 10: 0.9, 12: 0.85, 16: 0.8, 20: 0.2})
    assert interval(rising, 8) == (8, 16)
    falling = tried({2: 0.1, 4: 0.9, 6: 0.95, 8: 1.0, 10: 0.2, 12: 0.1, 16: 0.1, 20: 0.1})
    assert interval(falling, 8) == (4, 8)
    assert interval(tried({2: 1.0}), 2) == (2, 2)
    assert interval(tried({2: 0.2, 3: 0.5, 4: 1.0}), 4)[1] == 4
