"""Quality without labels: each score against scikit-learn or its definition, and when it is absent."""

import ast
import inspect
import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import KFold, cross_val_predict

from scan_core.evaluation import quality
from scan_core.evaluation.quality import (
    heads_ari,
    linear_predictability,
    neighbor_agreement,
    quality_scores,
    silhouette,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def groups(count=90, clusters=3, dimensions=8, spread=0.1, seed=0):
    """Unit rows around a direction for each cluster, and the clusters."""
    rng = np.random.default_rng(seed)
    assigned = rng.integers(clusters, size=count)
    centers = np.eye(dimensions)[:clusters]
    return unit(centers[assigned] + rng.normal(0, spread, (count, dimensions))), assigned


def nearest(embeddings, k):
    cosine = embeddings @ embeddings.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


# Each as a measure of embeddings (N,D) and clusters (N,).
MEASURES = {
    "heads_ari": lambda embeddings, clusters: heads_ari(np.stack([clusters, np.roll(clusters, 1) * 2 + 1, clusters])),
    "neighbor_agreement": lambda embeddings, clusters: neighbor_agreement(clusters, nearest(embeddings, 5)),
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


@pytest.mark.parametrize("measure", ["neighbor_agreement", "silhouette", "linear_predictability"])
def test_well_separated_clusters_score_almost_1(measure):
    embeddings, clusters = groups(spread=0.01)
    assert MEASURES[measure](embeddings, clusters) > 0.99


def test_random_clusters_score_as_chance():
    embeddings, _ = groups(count=3000, spread=0.3)
    clusters = np.random.default_rng(1).choice(3, size=3000, p=[0.6, 0.3, 0.1])
    assert neighbor_agreement(clusters, nearest(embeddings, 5)) == pytest.approx(0.36 + 0.09 + 0.01, abs=0.02)
    assert silhouette(embeddings, clusters) == pytest.approx(0, abs=0.05)
    assert linear_predictability(embeddings, clusters) == pytest.approx(0.6, abs=0.03)
    other = np.random.default_rng(2).permutation(clusters)
    assert heads_ari(np.stack([clusters, other])) == pytest.approx(0, abs=0.01)


def test_scores_that_the_data_does_not_allow_are_absent():
    embeddings, clusters = groups()
    neighbors = nearest(embeddings, 5)
    one = np.full(len(clusters), 7)
    assert set(quality_scores(clusters, embeddings, neighbors)) == set(MEASURES) - {"heads_ari"}
    assert set(quality_scores(clusters, embeddings, neighbors, clusters[None])) == set(MEASURES) - {"heads_ari"}
    assert quality_scores(one, embeddings, neighbors) == {"neighbor_agreement": 1.0}
    assert quality_scores(one, embeddings, neighbors[:, :0]) == {}


def test_no_score_takes_or_imports_labels():
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


# --- Neighbors


def test_neighbor_agreement_is_the_loop_over_its_pairs():
    rng = np.random.default_rng(0)
    clusters, neighbors = rng.integers(3, size=20), rng.integers(20, size=(20, 4))
    together = [clusters[i] == clusters[j] for i in range(20) for j in neighbors[i]]
    assert 0 < np.mean(together) < 1
    assert neighbor_agreement(clusters, neighbors) == pytest.approx(np.mean(together))


# --- Silhouette


@pytest.mark.parametrize("clusters", [2, 3, 7])
@pytest.mark.parametrize("spread", [0.1, 0.6, 3.0])
@pytest.mark.parametrize("alone", [0, 2])
def test_silhouette_equals_silhouette_score_under_the_cosine_distance(clusters, spread, alone):
    """Also with clusters of one image."""
    embeddings, assigned = groups(clusters=clusters, spread=spread)
    assigned[:alone] = 90 + np.arange(alone)
    wanted = silhouette_score(embeddings.astype(np.float64), assigned, metric="cosine")
    assert silhouette(embeddings, assigned) == pytest.approx(wanted, abs=1e-6)


def test_silhouette_in_several_blocks_is_the_same(monkeypatch):
    embeddings, assigned = groups(spread=0.5)
    wanted = silhouette(embeddings, assigned)
    monkeypatch.setattr(quality, "BLOCK", 7)
    assert silhouette(embeddings, assigned) == pytest.approx(wanted, abs=1e-12)


def test_silhouette_of_exact_copies_is_1_apart_and_0_together():
    rows = np.repeat(unit(np.array([[1.0, 2.0, 2.0], [0.0, 1.0, 5.0]])), 4, axis=0)
    assert silhouette(rows, np.repeat([0, 1], 4)) == pytest.approx(1)
    assert silhouette(np.repeat(rows[:1], 30, axis=0), np.arange(30) % 2) == 0  # rounding alone would give 0.0002


# --- Linear predictability


@pytest.mark.parametrize("clusters", [2, 3, 6])
@pytest.mark.parametrize("count", [47, 90])
def test_linear_predictability_equals_ridge_classifier_under_5_folds(clusters, count):
    embeddings, assigned = groups(count, clusters, spread=0.7)
    predicted = cross_val_predict(RidgeClassifier(alpha=1.0), embeddings.astype(np.float64), assigned, cv=KFold(5))
    assert 0.3 < np.mean(predicted == assigned) < 0.99
    assert linear_predictability(embeddings, assigned) == np.mean(predicted == assigned)


@pytest.mark.filterwarnings("error")
def test_linear_predictability_with_tiny_clusters_is_no_error():
    embeddings, clusters = groups(count=40, clusters=2)
    clusters[3] = 17  # a single image: the model that is fitted without it cannot predict its cluster
    assert linear_predictability(embeddings, clusters) == pytest.approx(39 / 40)
    only = np.zeros(40, dtype=int)
    only[0] = 1  # the model for the first fold is fitted on a single cluster
    assert linear_predictability(embeddings, only) == pytest.approx(39 / 40)
    assert linear_predictability(embeddings[:5], np.arange(5)) == 0
    assert linear_predictability(embeddings[:4], np.arange(4) % 2) is None


def test_linear_predictability_uses_enough_of_the_first_rows_for_the_number_of_clusters(monkeypatch):
    monkeypatch.setattr(quality, "FIT_ROWS", 50)
    embeddings, clusters = groups(count=200, spread=0.01)
    beyond = clusters.copy()
    beyond[60:] = np.random.default_rng(0).integers(3, size=140)
    assert linear_predictability(embeddings, beyond) == pytest.approx(1)  # 60: 20 for each of 3
    assert linear_predictability(embeddings[:150], beyond[:150]) == pytest.approx(1)
    assert linear_predictability(embeddings, np.where(np.arange(200) == 59, (clusters + 1) % 3, clusters)) == 59 / 60
    monkeypatch.setattr(quality, "FIT_ROWS", 150)
    assert linear_predictability(embeddings, beyond) < 0.8
