"""Perceptual hashes against a float transform, near pairs against all pairs, groups against scipy."""

import io
from itertools import combinations
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance
from scipy.fft import dctn
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits, load_sample_images

from scan_core.data import duplicates as module
from scan_core.data.duplicates import (
    NEAR_BITS,
    NEAR_LEVELS,
    NEAR_MEAN,
    NEAR_PART,
    THUMB,
    WINDOW,
    exact_groups,
    first_of_copies,
    gray_of,
    joining,
    near_pairs,
    perceptual_hash,
)


def pairs_below(count):
    pair = st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True).map(sorted)
    return st.tuples(st.just(count), st.lists(pair, max_size=25))


PAIRS = st.integers(2, 12).flatmap(pairs_below)


def groups_of(count, pairs):
    """(count,) number of each row's group: rows linked by ``pairs``, also by others, are in one."""
    first, second = pairs.T
    return connected_components(coo_matrix((np.ones(len(pairs)), (first, second)), (count, count)), directed=False)[1]


NONE = np.empty((0, 2), np.int64)


def array_of(pairs):
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def thumb(image):
    return np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX).convert("RGB"))


def photos(count=60, seed=0):
    """Crops of two photos."""
    rng, crops = np.random.default_rng(seed), []
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        side = int(rng.integers(64, 200))
        top, left = (int(rng.integers(0, length - side)) for length in photo.shape[:2])
        crops.append(Image.fromarray(photo[top : top + side, left : left + side]))
    return crops


def all_pairs(hashes, thumbs):
    """What ``near_pairs`` is to find, by its definition, in floating point."""
    flat = thumbs.reshape(len(thumbs), thumbs[0].size if len(thumbs) else 1).astype(np.float64)
    level = flat - flat.mean(axis=1, keepdims=True)
    in_color = level.reshape(thumbs.shape)
    return [
        [a, b]
        for a, b in combinations(range(len(hashes)), 2)
        if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= NEAR_BITS
        and np.abs(level[a] - level[b]).mean() <= NEAR_LEVELS
        and abs(flat[a].mean() - flat[b].mean()) <= NEAR_MEAN
        and np.abs(uniform_filter(in_color[a] - in_color[b], (3, 3, 1))[1:-1, 1:-1]).max() <= NEAR_PART + 1e-9
    ]


def flips(hashes, bits, rng):
    """Each hash with that many of its lower 63 bits turned."""
    masks = [sum(1 << int(bit) for bit in rng.choice(63, bits, replace=False)) for _ in hashes]
    return hashes ^ np.array(masks, dtype=np.uint64)


def test_the_hash_is_that_of_a_float_transform_but_for_what_lies_at_the_median():
    rng = np.random.default_rng(0)
    thumbs = np.concatenate([
        rng.integers(0, 256, (50, THUMB, THUMB), dtype=np.uint8),
        gray_of(np.stack([thumb(crop) for crop in photos(30)])),
    ])  # fmt: skip
    hashed = thumbs.reshape(-1, 16, 2, 16, 2).sum(axis=(2, 4)).astype(np.float64)
    wanted = dctn(hashed, axes=(1, 2))[:, :8, :8].reshape(-1, 64)[:, 1:] / 4
    margin = wanted - np.median(wanted, axis=1, keepdims=True)
    hashes = perceptual_hash(thumbs)
    assert hashes.dtype == np.uint64
    level = hashed - hashed.mean(axis=(1, 2), keepdims=True)  # what is constant reaches no coefficient
    error = np.abs(level).sum(axis=(1, 2)) / module._SCALE  # rounding can move no coefficient further
    clear = np.abs(margin) > 2 * error[:, None]
    assert clear.mean() > 0.7
    for value, margins, sure in zip(hashes.tolist(), margin, clear, strict=True):
        bits = np.array([int(bit) for bit in f"{value:064b}"])
        assert bits[0] == 0
        assert np.array_equal(bits[1:][sure], (margins > 0)[sure].astype(int))
        assert bits.sum() <= 31


def test_the_hash_of_an_image_depends_neither_on_the_others_nor_on_its_brightness():
    thumbs = np.random.default_rng(1).integers(0, 200, (9, THUMB, THUMB), dtype=np.uint8)
    hashes = perceptual_hash(thumbs)
    assert hashes.tolist() == [perceptual_hash(each[None])[0] for each in thumbs]
    assert np.array_equal(hashes, perceptual_hash(thumbs + 40))
    flat = np.full((2, THUMB, THUMB), [[[0]], [[255]]], np.uint8)
    assert perceptual_hash(flat).tolist() == [0, 0] and perceptual_hash(thumbs[:0]).shape == (0,)


@pytest.mark.parametrize("bits", range(8))
def test_hashes_that_differ_in_up_to_five_bits_are_found_wherever_those_are(bits):
    rng = np.random.default_rng(bits)
    hashes, thumbs = rng.integers(0, 2**63, 120, dtype=np.uint64), np.zeros((240, THUMB, THUMB, 3), np.uint8)
    both = np.concatenate([hashes, flips(hashes, bits, rng)])
    found = near_pairs(both, thumbs.__getitem__)
    assert found.dtype == np.int64 and found.tolist() == all_pairs(both, thumbs)
    assert len(found) == (120 if bits <= 5 else 0)


def test_five_bits_side_by_side_or_one_in_each_block_are_found():
    spread = [[4 + 10 * block for block in range(6) if block != left] for left in range(6)]
    runs = [list(range(start, start + 5)) for start in range(59)]
    for places in [*spread, *runs]:
        hashes = np.array([0, sum(1 << place for place in places)], dtype=np.uint64)
        assert near_pairs(hashes, np.zeros((2, THUMB, THUMB, 3), np.uint8).__getitem__).tolist() == [[0, 1]], places


@settings(max_examples=60)
@given(st.lists(st.integers(0, 63), min_size=0, max_size=30), st.integers(0, 5), st.integers(0, 9))
def test_near_pairs_are_those_of_all_pairs(places, level, seed):
    """Hashes of few bits, so that many are near, and thumbnails of which some are too far apart."""
    rng = np.random.default_rng(seed)
    hashes = np.array([(1 << place) * 3 & (2**63 - 1) for place in places], dtype=np.uint64)
    thumbs = rng.choice(np.array([100 - level, 100 + level], np.uint8), (len(places), THUMB, THUMB, 3))
    assert near_pairs(hashes, thumbs.__getitem__).tolist() == all_pairs(hashes, thumbs)


@pytest.mark.parametrize("count", [0, 1, 2, WINDOW])
def test_equal_hashes_are_all_compared_a_part_of_the_thumbnails_at_a_time(count):
    thumbs = mock.Mock(side_effect=lambda positions: np.zeros((len(positions), THUMB, THUMB, 3), np.uint8))
    found = near_pairs(np.zeros(count, np.uint64), thumbs)
    assert found.shape == (count * (count - 1) // 2, 2)
    assert found.tolist() == [list(pair) for pair in combinations(range(count), 2)]
    assert all(len(call.args[0]) <= 1024 for call in thumbs.call_args_list)


def test_another_color_or_brightness_is_another_image():
    """The hash sees neither."""
    flat = np.array([[200, 0, 0], [0, 102, 0], [60, 60, 60], [84, 84, 84], [85, 85, 85]], np.uint8)
    thumbs = np.broadcast_to(flat[:, None, None], (5, THUMB, THUMB, 3))
    assert len(set(perceptual_hash(gray_of(thumbs)).tolist())) == 1
    assert near_pairs(perceptual_hash(gray_of(thumbs)), thumbs.__getitem__).tolist() == [[2, 3], [3, 4]]


def test_gray_is_that_of_pillow_within_a_level():
    colors = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    wanted = np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in colors]).astype(int)
    assert np.abs(gray_of(colors) - wanted).max() <= 1


def test_many_flat_images_are_copies_of_one():
    """More than are compared with each other: the first is with each."""
    count = 2 * WINDOW + 9
    thumbs = np.broadcast_to((np.arange(count) % 20).astype(np.uint8)[:, None, None, None], (count, THUMB, THUMB, 3))
    rng = np.random.default_rng(0)
    hashes = np.concatenate([perceptual_hash(gray_of(thumbs)), rng.integers(0, 2**63, 50, dtype=np.uint64)])
    thumbs = np.concatenate([thumbs, rng.integers(0, 256, (50, THUMB, THUMB, 3), dtype=np.uint8)])
    pairs = near_pairs(hashes, thumbs.__getitem__)
    assert len(pairs) <= len(hashes) * (6 * WINDOW + 1)
    assert first_of_copies(len(hashes), NONE, pairs).tolist() == [0] * count + list(range(count, count + 50))
    assert len(joining(len(hashes), pairs)) == count - 1


def test_a_thumbnail_that_differs_by_more_is_no_near_duplicate():
    """The same hash is not enough: a checkerboard that the lowest coefficients cannot see."""
    board = (np.indices((THUMB, THUMB)).sum(axis=0) % 2)[..., None].repeat(3, axis=2)
    for level, found in ((4, 1), (5, 0)):
        thumbs = np.stack([np.full(board.shape, 100), 100 + level * (2 * board - 1)]).astype(np.uint8)
        assert len(near_pairs(np.zeros(2, np.uint64), thumbs.__getitem__)) == found


@pytest.mark.parametrize(("level", "found"), [(9, 1), (12, 0)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 29), (29, 0), (13, 20)])
def test_a_picture_that_differs_in_one_part_is_no_near_duplicate(corner, level, found):
    """One percent of the picture, in one color: the mean difference is next to nothing."""
    thumbs = np.full((2, THUMB, THUMB, 3), 100, np.uint8)
    top, left = corner
    thumbs[1, top : top + 3, left : left + 3, 1] += level
    assert len(near_pairs(np.zeros(2, np.uint64), thumbs.__getitem__)) == found


def scene(rng, animal=None, side=(480, 640)):
    """A frame of a fixed camera, with the noise of its sensor, and an animal if ``animal`` is its color and size."""
    coarse = np.random.default_rng(7).normal(110, 40, (8, 10, 3)).clip(0, 255).astype(np.uint8)
    frame = np.asarray(Image.fromarray(coarse).resize(side[::-1], Image.Resampling.BICUBIC)).astype(float)
    frame = Image.fromarray((frame + rng.normal(0, 4, frame.shape) + rng.normal(0, 3)).clip(0, 255).astype(np.uint8))
    if animal:
        color, (width, height) = animal
        left, top = int(rng.integers(20, side[1] - width)), int(rng.integers(200, side[0] - height))
        ImageDraw.Draw(frame).ellipse((left, top, left + width, top + height), fill=color)
    return frame


def test_frames_of_a_fixed_camera_are_near_duplicates_unless_an_animal_is_in_one():
    rng = np.random.default_rng(0)
    animals = [((190, 110, 50), (95, 48)), ((60, 60, 75), (52, 36)), ((50, 42, 38), (130, 80))]
    frames = [scene(rng) for _ in range(10)] + [scene(rng, animal) for animal in animals for _ in range(10)]
    thumbs = np.stack([thumb(frame) for frame in frames])
    first = first_of_copies(40, NONE, near_pairs(perceptual_hash(gray_of(thumbs)), thumbs.__getitem__))
    assert first[:10].tolist() == [0] * 10
    assert not (first[10:] < 10).any()  # each animal is told from the empty scene


def encoded(quality):
    def change(image):
        image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(buffer)

    return change


COPIES = {  # and the share of them that is found
    **{f"quality {quality}": (encoded(quality), share) for quality, share in ((50, 0.8), (75, 0.8), (90, 0.85))},
    "half": (lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), 0.85),
    "double": (lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC), 0.9),
    "brighter": (lambda image: image.point(lambda value: min(value + 8, 255)), 0.9),
    "more exposed": (lambda image: ImageEnhance.Brightness(image).enhance(1.05), 0.85),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.slow
def test_copies_of_photos_are_found_and_nothing_else(kind):
    change, share = COPIES[kind]
    crops = photos()
    square = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in (*crops, *map(change, crops))]
    thumbs = np.stack([thumb(image) for image in square])
    pairs = near_pairs(perceptual_hash(gray_of(thumbs)), thumbs.__getitem__)
    assert (pairs[:, 1] - pairs[:, 0] == len(crops)).all()
    assert len(pairs) >= share * len(crops)


@pytest.mark.parametrize("size", [8, 16])
def test_different_digits_are_no_near_duplicates(size):
    scaled = (load_digits().images * 255 / 16).round().astype(np.uint8)
    resized = [Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC) for digit in scaled]
    thumbs = np.stack([thumb(digit) for digit in resized])
    assert near_pairs(perceptual_hash(gray_of(thumbs)), thumbs.__getitem__).tolist() == []


@given(st.lists(st.integers(0, 3), max_size=20))
def test_exact_groups_name_the_first_of_equal_digests(values):
    values = sorted(values)
    digests = np.zeros((len(values), 32), np.uint8)
    digests[:, 31] = values
    assert exact_groups(digests).tolist() == [values.index(value) for value in values]


@given(PAIRS)
def test_joining_pairs_make_the_same_groups_without_a_circle(case):
    count, pairs = case
    kept = joining(count, array_of(pairs))
    groups = groups_of(count, array_of(pairs))
    assert np.array_equal(groups_of(count, kept), groups)
    assert len(kept) == count - len(set(groups.tolist()))
    assert all(pair in pairs for pair in kept.tolist())


@given(PAIRS, st.randoms())
def test_each_copy_is_alike_its_first(case, random):
    count, pairs = case
    first = first_of_copies(count, NONE, array_of(pairs))
    kept = first == np.arange(count)
    assert not any(kept[a] and kept[b] for a, b in pairs)
    for row in np.flatnonzero(~kept):
        assert kept[first[row]] and [first[row], row] in pairs
    random.shuffle(pairs)
    assert np.array_equal(first_of_copies(count, NONE, array_of(pairs + pairs)), first)


def test_what_equals_a_copy_is_a_copy_of_the_same():
    equal, near = array_of([[1, 2], [1, 3]]), array_of([[0, 1], [1, 4]])
    assert first_of_copies(5, equal, near).tolist() == [0, 0, 0, 0, 4]


def test_a_long_chain_is_one_group():
    chain = np.stack([np.arange(4999), np.arange(1, 5000)], axis=1)
    for pairs in (chain, chain[::-1], chain[np.random.default_rng(0).permutation(4999)]):
        assert len(joining(5000, pairs)) == 4999
        assert np.array_equal(first_of_copies(5000, NONE, pairs), np.arange(5000) // 2 * 2)
