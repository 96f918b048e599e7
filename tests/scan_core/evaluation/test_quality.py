"""Quality without labels: each measure against its definition, what it must not see, and where it cannot be."""

import ast
import inspect
import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import KFold, cross_val_score

from scan_core.evaluation import quality
from scan_core.evaluation.quality import (
    heads_ari,
    linear_predictability,
    neighbor_consistency,
    quality_scores,
    silhouette,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def groups(count=90, clusters=3, dimensions=8, spread=0.1, seed=0):
    """Unit rows around a direction for each cluster, and the clusters."""
    rng = np.random.default_rng(seed)
    assigned = rng.integers(clusters, size=count)
    centres = np.eye(dimensions)[:clusters]
    return unit(centres[assigned] + rng.normal(0, spread, (count, dimensions))), assigned


def nearest(embeddings, k):
    cosine = embeddings @ embeddings.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


# Each as a measure of embeddings (N,D) and clusters (N,).
MEASURES = {
    "heads_ari": lambda embeddings, clusters: heads_ari(np.stack([clusters, np.roll(clusters, 1) * 2 + 1, clusters])),
    "neighbor_consistency": lambda embeddings, clusters: neighbor_consistency(clusters, nearest(embeddings, 5)),
    "silhouette": silhouette,
    "linear_predictability": linear_predictability,
}
EVERY = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())


# --- All measures


def test_the_table_is_complete():
    embeddings, clusters = groups()
    scores = quality_scores(clusters, embeddings, nearest(embeddings, 5), np.stack([clusters, clusters]))
    assert set(scores) == set(MEASURES)
    assert all(type(value) is float for value in scores.values())


@EVERY
def test_renaming_clusters_changes_nothing(measure):
    embeddings, clusters = groups(spread=0.6, clusters=4)
    wanted = measure(embeddings, clusters)
    assert -1 < wanted < 1
    for names in ([3, 0, 2, 1], [7, 100, 12, 40]):
        assert measure(embeddings, np.array(names)[clusters]) == pytest.approx(wanted, abs=1e-12)


@EVERY
def test_scores_are_the_same_again(measure):
    embeddings, clusters = groups(spread=0.6)
    assert measure(embeddings, clusters) == measure(embeddings.copy(), clusters.copy())


@pytest.mark.parametrize("measure", ["neighbor_consistency", "silhouette", "linear_predictability"])
def test_clusters_that_are_apart_score_almost_1(measure):
    embeddings, clusters = groups(spread=0.01)
    assert MEASURES[measure](embeddings, clusters) > 0.99


def test_clusters_drawn_without_looking_score_as_chance():
    embeddings, _ = groups(count=3000, spread=0.3)
    clusters = np.random.default_rng(1).choice(3, size=3000, p=[0.6, 0.3, 0.1])
    assert neighbor_consistency(clusters, nearest(embeddings, 5)) == pytest.approx(0.36 + 0.09 + 0.01, abs=0.02)
    assert silhouette(embeddings, clusters) == pytest.approx(0, abs=0.05)
    assert linear_predictability(embeddings, clusters) == pytest.approx(0.6, abs=0.03)
    other = np.random.default_rng(2).permutation(clusters)
    assert heads_ari(np.stack([clusters, other])) == pytest.approx(0, abs=0.01)


def test_what_cannot_be_is_absent():
    embeddings, clusters = groups()
    neighbors = nearest(embeddings, 5)
    one = np.full(len(clusters), 7)
    assert set(quality_scores(clusters, embeddings, neighbors)) == set(MEASURES) - {"heads_ari"}
    assert set(quality_scores(clusters, embeddings, neighbors, clusters[None])) == set(MEASURES) - {"heads_ari"}
    assert quality_scores(one, embeddings, neighbors) == {"neighbor_consistency": 1.0}
    assert quality_scores(one, embeddings, neighbors[:, :0]) == {}


def test_labels_reach_no_measure():
    """As in the modules that train: neither imported nor taken."""
    tree = ast.parse(inspect.getsource(quality))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.startswith("scan_core")}
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not arguments & {"labels", "targets", "classes"}
    assert "clusters" in arguments


# --- Heads


def test_heads_agree_as_the_mean_of_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.integers(4, size=80)
    heads = np.stack([np.where(rng.random(80) < share, base, rng.integers(4, size=80)) for share in (1, 0.8, 0.5, 0.2)])
    pairs = [adjusted_rand_score(heads[i], heads[j]) for i, j in itertools.combinations(range(4), 2)]
    assert len(pairs) == 6
    assert heads_ari(heads) == pytest.approx(np.mean(pairs))


def test_heads_that_number_the_same_groups_differently_agree():
    clusters = np.arange(30) % 3
    assert heads_ari(np.stack([clusters, (clusters + 1) % 3, 2 - clusters])) == pytest.approx(1)


# --- Neighbours


def test_neighbor_consistency_is_the_loop_over_its_pairs():
    rng = np.random.default_rng(0)
    clusters, neighbors = rng.integers(3, size=20), rng.integers(20, size=(20, 4))
    together = [clusters[i] == clusters[j] for i in range(20) for j in neighbors[i]]
    assert 0 < np.mean(together) < 1
    assert neighbor_consistency(clusters, neighbors) == pytest.approx(np.mean(together))


# --- Silhouette


@pytest.mark.parametrize("clusters", [2, 3, 7])
@pytest.mark.parametrize("spread", [0.1, 0.6, 3.0])
def test_silhouette_is_scikit_learns_under_the_cosine_distance(clusters, spread):
    embeddings, assigned = groups(clusters=clusters, spread=spread)
    wanted = silhouette_score(embeddings.astype(np.float64), assigned, metric="cosine")
    assert silhouette(embeddings, assigned) == pytest.approx(wanted, abs=1e-6)


def test_silhouette_with_clusters_of_one_image_is_scikit_learns():
    embeddings, assigned = groups(count=30, spread=0.5)
    assigned[:2] = [8, 9]
    wanted = silhouette_score(embeddings.astype(np.float64), assigned, metric="cosine")
    assert silhouette(embeddings, assigned) == pytest.approx(wanted, abs=1e-6)


def test_silhouette_in_several_blocks_is_the_same(monkeypatch):
    embeddings, assigned = groups(spread=0.5)
    wanted = silhouette(embeddings, assigned)
    monkeypatch.setattr(quality, "BLOCK", 7)
    assert silhouette(embeddings, assigned) == pytest.approx(wanted, abs=1e-12)


def test_silhouette_of_exact_copies_is_1_apart_and_0_together():
    rows = np.repeat(unit(np.array([[3.0, 4.0, 0.0], [0.0, 1.0, 5.0]])), 4, axis=0)
    assert silhouette(rows, np.repeat([0, 1], 4)) == pytest.approx(1)
    assert silhouette(np.repeat(rows[:1], 8, axis=0), np.arange(8) % 2) == 0


def test_silhouette_of_clusters_that_are_swapped_is_negative():
    embeddings, clusters = groups(spread=0.05, clusters=2)
    wrong = clusters.copy()
    wrong[:10] = 1 - wrong[:10]
    assert silhouette(embeddings[:10], wrong[:10]) > 0.9  # swapped names are no matter
    assert silhouette(embeddings, wrong) < silhouette(embeddings, clusters) - 0.1


# --- Linear predictability


@pytest.mark.parametrize("clusters", [2, 3, 6])
@pytest.mark.parametrize("count", [47, 90])
def test_linear_predictability_is_scikit_learns_ridge(clusters, count):
    """The mean over images, not over folds, whose sizes may differ by one."""
    embeddings, assigned = groups(count, clusters, spread=0.7)
    right = 0
    for fit, held in KFold(5).split(embeddings):
        model = RidgeClassifier().fit(embeddings[fit].astype(np.float64), assigned[fit])
        right += (model.predict(embeddings[held].astype(np.float64)) == assigned[held]).sum()
    assert 0.3 < right / count < 0.99
    assert linear_predictability(embeddings, assigned) == pytest.approx(right / count, abs=1e-12)
    if count == 90:
        wanted = cross_val_score(RidgeClassifier(), embeddings.astype(np.float64), assigned, cv=KFold(5)).mean()
        assert linear_predictability(embeddings, assigned) == pytest.approx(wanted)


def test_linear_predictability_has_an_intercept():
    """Rows that all point almost the same way, as those of a network after ReLU do."""
    embeddings, clusters = groups(count=400, spread=0.05)
    assert linear_predictability(unit(embeddings + 2), clusters) > 0.95


@pytest.mark.filterwarnings("error")
def test_linear_predictability_with_tiny_clusters_is_no_error():
    embeddings, clusters = groups(count=40, clusters=2)
    clusters[3] = 17  # alone: whoever is fitted without it cannot know it
    assert linear_predictability(embeddings, clusters) == pytest.approx(39 / 40)
    only = np.zeros(40, dtype=int)
    only[0] = 1  # the other folds hold one cluster alone
    assert linear_predictability(embeddings, only) == pytest.approx(39 / 40)
    assert linear_predictability(embeddings[:5], np.arange(5)) == 0
    assert linear_predictability(embeddings[:4], np.arange(4) % 2) is None


def test_linear_predictability_uses_the_first_rows_as_many_as_the_clusters_ask_for(monkeypatch):
    monkeypatch.setattr(quality, "FIT_ROWS", 50)
    embeddings, clusters = groups(count=200, spread=0.01)
    beyond = clusters.copy()
    beyond[60:] = np.random.default_rng(0).integers(3, size=140)
    assert linear_predictability(embeddings, beyond) == pytest.approx(1)  # 60: 20 for each of 3
    assert linear_predictability(embeddings[:150], beyond[:150]) == pytest.approx(1)
    assert linear_predictability(embeddings, np.where(np.arange(200) == 59, (clusters + 1) % 3, clusters)) == 59 / 60
    monkeypatch.setattr(quality, "FIT_ROWS", 150)
    assert linear_predictability(embeddings, beyond) < 0.8
