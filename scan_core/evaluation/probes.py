"""Probes: how well the frozen embeddings predict classes if labels are used. No choice depends on them."""

import warnings

import numpy as np

NEIGHBORS, TEMPERATURE = 20, 0.07  # k as in DINO (Caron et al. 2021), weights as in Wu et al. 2018, eq. of section 3.4
FIT_ROWS = 20_000  # the linear model is fitted on the first rows: a sample, because rows are ordered by content hash


def probe_scores(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> dict[str, float]:
    """Accuracy on val of probes fitted on train: ``knn_acc`` and ``linear_probe_acc``.

    Train must not hold images of val. ``train`` (N,D) and ``val`` (M,D) have rows of length 1. The labels (N,) and
    (M,) are -1 if unknown; such rows are left out. Empty if either side has no label.
    """
    fit, score = train_labels >= 0, val_labels >= 0
    if not (fit.any() and score.any()):
        return {}
    labels = val_labels[score]
    predictions = {
        "knn_acc": predict_knn(train[fit], train_labels[fit], val[score]),
        "linear_probe_acc": predict_linear(train[fit], train_labels[fit], val[score]),
    }
    return {name: float((predicted == labels).mean()) for name, predicted in predictions.items()}


def predict_knn(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """(M,) the class with the largest weight among the 20 nearest rows of ``train`` (N,D).

    Each of them has the weight exp(cosine / 0.07) (Wu et al. 2018, section 3.4). ``val`` is (M,D), all rows have
    length 1, ``labels`` (N,) are any integers.
    """
    import faiss

    classes, index = np.unique(labels, return_inverse=True)
    k = min(NEIGHBORS, len(train))
    cosine, nearest = faiss.knn(
        np.ascontiguousarray(val), np.ascontiguousarray(train), k, metric=faiss.METRIC_INNER_PRODUCT
    )  # (M,k) each
    votes = np.zeros((len(val), len(classes)))
    np.add.at(votes, (np.arange(len(val))[:, None], index[nearest]), np.exp(cosine.astype(np.float64) / TEMPERATURE))
    return np.asarray(classes[votes.argmax(axis=1)])


def predict_linear(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """(M,) the class by logistic regression on (at most 20,000 rows of) ``train`` (N,D), each feature standardized."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, labels = train[:FIT_ROWS], labels[:FIT_ROWS]
    if (labels == labels[0]).all():
        return np.full(len(val), labels[0])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps change the score by less than its spread
        return np.asarray(probe.fit(train, labels).predict(val))
