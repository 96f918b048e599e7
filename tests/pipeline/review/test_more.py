"""Odd images, and what the page has folded away."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline import artifacts
from pipeline.params import read_params
from pipeline.review.images import StoredImages
from pipeline.review.more import kmeans_agreement, more
from pipeline.review.odd import LUMA, measure
from tests.pipeline.review.conftest import directions, write_whole_run


def photo(seed, blur=0.0, brightness=1.0, contrast=1.0):
    pixels = np.kron(np.random.default_rng(seed).integers(0, 256, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)), np.float32)
    return ((128 + contrast * (blurred - 128)) * brightness).astype(np.uint8)


def test_brightness_and_sharpness_by_hand():
    pixels = photo(0)[None]
    luma, brightest, sharpness = measure(pixels)
    gray = pixels[0].astype(float) / 255 @ LUMA
    laplacian = [
        gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1] - 4 * gray[y, x]
        for y in range(1, 95) for x in range(1, 95)
    ]  # fmt: skip
    assert luma[0] == pytest.approx(gray.mean(), rel=1e-4) and brightest[0] == pytest.approx(
        np.percentile(gray, 99), rel=1e-4
    )
    assert sharpness[0] == pytest.approx(np.var(laplacian) / gray.var(), rel=1e-3)


def test_blur_is_told_from_low_contrast_and_gray_images_are_measured_too():
    sharp, foggy, blurred = (measure(photo(0, **each)[None])[2][0] for each in ({}, {"contrast": 0.2}, {"blur": 4}))
    assert foggy == pytest.approx(sharp, rel=0.1) and blurred < 0.1 * sharp
    gray = measure(photo(0)[None, ..., :1])
    assert [each.shape for each in gray] == [(1,)] * 3


def test_agreement_with_k_means_does_not_depend_on_names():
    points, clusters = directions(), np.array([0] * 10 + [1] * 7 + [2] * 5)
    assert kmeans_agreement(points, clusters) == 1.0 == kmeans_agreement(points, np.array([2, 0, 1])[clusters])
    clusters[:3] = 1
    assert kmeans_agreement(points, clusters) == pytest.approx(19 / 22)
    assert kmeans_agreement(points, np.zeros(22, int)) == 1.0


def test_charts_scores_and_settings(project, images):
    found = more(images, read_params(), (2, 1, 3))
    assert [chart["title"] for chart in found["charts"]] == ["Group sizes"] and "<svg" in found["charts"][0]["svg"]
    assert found["kmeans"] == {"agreement": 1.0, "acc": None, "acc_result": None}
    assert "method: frozen" in found["settings"]


def test_classes_name_the_confusion_s_columns(project):
    labels = [0] * 10 + [1] * 12
    write_whole_run(project / "photos", labels)
    metrics = artifacts.load_json(artifacts.METRICS)
    metrics["train"]["selflabel"]["acc"], metrics["train"]["kmeans_embeddings"]["acc"] = 0.75, 0.5
    artifacts.save_json(artifacts.METRICS, metrics)
    artifacts.save_json(artifacts.LABELS / "classes.json", ["3", "7"])  # names that look like numbers
    rows = [
        {"actual": ["3", "7"][label], "predicted": ["3", "7", "cluster 2"][each]}
        for label, each in zip(labels, [0] * 10 + [1] * 7 + [2] * 5, strict=True)
    ]
    artifacts.save_csv(artifacts.PLOTS / "confusion.csv", rows, ["actual", "predicted"])
    found = more(StoredImages(), read_params(), (2, 1, 9))
    (chart,) = [chart for chart in found["charts"] if chart["title"] == "Confusion matrix"]
    assert ">group 9</text>" in chart["svg"]
    assert found["kmeans"]["acc"] == 0.5 and found["kmeans"]["acc_result"] == 0.75
