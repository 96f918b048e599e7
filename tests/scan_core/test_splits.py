"""An order without names, a split without labels, statistics."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.params import read_params
from scan_core.errors import ScanError
from scan_core.splits import channel_statistics, choose_rows, content_order, official, split_rows
from tests.scan_core.tiny import change, pixels

DATA = change(read_params(Path(__file__).parents[2] / "presets" / "digits.yaml").data, name="folder", path="images")


def digests(array):
    """(N,32) uint8: SHA-256 of each image."""
    hashed = [hashlib.sha256(image.tobytes()).digest() for image in array]
    return np.frombuffer(b"".join(hashed), np.uint8).reshape(-1, 32)


def ordered(array):
    return array[content_order(digests(array))]


def grouped(copies):
    """A group number for each row, of groups of these sizes, one after the other."""
    return np.repeat(np.r_[0, np.cumsum(copies)[:-1]], copies).astype(np.int64)


def choose(splits, groups=None, **values):
    groups = np.arange(len(splits)) if groups is None else groups
    return choose_rows(splits, groups, change(DATA, **values))


# --- content_order


def test_content_order_is_that_of_the_digests_as_text():
    hashed = digests(pixels(20))
    order = content_order(hashed)
    assert order.dtype == np.int64 and sorted(order) == list(range(20))
    text = [hashed[row].tobytes().hex() for row in order]
    assert text == sorted(text)


@given(st.lists(st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32]), max_size=20))
def test_content_order_is_a_stable_sort_of_bytes(values):
    hashed = np.frombuffer(b"".join(values), np.uint8).reshape(-1, 32)
    assert content_order(hashed).tolist() == sorted(range(len(values)), key=lambda row: values[row])


@pytest.mark.parametrize("place", range(32))
def test_every_byte_of_a_digest_counts(place):
    hashed = np.full((2, 32), 7, np.uint8)
    hashed[0, place] = 200
    assert content_order(hashed).tolist() == [1, 0]


def test_content_order_gives_the_same_array_whatever_the_sources_order():
    array = np.concatenate([pixels(20), pixels(5)])  # with copies
    shuffled = array[np.random.default_rng(0).permutation(25)]
    assert np.array_equal(ordered(array), ordered(shuffled))


def test_content_order_keeps_the_sources_order_of_equal_images_and_puts_them_side_by_side():
    order = content_order(digests(np.repeat(pixels(4), [1, 3, 1, 2], axis=0))).tolist()  # copies at 1,2,3 and 5,6
    assert [row for row in order if row in (1, 2, 3)] == [1, 2, 3]
    assert order.index(3) - order.index(1) == 2
    assert order.index(6) - order.index(5) == 1


# --- split_rows


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.2, 2), (11, 0.2, 3), (50, 0.5, 25), (9, 0.7, 7)])
def test_without_copies_val_holds_its_fraction_rounded_up(count, fraction, held):
    train, val = split_rows(np.arange(count), fraction, 0)
    assert len(val) == held
    assert train.dtype == val.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(count))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=6, max_size=20), st.floats(0.2, 0.6), st.integers(0, 9), st.randoms())
def test_a_group_is_on_one_side_wherever_its_rows_are(copies, fraction, seed, random):
    numbers = grouped(copies).tolist()
    random.shuffle(numbers)
    groups = np.array(numbers)
    train, val = split_rows(groups, fraction, seed)
    assert not set(groups[train]) & set(groups[val])
    assert len(train) + len(val) == len(groups)
    # A group that no longer fits is left to train, so that val is never above its share and misses less than a group.
    wanted = int(np.ceil(fraction * len(groups)))
    assert wanted - max(copies) < len(val) <= wanted


def test_a_large_group_of_copies_does_not_end_the_draw():
    """It does not fit, and the groups after it still do."""
    for seed in range(8):
        assert len(split_rows(grouped([30] + [1] * 20), 0.2, seed)[1]) == 10


def test_how_groups_are_numbered_changes_nothing():
    groups = grouped([1, 3, 1, 2, 1, 1, 4, 1])
    other = np.random.default_rng(0).permutation(100)[groups]
    for seed in range(5):
        assert np.array_equal(split_rows(groups, 0.3, seed)[1], split_rows(other, 0.3, seed)[1])


def test_the_split_is_the_seeds():
    one, same, other = (split_rows(np.arange(40), 0.25, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_every_image_can_be_drawn_for_val():
    drawn = {row for seed in range(40) for row in split_rows(np.arange(20), 0.2, seed)[1].tolist()}
    assert drawn == set(range(20))


def test_a_share_that_is_a_whole_number_gains_no_row_by_rounding():
    """0.07 of 100 is 7, although 0.07 * 100 is a little more in floating point."""
    assert len(split_rows(np.arange(100), 0.07, 0)[1]) == 7


# --- choose_rows


@pytest.mark.parametrize(("count", "fraction"), [(10, 0.05), (10, 0.95), (2, 0.5), (1, 0.5), (0, 0.5)])
def test_a_side_with_less_than_two_images_is_an_error(count, fraction):
    with pytest.raises(ScanError, match=r"^data\.val_fraction is 0\.\d+: of .* each needs at least 2$"):
        choose([None] * count, val_fraction=fraction)


def test_copies_of_one_image_cannot_be_split():
    with pytest.raises(ScanError, match=r"data\.val_fraction is 0\.5: of 20 images 20 would be for training and 0 for"):
        choose([None] * 20, np.zeros(20, np.int64), val_fraction=0.5)


@pytest.mark.parametrize("splits", [["train", "val", "val"], ["train", "train", "val"], ["val", "val", "extra"]])
def test_an_official_split_with_too_few_says_that_it_is_official(splits):
    with pytest.raises(ScanError, match="the source has a split of its own: of"):
        choose(splits, extra="pretext")


def test_too_few_for_the_fixed_tenth_blame_the_protocol():
    with pytest.raises(ScanError, match=r"data\.protocol is all: of 10 images 10 would .* and 1 for validation"):
        choose([None] * 10, protocol="all", val_fraction=0.5)


def test_without_a_split_of_its_own_the_seed_decides():
    groups = grouped([2, 1, 1, 3, 1, 1, 1])
    rows = choose([None] * 10, groups, val_fraction=0.3, split_seed=4)
    train, val = split_rows(groups, 0.3, 4)
    assert [rows[split].tolist() for split in ("pretext", "train", "val")] == [
        train.tolist(),
        train.tolist(),
        val.tolist(),
    ]
    assert all(each.dtype == np.int64 for each in rows.values())


def test_an_official_split_is_left_as_it_is_also_where_copies_cross_it():
    splits = ["val", "train", "val", "train", "train"]
    assert official(splits) and not official(["train", None, "extra"])
    for seed in range(3):
        rows = choose(splits, np.zeros(5, np.int64), split_seed=seed)
        assert rows["train"].tolist() == rows["pretext"].tolist() == [1, 3, 4]
        assert rows["val"].tolist() == [0, 2]


EXTRA = [
    ("pretext", [0, 2, 3, 5], [0, 3], [1, 4]),
    ("train", [0, 2, 3, 5], [0, 2, 3, 5], [1, 4]),
    ("none", [0, 3], [0, 3], [1, 4]),
]


@pytest.mark.parametrize(("extra", "pretext", "train", "val"), EXTRA)
def test_what_lies_beyond_is_for_what_the_setting_says(extra, pretext, train, val):
    rows = choose(["train", "val", "extra", "train", "val", "extra"], extra=extra)
    assert [rows[split].tolist() for split in ("pretext", "train", "val")] == [pretext, train, val]


@pytest.mark.parametrize("extra", ["pretext", "none"])
def test_what_lies_beyond_is_never_held_out(extra):
    splits = [None, "extra"] * 20
    rows = choose(splits, extra=extra, val_fraction=0.5)
    assert not set(rows["val"]) & set(range(1, 40, 2)) and not set(rows["train"]) & set(range(1, 40, 2))
    assert set(range(1, 40, 2)) <= set(rows["pretext"]) if extra == "pretext" else len(rows["pretext"]) == 10


@pytest.mark.parametrize("splits", [[None] * 40, ["train"] * 25 + ["val"] * 15])
def test_under_protocol_all_everything_is_trained_on_and_a_tenth_chooses(splits):
    groups = grouped([3] + [1] * 37)
    rows = choose(splits, groups, protocol="all", val_fraction=0.5)
    assert rows["train"].tolist() == rows["pretext"].tolist() == list(range(40))
    assert len(rows["val"]) == 4 and set(rows["val"]) <= set(range(40))
    assert rows["val"].tolist() == choose(splits, groups, protocol="all", val_fraction=0.2)["val"].tolist()


def test_under_protocol_all_alike_images_may_be_in_val():
    """Train has them all, so nothing is to be kept on one side; and a tenth of them is always there."""
    rows = choose([None] * 100, grouped([100]), protocol="all")
    assert len(rows["val"]) == 10 and len(rows["train"]) == 100


def test_a_group_that_leaves_no_val_is_named():
    with pytest.raises(
        ScanError, match=r"100 would be for training and 0 for validation; 100 of them are alike and stay"
    ):
        choose([None] * 100, grouped([100]), val_fraction=0.2)


def test_under_protocol_all_what_lies_beyond_is_not_clustered():
    rows = choose(["train"] * 20 + ["val"] * 20 + ["extra"] * 20, protocol="all", extra="pretext")
    assert rows["train"].tolist() == list(range(40)) and rows["pretext"].tolist() == list(range(60))
    assert len(rows["val"]) == 4 and rows["val"].max() < 40


# --- channel_statistics


def statistics(array):
    flat = array.reshape(len(array), -1, array.shape[3]).astype(np.int64)
    return channel_statistics(flat.sum(axis=1), (flat**2).sum(axis=1), array[..., 0].size)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_all_pixels_by_channel(channels):
    array = pixels(30, channels)
    mean, std = statistics(array)
    scaled = array.reshape(-1, channels) / 255
    assert mean == pytest.approx(scaled.mean(axis=0).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std(axis=0).tolist(), rel=1e-9)
    assert all(isinstance(value, float) for value in mean + std)


def test_statistics_do_not_depend_on_the_order_to_the_last_bit():
    array = pixels(30)
    assert statistics(array) == statistics(array[::-1])


def test_statistics_of_a_large_set_do_not_overflow():
    count, side = 10**7, 128**2  # white and black by turns
    sums = np.tile(np.array([[255 * side], [0]], np.int64), (500, 1))
    mean, std = channel_statistics(sums * (count // 1000), 255 * sums * (count // 1000), count * side)
    assert mean == [0.5] and std == pytest.approx([0.5])
