"""Probes, which use labels: against scikit-learn and the definition, and with missing or random labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from scan_core.evaluation import probes
from scan_core.evaluation.probes import predict_knn, predict_linear, probe_scores


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def example(count=200, classes=4, spread=0.4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    return unit(np.eye(6)[labels] + rng.normal(0, spread, (count, 6))), labels


TRAIN, VAL = example(), example(100, seed=1)


def test_scores_are_shares_of_val_that_is_right():
    scores = probe_scores(*TRAIN, *VAL)
    assert scores == {
        "knn_acc": np.mean(predict_knn(*TRAIN, VAL[0]) == VAL[1]),
        "linear_probe_acc": np.mean(predict_linear(*TRAIN, VAL[0]) == VAL[1]),
    }
    assert all(type(value) is float and 0.7 < value < 1 for value in scores.values())
    assert probe_scores(*TRAIN, *VAL) == scores


def test_nearest_neighbors_vote_as_in_the_loop_of_the_definition():
    (train, labels), (val, _) = (
        example(400, spread=1.5),
        example(300, spread=1.5, seed=1),
    )  # so large that votes are close
    for row, found in zip(val.astype(np.float64), predict_knn(train, labels, val), strict=True):
        cosine = train.astype(np.float64) @ row
        votes = dict.fromkeys(range(4), 0.0)
        for place in np.argsort(-cosine)[:20]:
            votes[int(labels[place])] += np.exp(cosine[place] / 0.07)
        assert found == max(votes, key=votes.__getitem__)


def test_the_linear_probe_is_scikit_learns_on_standardized_features():
    scaler = StandardScaler().fit(TRAIN[0])
    model = LogisticRegression(max_iter=200).fit(scaler.transform(TRAIN[0]), TRAIN[1])
    assert (predict_linear(*TRAIN, VAL[0]) == model.predict(scaler.transform(VAL[0]))).all()


def test_the_linear_probe_is_fitted_on_no_more_than_the_cap(monkeypatch):
    monkeypatch.setattr(probes, "FIT_ROWS", 50)
    wrong = TRAIN[1].copy()
    wrong[50:] = 0
    wanted = predict_linear(TRAIN[0][:50], TRAIN[1][:50], VAL[0])
    assert (predict_linear(TRAIN[0], wrong, VAL[0]) == wanted).all()


def test_permuted_labels_score_as_chance():
    train, val = example(2000, spread=0.2), example(1000, spread=0.2, seed=1)
    rng = np.random.default_rng(0)
    scores = probe_scores(train[0], rng.permutation(train[1]), val[0], rng.permutation(val[1]))
    assert scores["knn_acc"] == pytest.approx(0.25, abs=0.05)
    assert scores["linear_probe_acc"] == pytest.approx(0.25, abs=0.05)


def test_rows_without_a_label_are_left_out_on_both_sides():
    train, val = TRAIN[1].copy(), VAL[1].copy()
    train[::3], val[::4] = -1, -1
    known, scored = train >= 0, val >= 0
    assert probe_scores(TRAIN[0], train, VAL[0], val) == probe_scores(
        TRAIN[0][known], train[known], VAL[0][scored], val[scored]
    )


def test_without_labels_on_either_side_there_is_nothing():
    assert probe_scores(TRAIN[0], np.full(200, -1), *VAL) == {}
    assert probe_scores(*TRAIN, VAL[0], np.full(100, -1)) == {}


@pytest.mark.filterwarnings("error")
def test_few_images_one_class_and_classes_not_seen_are_no_error():
    assert probe_scores(TRAIN[0][:3], np.array([4, 4, 4]), VAL[0][:4], np.array([4, 4, 4, 1])) == {
        "knn_acc": 0.75,
        "linear_probe_acc": 0.75,
    }
    names = np.array([10, 300, 7, 1])
    renamed = probe_scores(TRAIN[0], names[TRAIN[1]], VAL[0], names[VAL[1]])
    assert renamed == pytest.approx(probe_scores(*TRAIN, *VAL))
