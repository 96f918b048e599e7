"""Whether images belong to their groups: foreign ones are noticed, new ones of the same kind are not."""

from dataclasses import replace

import numpy as np
import pytest

from scan_core.evaluation import belonging
from scan_core.evaluation.belonging import (
    CHECK,
    NOWHERE,
    ODD,
    SURE,
    bank_of,
    fit_belonging,
    joined,
    judge_images,
    nearest_in_bank,
)
from scan_core.evaluation.verdict import NONE, WEAK, GroupVerdict, Verdict
from tests.scan_core.evaluation.test_verdict import clouds


def trusting(*words):
    return Verdict(WEAK, {}, tuple(GroupVerdict(word, 1, {}) for word in words))


def fit(features, members, verdict):
    """The bank of the first images, and the limits of their groups."""
    bank = bank_of([features])
    cosine, _ = nearest_in_bank([features[: len(bank)]], bank)
    return bank, fit_belonging(cosine, members[: len(bank)], verdict)


def judged(fitted, features, clusters):
    bank, belongs = fitted
    return judge_images(belongs, *nearest_in_bank([features], bank), clusters)


def share(words, word):
    return float((words == word).mean())


@pytest.fixture
def grouped():
    """Images of three clouds of several widths, of no unit length, and their groups."""
    embeddings, members = clouds((200, 200, 200), spread=0.15)
    return 7 * embeddings, members, fit(7 * embeddings, members, trusting(WEAK, WEAK, WEAK))


def test_images_of_another_kind_fit_nowhere_whatever_their_group_and_length(grouped):
    foreign = 3 * np.roll(clouds((50,), spread=0.15, seed=5)[0], 10, axis=1)
    for group in range(3):
        assert share(judged(grouped[2], foreign, np.full(50, group)), NOWHERE) == 1


def test_new_images_of_the_same_kind_fit():
    odd = []
    for seed in range(5):
        embeddings, members = clouds((150, 150), spread=0.2, seed=seed)
        fitted = fit(embeddings[:200], members[:200], trusting(WEAK, WEAK))
        odd.append(share(judged(fitted, embeddings[200:], members[200:]), NOWHERE))
    assert 0.01 < np.mean(odd) < ODD + 0.03


def test_images_of_the_bank_are_judged_like_new_ones(grouped):
    features, members, fitted = grouped
    assert share(judged(fitted, features, members), NOWHERE) == pytest.approx(ODD, abs=0.01)


def test_limits_are_quantiles_over_neighbors_without_the_image_itself(grouped):
    features, members, fitted = grouped
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -1)
    fifth = np.sort(cosine, axis=1)[:, -belonging.NEIGHBORS]
    wanted = [np.sort(fifth[members == group])[int(201 * ODD) - 1] for group in range(3)]
    assert fitted[1].limits == pytest.approx(wanted, abs=1e-3)


def test_sure_is_an_image_whose_neighbors_are_all_in_its_trusted_group(grouped):
    features, members, fitted = grouped
    assert share(judged(fitted, features, members), SURE) > 0.9
    assert share(judged(fitted, features, (members + 1) % 3), SURE) == 0
    distrusting = fit(features, members, trusting(NONE, WEAK, WEAK))
    words = judged(distrusting, features, members)
    assert share(words[members == 0], SURE) == 0
    assert share(words[members == 0], CHECK) > 0.9
    assert share(words[members == 1], SURE) > 0.9


def test_an_image_between_two_groups_is_to_check(grouped):
    between = clouds((1,), spread=0)[0] + np.roll(clouds((1,), spread=0)[0], 1, axis=1)
    loose = grouped[2][0], replace(grouped[2][1], limits=np.full(3, -1, np.float32))
    assert judged(loose, between, np.array([0])).tolist() == [CHECK]


def test_each_group_has_its_own_limit_unless_it_is_small():
    tight, wide = clouds((100, 0), spread=0.05)[0], np.roll(clouds((100, 0), spread=0.3, seed=1)[0], 5, axis=1)
    few = np.roll(clouds((8, 0), spread=0.05, seed=2)[0], 9, axis=1)
    order = np.random.default_rng(0).permutation(208)
    features, members = np.concatenate([tight, wide, few])[order], np.repeat([0, 1, 2], [100, 100, 8])[order]
    fitted = fit(features, members, trusting(*[WEAK] * 4))
    assert fitted[1].limits[0] > fitted[1].limits[1] + 0.3
    assert fitted[1].limits[2] == fitted[1].limits[3]
    assert fitted[1].limits[1] < fitted[1].limits[2] < fitted[1].limits[0]
    some = wide[:50]
    assert share(judged(fitted, some, np.zeros(50, np.int64)), NOWHERE) > 0.9
    assert share(judged(fitted, some, np.ones(50, np.int64)), NOWHERE) < 0.2


def test_the_bank_is_small_and_its_rows_the_first(grouped, monkeypatch):
    features, members, _ = grouped
    monkeypatch.setattr(belonging, "BANK", 100)
    fitted = fit(features, members, trusting(WEAK, WEAK, WEAK))
    assert (fitted[0].shape, fitted[0].dtype) == ((100, 32), np.float16)
    assert np.allclose(fitted[0], features[:100] / 7, atol=1e-3)
    assert (fitted[1].members == members[:100]).all()


def test_blocks_change_nothing(grouped, monkeypatch):
    features, members, fitted = grouped
    whole = judged(fitted, features, members)
    monkeypatch.setattr(belonging, "BLOCK", 7)
    assert (judged(fitted, features, members) == whole).all()


def test_few_and_equal_images_are_judged_without_an_error():
    features, members = clouds((2, 2))
    assert len(judged(fit(features, members, trusting(WEAK, WEAK)), features, members)) == 4
    equal = np.ones((30, 8), np.float32)
    fitted = fit(equal, np.zeros(30, np.int64), trusting(WEAK))
    assert judged(fitted, equal, np.zeros(30, np.int64)).tolist() == [SURE] * 30
    assert judged(fitted, equal[:0], np.zeros(0, np.int64)).shape == (0,)


def test_features_of_several_networks_count_alike():
    one, other = clouds((10,), spread=0.1)[0], clouds((10,), spread=0.1, seed=4)[0]
    both = joined([one, 100 * other])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(both @ both.T, (one @ one.T + other @ other.T) / 2, atol=1e-4)


def test_no_image_of_the_bank_is_its_own_neighbor():
    features, _ = clouds((40, 40))
    bank = bank_of([features])
    cosine, nearest = nearest_in_bank([features], bank)
    assert (nearest != np.arange(80)[:, None]).all() and (np.diff(cosine, axis=1) <= 0).all()
    whole = features @ features.T
    np.fill_diagonal(whole, -1)
    np.testing.assert_allclose(cosine, -np.sort(-whole, axis=1)[:, :10], atol=2e-3)
