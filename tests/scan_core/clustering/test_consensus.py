"""What several clusterings have in common."""

import itertools

import numpy as np
import pytest

from scan_core.clustering.consensus import agreement, consensus, image_votes


def test_consensus_puts_together_what_most_heads_put_together_whatever_they_call_it():
    labels = np.repeat([0, 1, 2], 20)
    rng = np.random.default_rng(0)
    rows = []
    for order in itertools.permutations(range(3)):
        noisy = np.where(rng.random(60) < 0.2, rng.integers(0, 3, 60), labels)
        rows.append(np.array(order)[noisy])
    found = consensus(np.stack(rows), [1.0] * len(rows), 3, seed=0)
    assert max((found == np.array(order)[labels]).mean() for order in itertools.permutations(range(3))) > 0.95


@pytest.mark.parametrize(("votes", "winner"), [([1.0, 1.0, 5.0], 1), ([3.0, 3.0, 1.0], 0)])
def test_votes_decide_between_opinions(votes, winner):
    opinions = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    found = consensus(np.stack([opinions[0], opinions[0], opinions[1]]), votes, 2, seed=0)
    assert np.array_equal(found, opinions[winner]) or np.array_equal(found, 1 - opinions[winner])


@pytest.mark.parametrize("clusters", [2, 4])
def test_agreement_is_the_best_of_all_renamings_and_each_method_has_one_vote(clusters):
    assigned, names = np.random.default_rng(0).integers(0, clusters, (4, 25)), ["a", "b", "b", "c"]
    orders = list(itertools.permutations(range(clusters)))

    def share(a, b):
        return max((np.array(order)[assigned[a]] == assigned[b]).mean() for order in orders)

    wanted = [
        [(share(0, 1) + share(0, 2)) / 2, share(0, 3)],  # not with itself
        [share(1, 0), share(1, 2), share(1, 3)],
        [share(2, 0), share(2, 1), share(2, 3)],
        [share(3, 0), (share(3, 1) + share(3, 2)) / 2],
    ]
    np.testing.assert_allclose(agreement(assigned, names, clusters), [np.mean(each) for each in wanted])
    assert agreement(assigned[:1], ["a"], clusters) == [1.0]


@pytest.mark.parametrize("clusters", [2, 4])
def test_votes_are_the_shares_of_methods_that_agree_on_an_image_once_clusters_are_renamed(clusters):
    assigned = np.random.default_rng(0).integers(0, clusters, (5, 25))
    names = ["a", "b", "b", "silent", "c"]

    def agrees(head):
        orders = [np.array(order)[assigned[head]] == assigned[4] for order in itertools.permutations(range(clusters))]
        return max(orders, key=lambda equal: equal.sum())

    wanted = (agrees(0) + (agrees(1).astype(float) + agrees(2)) / 2) / 2
    np.testing.assert_allclose(image_votes(assigned, names, 4, clusters, "silent"), wanted)
    np.testing.assert_allclose(
        image_votes(assigned, names, 4, clusters).mean(), agreement(assigned, names, clusters)[4]
    )
    assert image_votes(assigned[:2], ["a", "silent"], 0, clusters, "silent").tolist() == [1.0] * 25
