"""The one source there is: what it yields and that it always yields the same."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scan_core.settings import Data
from scan_core.sources import read_source


def read(size):
    return read_source(Data(name="digits", size=size, val_fraction=0.2, split_seed=0))


@pytest.mark.parametrize("size", [8, 16])
def test_digits_are_1797_gray_images_of_ten_classes(size):
    source = read(size)
    assert source.pixels.shape == (1797, size, size, 1)
    assert source.pixels.dtype == np.uint8
    assert source.labels.dtype == np.int64
    assert sorted(set(source.labels.tolist())) == list(range(10))
    assert source.classes == [str(digit) for digit in range(10)]
    assert len(set(source.names)) == len(source.names) == len(source.labels) == 1797


def test_digits_at_their_own_size_are_the_source_from_0_to_255():
    images = load_digits().images
    assert np.array_equal(read(8).pixels[..., 0], np.round(images / 16 * 255))


def test_labels_belong_to_their_images_at_every_size():
    small, large = read(8), read(16)
    assert np.array_equal(small.labels, load_digits().target)
    assert small.names == large.names
    means = [source.pixels.mean(axis=(1, 2, 3)) for source in (small, large)]
    assert np.corrcoef(*means)[0, 1] > 0.99


def test_reading_twice_gives_the_same_bytes():
    digests = {hashlib.sha256(read(12).pixels.tobytes()).hexdigest() for _ in range(2)}
    assert len(digests) == 1
