"""A verdict without labels: the words on clouds whose structure is known, and each figure against its definition."""

import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans

from scan_core.errors import ScanError
from scan_core.evaluation import verdict
from scan_core.evaluation.verdict import (
    NEIGHBORS,
    NONE,
    STRONG,
    WEAK,
    group_figures,
    judge_groups,
    nearest_rows,
    unit_rows,
    whole_figures,
)


def clouds(sizes, spread=0.1, dimensions=32, seed=0):
    """Unit rows (N,D) around one direction for each size, in a random order, and the clouds (N,)."""
    rng = np.random.default_rng(seed)
    members = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit_rows(np.eye(dimensions)[members] + rng.normal(0, spread, (len(members), dimensions))), members


def blob(count=300, dimensions=32, seed=0):
    """Unit rows of one cloud that is longer in some dimensions, as after PCA."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(0, np.geomspace(1, 0.1, dimensions), (count, dimensions)))


def shuffled(embeddings, seed=0):
    """Each dimension permuted over the images; every one is a mixture of all, as a network's are."""
    rng = np.random.default_rng(seed)
    turned = embeddings @ np.linalg.qr(rng.normal(size=(32, 32)))[0]
    return unit_rows(rng.permuted(turned, axis=0))


def divided(embeddings, groups, seed=0):
    """What a method makes of images, with or without structure."""
    return KMeans(groups, n_init=2, random_state=seed).fit_predict(embeddings).astype(np.int64)


def words(found):
    return [group.word for group in found.groups]


# --- Words


@pytest.mark.parametrize("sizes", [(60, 60, 60), (200, 60, 20), (40,) * 12], ids=["equal", "unequal", "many"])
def test_clouds_that_lie_apart_are_strong(sizes):
    found = judge_groups(*clouds(sizes), len(sizes), 0)
    assert (found.word, words(found)) == (STRONG, [STRONG] * len(sizes))
    assert found.figures["strong_share"] == 1
    assert [group.size for group in found.groups] == list(sizes)


@pytest.mark.parametrize("groups", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["one blob", "noise", "shuffled clouds"])
def test_where_there_is_nothing_nothing_is_found(kind, groups):
    wrong = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        embeddings = {
            "one blob": blob(seed=seed),
            "noise": unit_rows(rng.normal(size=(300, 32))),
            "shuffled clouds": shuffled(clouds((75,) * 4, seed=seed)[0], seed),
        }[kind]
        wrong += judge_groups(embeddings, divided(embeddings, groups, seed), groups, 0).word != NONE
    assert wrong == 0


def test_groups_that_do_not_follow_the_clouds_are_none():
    embeddings, members = clouds((60, 60, 60))
    found = judge_groups(embeddings, np.random.default_rng(1).permutation(members), 3, 0)
    assert (found.word, words(found)) == (NONE, [NONE] * 3)


def test_a_group_of_two_clouds_is_less_than_strong_and_its_halves_say_why():
    embeddings, members = clouds((60,) * 6, spread=0.12)
    merged = np.maximum(members - 1, 0)  # clouds 0 and 1 together
    found = judge_groups(embeddings, merged, 5, 0)
    assert words(found) == [WEAK, STRONG, STRONG, STRONG, STRONG]
    assert found.groups[0].figures["halves"] > 0.95
    assert max(group.figures["halves"] for group in found.groups[1:]) < 0.7


def test_one_mixed_group_among_clouds_is_none_and_spoils_no_other():
    embeddings, members = clouds((60,) * 8)
    rng = np.random.default_rng(0)
    lost = rng.permutation(len(members))[:48]  # of all clouds
    members[lost] = 8
    found = judge_groups(embeddings, members, 9, 0)
    assert words(found)[8] == NONE
    assert NONE not in words(found)[:8]


def test_the_whole_is_weak_if_few_images_are_in_strong_groups():
    embeddings, members = clouds((50,) * 8, spread=0.15)
    found = judge_groups(embeddings, members // 4, 2, 0)
    assert (found.word, words(found)) == (WEAK, [WEAK] * 2)
    assert found.figures["structure"] > 0
    assert found.figures["strong_share"] < verdict.STRONG_WHOLE
    sizes = np.array([group.size for group in found.groups])
    expected = np.array([group.figures["purity"] for group in found.groups])
    assert found.figures["purity"] == pytest.approx((sizes * expected).sum() / sizes.sum())


# --- Little, empty, equal, many


def test_four_images_are_too_few_for_a_verdict():
    embeddings, members = clouds((2, 2))
    found = judge_groups(embeddings, members, 2, 0)
    assert (found.word, words(found), found.figures) == (NONE, [NONE] * 2, {})
    assert [group.size for group in found.groups] == [2, 2]


def test_groups_without_images_or_with_few_are_none_and_spoil_no_other():
    embeddings, members = clouds((60, 60, 60, 4))
    found = judge_groups(embeddings, members * 2, 8, 0)
    assert words(found) == [STRONG, NONE, STRONG, NONE, STRONG, NONE, NONE, NONE]
    assert found.word == STRONG
    assert found.groups[6].figures == found.groups[1].figures == {}


@pytest.mark.parametrize("copies", [2, 30])
def test_copies_are_no_obstacle(copies):
    embeddings, members = clouds((240 // copies,) * 3)
    order = np.random.default_rng(0).permutation(720)
    found = judge_groups(np.repeat(embeddings, copies, axis=0)[order], np.repeat(members, copies)[order], 3, 0)
    assert words(found) == [STRONG] * 3


def test_equal_images_and_a_single_group_have_no_structure():
    equal = np.repeat(unit_rows(np.ones((1, 8))), 90, axis=0)
    assert judge_groups(equal, np.arange(90) % 3, 3, 0).word == NONE
    assert judge_groups(clouds((90, 90))[0], np.zeros(180, np.int64), 3, 0).word == NONE


def test_more_groups_than_can_be_told_are_none():
    embeddings, _ = clouds((20, 20))
    assert judge_groups(embeddings, np.arange(40) % 30, 30, 0).word == NONE


def test_only_the_first_images_are_looked_at_but_all_are_counted(monkeypatch):
    monkeypatch.setattr(verdict, "SAMPLE", 150)
    embeddings, members = clouds((60, 60, 60))
    some = judge_groups(embeddings, members, 3, 0)
    longer = np.concatenate([embeddings[:150], blob(500)])
    more = judge_groups(longer, np.concatenate([members[:150], np.zeros(500, np.int64)]), 3, 0)
    assert [group.figures for group in more.groups] == [group.figures for group in some.groups]
    assert sum(group.size for group in more.groups) == 650


def test_a_seed_gives_one_verdict_and_does_not_touch_its_arguments():
    embeddings, members = clouds((50,) * 4, spread=0.2)
    before = embeddings.copy(), members.copy()
    one, two = (judge_groups(embeddings, members, 4, 3) for _ in range(2))
    assert one == two
    assert one != judge_groups(embeddings, members, 4, 4)
    assert (embeddings == before[0]).all()
    assert (members == before[1]).all()


# --- Figures against their definitions


def test_figures_of_groups_equal_loops():
    embeddings, members = clouds((30, 20, 40), spread=0.3)
    figures = group_figures(embeddings, members, 4, 0)
    cosine = embeddings.astype(np.float64) @ embeddings.T
    for group, size in enumerate((30, 20, 40)):
        inside = np.flatnonzero(members == group)
        near = [sorted(set(range(90)) - {each}, key=lambda other: -cosine[each, other])[:NEIGHBORS] for each in inside]
        assert figures["agreement"][group] == pytest.approx(np.mean(members[np.array(near)] == group))
        pairs = [cosine[one, other] for one, other in itertools.combinations(inside, 2)]
        assert figures["likeness"][group] == pytest.approx(np.mean(pairs), abs=1e-5)
        assert figures["relative_size"][group] == pytest.approx(np.log(size / (90 / 4)))
    assert figures["agreement"][3] == figures["stability"][3] == 0


def test_stability_is_the_jaccard_coefficient_with_new_clusters():
    embeddings, members = clouds((60,) * 3, spread=0.02)
    merged = np.minimum(members, 1)  # clouds 1 and 2 together: new clusters of three are halves of it
    assert group_figures(embeddings, members, 3, 0)["stability"] == pytest.approx(1)
    assert group_figures(embeddings, merged, 3, 0)["stability"] == pytest.approx([1, 0.5, 0], abs=0.26)


def test_halves_are_above_chance_only_where_there_are_two():
    one, _ = clouds((100,), spread=0.3)
    two, _ = clouds((50, 50), spread=0.05)

    def figure(rows):
        return group_figures(rows, np.zeros(len(rows), np.int64), 1, 0)["halves"][0]

    assert figure(two) == 1
    assert figure(one) < 0.5
    assert figure(one[:15]) == 0


def test_the_whole_is_compared_with_destroyed_features():
    embeddings, members = clouds((60,) * 5)
    real = whole_figures(embeddings, members, 0)
    assert all(0.5 < real[name] <= 1 for name in ("agreement", "margin", "density"))
    permuted = shuffled(embeddings)
    destroyed = whole_figures(permuted, divided(permuted, 5), 0)
    assert all(value < 0.2 for value in destroyed.values())  # chance is the best of several tries


def test_a_rows_neighbors_exclude_itself_even_among_copies():
    rows = np.repeat(clouds((5, 5))[0], 2, axis=0)
    nearest, cosine = nearest_rows(rows, 3)
    assert (nearest != np.arange(20)[:, None]).all()
    assert cosine.max(axis=1) == pytest.approx(1)


# --- Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, members: (rows[:-1], members), "89 embeddings and 90 clusters"),
        (lambda rows, members: (rows, members + 1), "clusters are 1 to 3; 0 to 2"),
        (lambda rows, members: (rows, members - 1), "clusters are -1 to 1; 0 to 2"),
        (lambda rows, members: (np.where(rows == rows.max(), np.nan, rows), members), "not finite"),
    ],
)
def test_what_does_not_fit_together_is_an_error(change, message):
    with pytest.raises(ScanError, match=message):
        judge_groups(*change(*clouds((30, 30, 30))), 3, 0)
