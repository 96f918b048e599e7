"""Groups from stored embeddings: what each method proposes, and which proposal is kept."""

import itertools

import numpy as np
import pytest
import torch

from scan_core.clustering import candidates as module
from scan_core.clustering.candidates import (
    agreement,
    assign,
    classify,
    consensus,
    kept_head,
    log_probabilities,
    new_heads,
    probabilities,
    propose,
    scan_heads,
)
from scan_core.clustering.losses import scan_loss
from tests.scan_core.clustering.test_spectral import groups, mined
from tests.tiny import frozen_settings, refused

NAMES = ["k-means", "graph", "graph, SCAN loss", *["SCAN loss"] * 3, "consensus", "consensus, SCAN loss"]


def one_cluster_per_group(found, labels):
    return len({*zip(labels.tolist(), found.tolist(), strict=True)}) == len(set(labels.tolist()))


def proposed(sizes=(30, 30, 30), seed=0, **values):
    points, labels = groups(sizes)
    said = []
    return propose(points, mined(points, 5), frozen_settings(**values), seed, said.append), points, labels, said


def test_every_method_finds_plain_groups_and_the_kept_head_gives_their_probabilities():
    found, points, labels, said = proposed()
    assert found.names == NAMES and said == ["k-means", "graph", "SCAN loss", "consensus"]
    assigned = assign(torch.from_numpy(points), found.joined()).numpy()
    for name, row in zip(NAMES, assigned, strict=True):
        assert name == "SCAN loss" or one_cluster_per_group(row, labels), name
    assert found.kept == int(np.argmax(found.agreement)) and found.agreement == agreement(assigned, NAMES, 3)
    given = torch.from_numpy(points[:7])
    wanted = log_probabilities(given, found.heads[found.kept])[0]
    torch.testing.assert_close(kept_head(found)(given)[0].log_softmax(dim=1), wanted, rtol=1e-4, atol=1e-5)


def test_the_head_of_the_largest_agreement_is_kept(monkeypatch):
    monkeypatch.setattr(module, "agreement", lambda assigned, names, clusters: [0.1, 0.2, 0.3, 0.1, 0.9, 0.2, 0.8, 0.7])
    assert proposed()[0].kept == 4


def test_the_seed_decides_everything():
    one, again, other = (proposed(seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.joined(), again.joined(), strict=True))
    assert not torch.equal(one.joined()[0], other.joined()[0])


def test_too_few_images_or_neighbors_are_refused_and_as_many_clusters_as_images_have_no_graph():
    points, _ = groups((2, 1))
    near = mined(points, 2)

    def run(**values):
        return propose(points, near, frozen_settings(**values), 0, lambda _: None)

    refused(lambda: run(num_clusters=4), "cluster.num_clusters is 4", "3 images")
    refused(lambda: run(neighbors=3), "cluster.neighbors is 3", "2 neighbors were mined")
    assert "graph" not in run(num_clusters=3, neighbors=2).names


def test_the_first_step_of_the_heads_descends_the_scan_loss_by_hand():
    points, _ = groups((8, 8))
    near, given = torch.from_numpy(mined(points, 4)), torch.from_numpy(points)
    generator = torch.Generator().manual_seed(0)
    heads = new_heads(2, 2, 8, generator)
    weight, bias = (each.clone().requires_grad_() for each in heads)
    settings = frozen_settings(batch_size=99, lr=0.01)  # half of the images at most, the first of a permutation
    draws = torch.Generator().manual_seed(5)
    order = torch.randperm(16, generator=draws)[:8]
    partners = near[order, torch.randint(4, (8,), generator=draws)]
    log_p = [log_probabilities(given[rows], (weight, bias)) for rows in (order, partners)]
    scan_loss(*log_p, 2.0)[0].sum().backward()
    after = scan_heads(given, near, heads, 2.0, 1, settings, torch.Generator().manual_seed(5))
    for before, now, slope in ((heads[0], after[0], weight.grad), (heads[1], after[1], bias.grad)):
        torch.testing.assert_close(now, before - 0.01 * slope / (slope.abs() + 1e-8), rtol=0, atol=1e-5)  # Adam's first


def test_a_classifier_learns_labels_of_unseen_images_too():
    points, labels = groups((40, 40, 40))
    heads = classify(torch.from_numpy(points[::2]), torch.from_numpy(labels[::2]), 3, torch.Generator().manual_seed(0))
    assert np.array_equal(assign(torch.from_numpy(points[1::2]), heads)[0].numpy(), labels[1::2])


def test_consensus_puts_together_what_most_heads_put_together_whatever_they_call_it():
    labels = np.repeat([0, 1, 2], 20)
    rng = np.random.default_rng(0)
    rows = []
    for order in itertools.permutations(range(3)):
        noisy = np.where(rng.random(60) < 0.2, rng.integers(0, 3, 60), labels)
        rows.append(np.eye(3, dtype=np.float32)[np.array(order)[noisy]])
    found = consensus(np.stack(rows), 3, seed=0)
    assert max((found == np.array(order)[labels]).mean() for order in itertools.permutations(range(3))) > 0.95


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


def test_probabilities_are_those_of_each_head():
    points, _ = groups((4, 4))
    heads = new_heads(3, 2, 8, torch.Generator().manual_seed(0))
    found = probabilities(torch.from_numpy(points), heads)
    assert found.shape == (3, 8, 2)
    for head in range(3):
        logits = module.SHARPNESS * (points @ heads[0][head].numpy().T + heads[1][head].numpy())
        wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[head], wanted, rtol=1e-5)
