"""The image array: an order without names, a split without labels, statistics, batches."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.data import channel_statistics, content_order, images_on, split_rows
from scan_core.errors import ScanError
from tests.scan_core.tiny import CPU, pixels


def ordered(array):
    return array[content_order(array)]


# --- content_order


def test_content_order_is_that_of_the_sha256_of_the_bytes():
    array = pixels(20)
    order = content_order(array)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(20))
    digests = [hashlib.sha256(array[row].tobytes()).hexdigest() for row in order]
    assert digests == sorted(digests)


def test_content_order_gives_the_same_array_whatever_the_sources_order():
    array = np.concatenate([pixels(20), pixels(5)])  # with copies
    shuffled = array[np.random.default_rng(0).permutation(25)]
    assert np.array_equal(ordered(array), ordered(shuffled))


def test_content_order_keeps_the_sources_order_of_equal_images_and_puts_them_side_by_side():
    array = np.repeat(pixels(4), [1, 3, 1, 2], axis=0)  # copies at 1,2,3 and 5,6
    order = content_order(array).tolist()
    assert [row for row in order if row in (1, 2, 3)] == [1, 2, 3]
    assert order.index(3) - order.index(1) == 2
    assert order.index(6) - order.index(5) == 1


# --- split_rows


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.2, 2), (11, 0.2, 3), (50, 0.5, 25), (9, 0.7, 7)])
def test_without_copies_val_holds_its_fraction_rounded_up(count, fraction, held):
    train, val = split_rows(ordered(pixels(count)), fraction, 0)
    assert len(val) == held
    assert train.dtype == val.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(count))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=6, max_size=20), st.floats(0.2, 0.6), st.integers(0, 9))
def test_identical_images_are_on_one_side(copies, fraction, seed):
    array = ordered(np.repeat(pixels(len(copies), size=4), copies, axis=0))
    train, val = split_rows(array, fraction, seed)
    sides = [{array[row].tobytes() for row in rows} for rows in (train, val)]
    assert not sides[0] & sides[1]
    assert len(train) + len(val) == len(array)
    # A group that no longer fits is left to train, so that val is never above its share and misses less than a group.
    wanted = int(np.ceil(fraction * len(array)))
    assert wanted - max(copies) < len(val) <= wanted


def test_a_large_group_of_copies_does_not_end_the_draw():
    """It does not fit, and the groups after it still do."""
    array = ordered(np.repeat(pixels(21), [30] + [1] * 20, axis=0))
    for seed in range(8):
        _, val = split_rows(array, 0.2, seed)
        assert len(val) == 10


def test_the_split_is_the_seeds():
    array = ordered(pixels(40))
    one, same, other = (split_rows(array, 0.25, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_every_image_can_be_drawn_for_val():
    array = ordered(pixels(20))
    drawn = {row for seed in range(40) for row in split_rows(array, 0.2, seed)[1].tolist()}
    assert drawn == set(range(20))


@pytest.mark.parametrize(("count", "fraction"), [(10, 0.05), (10, 0.95), (2, 0.5), (1, 0.5)])
def test_a_side_with_less_than_two_images_is_an_error(count, fraction):
    with pytest.raises(ScanError, match=r"data\.val_fraction is .* each needs at least 2"):
        split_rows(ordered(pixels(count)), fraction, 0)


def test_copies_of_one_image_cannot_be_split():
    with pytest.raises(ScanError, match=r"data\.val_fraction"):
        split_rows(np.repeat(pixels(1), 20, axis=0), 0.5, 0)


# --- channel_statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_all_pixels_by_channel(channels):
    array = pixels(30, channels)
    mean, std = channel_statistics(array)
    scaled = array.reshape(-1, channels) / 255
    assert mean == pytest.approx(scaled.mean(axis=0).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std(axis=0).tolist(), rel=1e-9)
    assert all(isinstance(value, float) for value in mean + std)


def test_statistics_do_not_depend_on_the_order_to_the_last_bit():
    array = pixels(30)
    assert channel_statistics(array) == channel_statistics(array[::-1])


def test_normalised_images_have_mean_0_and_deviation_1():
    array = pixels(30)
    data = images_on(CPU, array, *channel_statistics(array))
    values = data.normalize(data.batch(torch.arange(30)).float() / 255)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_images_of_one_colour_are_an_error(value):
    with pytest.raises(ScanError, match="of one colour"):
        channel_statistics(np.full((5, 8, 8, 3), value, dtype=np.uint8))


def test_one_channel_of_one_colour_is_an_error():
    array = pixels(5)
    array[..., 1] = 9
    with pytest.raises(ScanError, match="a channel's standard deviation is 0"):
        channel_statistics(array)


# --- Images


def test_a_batch_is_the_rows_in_their_order_with_channels_first():
    array = pixels(10)
    data = images_on(CPU, array, [0.5] * 3, [0.25] * 3)
    rows = torch.tensor([7, 0, 7, 3])
    batch = data.batch(rows)
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 3, 8, 8)
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), array[rows.numpy()])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_on_the_cpu_the_array_is_not_copied():
    array = pixels(4)
    data = images_on(CPU, array, [0.5] * 3, [0.25] * 3)
    assert np.shares_memory(data.pixels.numpy(), array)
    assert data.mean.dtype == data.std.dtype == torch.float32


def test_a_share_that_is_a_whole_number_gains_no_row_by_rounding():
    """0.07 of 100 is 7, although 0.07 * 100 is a little more in floating point."""
    pixels = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    assert len(split_rows(pixels, 0.07, 0)[1]) == 7
