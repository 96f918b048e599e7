"""The reduction of frozen features: against scikit-learn's steps, and what it does not depend on."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from scan_core.models import reduction as module
from scan_core.models.reduction import fit_reduction


def spaces(count=60, sizes=(7, 5), seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, 4))
    return [
        (hidden @ rng.normal(size=(4, size)) * 3 + rng.normal(size=(count, size)) + 5).astype(np.float32)
        for size in sizes
    ]


def test_it_is_standardization_and_pca_of_all_spaces_together_with_rows_of_length_1():
    features = spaces()
    found = fit_reduction(features, 4)(features)
    wanted = normalize(PCA(4).fit_transform(StandardScaler().fit_transform(np.concatenate(features, axis=1))))
    signs = np.sign((found * wanted).sum(axis=0))
    np.testing.assert_allclose(found, wanted * signs, atol=2e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("block", [7, 60, 1000])
def test_blocks_change_nothing_and_new_images_are_reduced_as_they_were(monkeypatch, block):
    features = spaces()
    whole = fit_reduction(features, 4)(features)
    monkeypatch.setattr(module, "BLOCK", block)
    reduction = fit_reduction(features, 4)
    np.testing.assert_allclose(reduction(features), whole, atol=1e-6)
    np.testing.assert_allclose(reduction([space[50:] for space in features]), whole[50:], atol=1e-6)


def test_a_constant_dimension_is_ignored_and_there_are_no_more_dimensions_than_features():
    features = spaces(sizes=(6,))
    constant = [np.concatenate([features[0], np.full((60, 1), 3.0, np.float32)], axis=1)]
    np.testing.assert_allclose(fit_reduction(constant, 6)(constant), fit_reduction(features, 6)(features), atol=1e-6)
    assert fit_reduction(features, 100)(features).shape == (60, 6)


def test_the_largest_entry_of_each_component_is_positive():
    basis = fit_reduction(spaces(), 4).basis
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(4)] > 0).all()
