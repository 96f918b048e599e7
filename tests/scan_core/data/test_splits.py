"""An order without names, a split without labels, statistics."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.data.splits import channel_statistics, choose_rows, content_order, fewest, official, uniform_draws
from scan_core.errors import ScanError
from tests.tiny import change, data_settings, pixels, refused

DATA = data_settings(name="folder", path="images")


def some(count, seed=0):
    """``count`` digests of no particular images."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def choose(splits, hashed=None, **values):
    return choose_rows(splits, some(len(splits)) if hashed is None else hashed, change(DATA, **values))


def val_of(hashed, **values):
    """The digests that are drawn for val, as bytes."""
    return {hashed[row].tobytes() for row in choose([None] * len(hashed), hashed, **values)["val"]}


@given(st.lists(st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32]), max_size=20))
def test_content_order_is_a_stable_sort_of_bytes(values):
    hashed = np.frombuffer(b"".join(values), np.uint8).reshape(-1, 32)
    assert content_order(hashed).tolist() == sorted(range(len(values)), key=lambda row: values[row])


@pytest.mark.parametrize("place", range(32))
def test_every_byte_of_a_digest_counts(place):
    hashed = np.full((2, 32), 7, np.uint8)
    hashed[0, place] = 200
    assert content_order(hashed).tolist() == [1, 0]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_draw_is_the_hash_of_the_digest_and_the_seed(seed):
    hashed = some(20)
    salted = [digest.tobytes() + bytes.fromhex(f"{seed:016x}") for digest in hashed]
    wanted = [int(hashlib.sha256(each).hexdigest()[:16], 16) / 2**64 for each in salted]
    assert uniform_draws(hashed, seed).tolist() == wanted
    assert uniform_draws(hashed[:0], seed).shape == (0,)


@pytest.mark.parametrize("protocol", ["split", "all"])
def test_no_image_changes_sides_if_others_come_or_go(protocol):
    hashed = some(5001)
    before = val_of(hashed[:5000], protocol=protocol)
    assert val_of(hashed, protocol=protocol) - {hashed[5000].tobytes()} == before
    assert val_of(hashed[1000:5000], protocol=protocol) == before & {digest.tobytes() for digest in hashed[1000:]}
    assert val_of(hashed[np.random.default_rng(0).permutation(5000)], protocol=protocol) == before


@pytest.mark.parametrize(("protocol", "share"), [("split", 0.05), ("split", 0.5), ("split", 0.93), ("all", 0.1)])
def test_the_share_is_a_probability(protocol, share):
    """Over twenty seeds it is within four standard deviations, and it is not exact."""
    counts = [
        len(val_of(some(1000), split_seed=seed, protocol=protocol, val_fraction=share if protocol == "split" else 0.5))
        for seed in range(20)
    ]
    assert abs(sum(counts) - 20000 * share) < 4 * (20000 * share * (1 - share)) ** 0.5
    assert len(set(counts)) > 5
    assert min(counts) >= fewest(1000, share) > 1000 * share - 50


def test_the_split_is_the_seeds_and_every_image_can_be_in_val():
    drawn_sets = [val_of(some(40), split_seed=seed) for seed in range(40)]
    assert len({frozenset(each) for each in drawn_sets}) == 40
    assert len(set.union(*drawn_sets)) == 40


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=12), st.floats(0.05, 0.95), st.sampled_from(["split", "all"]))
def test_copies_share_a_side_also_in_tiny_sets(copies, fraction, protocol):
    hashed = np.repeat(some(len(copies)), copies, axis=0)
    try:
        rows = choose([None] * len(hashed), hashed, val_fraction=fraction, protocol=protocol)
    except ScanError:
        assert protocol == "split" and min(copies) == 1, "every image twice is enough"
        return
    sides = [{hashed[row].tobytes() for row in rows[split]} for split in ("train", "val")]
    assert not sides[0] & sides[1] if protocol == "split" else sides[1] <= sides[0]
    assert sorted(rows["val"]) == [row for row in range(len(hashed)) if hashed[row].tobytes() in sides[1]]


@pytest.mark.parametrize("count", [4, 5, 30])
@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_tiny_sets_have_two_images_on_each_side(count, fraction):
    for seed in range(20):
        rows = choose([None] * count, val_fraction=fraction, split_seed=seed)
        order = np.argsort(uniform_draws(some(count), seed))
        assert set(order[:2]) <= set(rows["val"]) and set(order[-2:]) <= set(rows["train"])
        assert len(rows["val"]) == {1e-9: 2, 1 - 1e-9: count - 2}.get(fraction, len(rows["val"]))
        both = choose([None] * count, protocol="all", split_seed=seed)
        assert set(order[:2]) <= set(both["val"]) and len(both["train"]) == count


@pytest.mark.parametrize(("count", "share", "wanted"), [(0, 0.2, 2), (30, 0.2, 2), (100, 0.5, 35), (1797, 0.2, 308)])
def test_fewest_are_three_standard_deviations_below_the_share_but_at_least_two(count, share, wanted):
    assert fewest(count, share) == wanted


COPIES = np.repeat(some(1), 20, axis=0)
DRAWN = "data.val_fraction is 0.5 and copies of an image share a side: of"
ALL = "data.protocol is all: of 1 images 1 would be for training and 1 for validation"
TOO_FEW = ["train", "val", "val"], ["train", "train", "val"], ["val", "val", "extra"]


@pytest.mark.parametrize(("splits", "hashed", "values", "said"), [
    *(([None] * count, None, {}, f"{DRAWN} {count} images") for count in (0, 1, 2, 3)),
    ([None] * 20, COPIES, {}, f"{DRAWN} 20 images 20 would be for training and 0 for validation"),
    *((splits, None, {}, "the source has a split of its own: of") for splits in TOO_FEW),
    ([None], None, {"protocol": "all"}, ALL),
])  # fmt: skip
def test_a_side_with_fewer_than_two_images_is_an_error_that_says_why(splits, hashed, values, said):
    refused(lambda: choose(splits, hashed, val_fraction=0.5, **values), said, "each needs at least 2; add images")


def test_without_a_split_of_its_own_the_draws_decide():
    rows = choose([None] * 100, val_fraction=0.3, split_seed=4)
    held_out = uniform_draws(some(100), 4) < 0.3
    assert rows["val"].tolist() == np.flatnonzero(held_out).tolist()
    assert rows["train"].tolist() == rows["pretext"].tolist() == np.flatnonzero(~held_out).tolist()
    assert all(each.dtype == np.int64 for each in rows.values())


def test_an_official_split_is_left_as_it_is_also_where_copies_cross_it():
    splits = ["val", "train", "val", "train", "train"]
    assert official(splits) and not official(["train", None, "extra"])
    for seed in range(3):
        rows = choose(splits, np.zeros((5, 32), np.uint8), split_seed=seed)
        assert rows["train"].tolist() == rows["pretext"].tolist() == [1, 3, 4]
        assert rows["val"].tolist() == [0, 2]


@pytest.mark.parametrize(("extra", "pretext", "train"), [
    ("pretext", [0, 2, 3, 5], [0, 3]), ("train", [0, 2, 3, 5], [0, 2, 3, 5]), ("none", [0, 3], [0, 3]),
])  # fmt: skip
def test_what_lies_beyond_is_for_what_the_setting_says(extra, pretext, train):
    rows = choose(["train", "val", "extra"] * 2, extra=extra)
    assert {split: each.tolist() for split, each in rows.items()} == {"pretext": pretext, "train": train, "val": [1, 4]}


@pytest.mark.parametrize("extra", ["pretext", "none"])
def test_what_lies_beyond_is_never_held_out(extra):
    rows, beyond = choose([None, "extra"] * 20, extra=extra, val_fraction=0.5), set(range(1, 40, 2))
    assert not beyond & {*rows["val"], *rows["train"]}
    assert set(rows["pretext"]) == {*rows["train"], *(beyond if extra == "pretext" else ())}


@pytest.mark.parametrize("fraction", [0.2, 0.5])
@pytest.mark.parametrize("splits", [[None] * 100, ["train"] * 85 + ["val"] * 15])
def test_under_protocol_all_everything_is_trained_on_and_a_tenth_chooses(splits, fraction):
    rows = choose(splits, protocol="all", val_fraction=fraction)
    assert rows["train"].tolist() == rows["pretext"].tolist() == list(range(100))
    assert rows["val"].tolist() == np.flatnonzero(uniform_draws(some(100), 0) < 0.1).tolist()


def test_under_protocol_all_what_lies_beyond_is_not_clustered():
    rows = choose(["train"] * 20 + ["val"] * 20 + ["extra"] * 20, protocol="all", extra="pretext")
    assert rows["train"].tolist() == list(range(40)) and rows["pretext"].tolist() == list(range(60))
    assert len(rows["val"]) >= 2 and rows["val"].max() < 40


def statistics(array):
    flat = array.reshape(len(array), -1, array.shape[3]).astype(np.int64)
    return channel_statistics(flat.sum(axis=1), (flat**2).sum(axis=1), array[..., 0].size)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_all_pixels_by_channel_in_any_order_to_the_last_bit(channels):
    array = pixels(30, channels)
    mean, std = statistics(array)
    scaled = array.reshape(-1, channels) / 255
    assert mean == pytest.approx(scaled.mean(axis=0).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std(axis=0).tolist(), rel=1e-9)
    assert all(isinstance(value, float) for value in mean + std)
    assert statistics(array[::-1]) == (mean, std)


def test_statistics_of_a_large_set_do_not_overflow():
    count, side = 10**7, 128**2  # white and black by turns
    sums = np.tile(np.array([[255 * side], [0]], np.int64), (500, 1))
    mean, std = channel_statistics(sums * (count // 1000), 255 * sums * (count // 1000), count * side)
    assert mean == [0.5] and std == pytest.approx([0.5])
