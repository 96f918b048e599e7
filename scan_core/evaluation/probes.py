"""What the embeddings hold, told with labels: extras that decide nothing, reported apart under ``uses_labels``."""

import warnings

import numpy as np

NEIGHBORS, TEMPERATURE = 20, 0.07  # k as in DINO (Caron et al. 2021), weights as in Wu et al. 2018, eq. of section 3.4
FIT_ROWS = 20_000  # the linear model is fitted on no more: rows are in the order of their content


def probe_scores(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> dict[str, float]:
    """``knn_acc`` and ``linear_probe_acc`` on val of what is fitted on train, which must not hold val's images.

    ``train`` (N,D) and ``val`` (M,D) are unit rows, the labels (N,) and (M,) -1 where unknown: those rows are left out.
    Empty where either side has no label.
    """
    fit, score = train_labels >= 0, val_labels >= 0
    if not (fit.any() and score.any()):
        return {}
    given = train[fit], train_labels[fit], val[score]
    wanted = val_labels[score]
    return {
        "knn_acc": float((predict_knn(*given) == wanted).mean()),
        "linear_probe_acc": float((predict_linear(*given) == wanted).mean()),
    }


def predict_knn(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """The class (M,) with the most weight among the 20 nearest of ``train`` (N,D): exp(cosine / 0.07) for each.

    Wu et al. 2018, section 3.4; ``val`` is (M,D), all rows are of unit length, ``labels`` (N,) any integers.
    """
    import faiss

    classes, index = np.unique(labels, return_inverse=True)
    k = min(NEIGHBORS, len(train))
    cosine, found = faiss.knn(
        np.ascontiguousarray(val), np.ascontiguousarray(train), k, metric=faiss.METRIC_INNER_PRODUCT
    )  # (M,k) each
    votes = np.zeros((len(val), len(classes)))
    np.add.at(votes, (np.arange(len(val))[:, None], index[found]), np.exp(cosine.astype(np.float64) / TEMPERATURE))
    return np.asarray(classes[votes.argmax(axis=1)])


def predict_linear(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """The class (M,) by logistic regression on (at most 20,000 rows of) ``train`` (N,D), each feature standardised."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, labels = train[:FIT_ROWS], labels[:FIT_ROWS]
    if (labels == labels[0]).all():
        return np.full(len(val), labels[0])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps end within the spread of the score
        return np.asarray(probe.fit(train, labels).predict(val))
