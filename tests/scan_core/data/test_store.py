"""The store: the same bytes for any order of the source, any chunks and any shards; duplicates; JPEGs."""

import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scan_core.data import store as module
from scan_core.data.chunks import decode_chunk
from scan_core.data.decode import target_of
from scan_core.data.ingest import load_chunks
from scan_core.data.store import plan_store, write_store
from scan_core.data.types import Item
from tests.tiny import change, data_settings, refused

DATA = data_settings(name="folder", path="images", size=8, val_fraction=0.3)
JPEG = change(DATA, store="jpeg", size=16)


def picture(seed, shape=(16, 16), gray=False):
    """An image unlike those of other seeds."""
    values = np.random.default_rng(seed).integers(0, 256, (*shape, 1 if gray else 3), dtype=np.uint8)
    return values[..., 0] if gray else values


def brighter(image):
    """A near duplicate of it."""
    return (np.minimum(image, 250) + 3).astype(np.uint8)


def pictures(count, gray=False):
    return [picture(seed, gray=gray) for seed in range(count)]


def chunks_of(folder, images, data, size=5, splits=None):
    """``images`` decoded into chunks of ``size``, and what ``load_chunks`` says of them; names are positions."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = zip(images, splits or [None] * len(images), strict=True)
    items = [Item(f"{number}", image, None, split) for number, (image, split) in enumerate(parts)]
    starts = range(0, len(items), size)
    for number, start in enumerate(starts):
        decode_chunk(items[start : start + size], [], target_of(data), folder, number)
    return load_chunks(folder, len(starts))


def make(folder, images, data=DATA, size=5, splits=None, shuffle=None):
    """The plan, stats.json, and the files of a store of the images, in another order for any ``shuffle``."""
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(images))
        images, splits = ([each[row] for row in order] if each else None for each in (images, splits))
    catalog, locations = chunks_of(folder / "chunks", images, data, size, splits)
    plan = plan_store(catalog, locations, catalog.splits, data, folder / "chunks")
    stats = write_store(plan, catalog, locations, data, folder / "chunks", folder / "store")
    return plan, stats, {path.name: path.read_bytes() for path in (folder / "store").iterdir()}


def shards_of(files):
    """The array that the shards make together."""
    return np.concatenate([np.load(io.BytesIO(files[name])) for name in sorted(files) if name.endswith(".npy")])


def statistics(images):
    """Mean and standard deviation of each channel, of images of any shapes (height,width,channels)."""
    flat = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]) / 255
    return [pytest.approx(flat.mean(axis=0).tolist(), rel=1e-12), pytest.approx(flat.std(axis=0).tolist(), rel=1e-9)]


def images_of(files):
    """The decoded images of JPEG shards."""
    images = []
    for name in sorted(name for name in files if name.endswith(".npy")):
        blob, table = files[name.replace(".npy", ".bin")], np.load(io.BytesIO(files[name]))
        assert table.dtype == np.int64 and table[0, 0] == 0 and table[-1, 1] == len(blob)
        assert np.array_equal(table[1:, 0], table[:-1, 1])
        for start, end, height, width in table.tolist():
            images.append(Image.open(io.BytesIO(blob[start:end])))
            assert images[-1].size == (width, height)
    return images


@pytest.mark.parametrize("gray", [False, True])
def test_rows_are_the_images_in_their_order_in_the_file_that_numpy_writes(tmp_path, gray):
    images = [picture(seed, (8, 8), gray) for seed in range(20)]
    plan, stats, files = make(tmp_path, images)
    assert sorted(plan.order) == list(range(20)) and plan.order.tolist() != list(range(20))
    array = np.stack([images[row] for row in plan.order]).reshape(20, 8, 8, 1 if gray else 3)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    assert files == {"pixels-00000.npy": file.getvalue()}
    mean, std = statistics(array[plan.rows["train"]])
    described = {
        "count": 20,
        "rows": [20],
        "channels": array.shape[3],
        "store": "array",
        "size": 8,
        "view": 8,
        "fit": "crop",
    }
    assert stats == {**described, "mean": mean, "std": std}


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(1, 14), st.integers(1, 14), st.booleans())
def test_shards_of_any_size_make_the_same_array_from_any_chunks(shard_rows, size, gray):
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        images = [*pictures(6, gray), *pictures(6, gray=True)]
        plan, _, files = make(Path(one), images)
        cut, stats, parts = make(Path(other), images, change(DATA, shard_rows=shard_rows), size)
        assert stats["rows"] == [min(shard_rows, 12 - start) for start in range(0, 12, shard_rows)]
        assert sorted(parts) == [f"pixels-{number:05d}.npy" for number in range(len(stats["rows"]))]
        assert np.array_equal(shards_of(parts), shards_of(files))
        assert np.array_equal(cut.order, plan.order)


@pytest.mark.parametrize("data", [DATA, JPEG], ids=["array", "jpeg"])
def test_the_sources_order_and_the_chunks_change_no_byte(tmp_path, data):
    images = [*pictures(8), *pictures(6, gray=True), *pictures(3), brighter(picture(5))]
    first, stats, files = make(tmp_path / "one", images, data)
    for number, size in enumerate((1, 4, 18)):
        plan, again, others = make(tmp_path / str(number), images, data, size, shuffle=number)
        assert others == files and again == stats
        assert all(np.array_equal(plan.rows[split], first.rows[split]) for split in first.rows)


def test_more_chunks_than_files_may_be_open(tmp_path, monkeypatch):
    _, _, files = make(tmp_path / "one", pictures(30), size=30)
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    opened, most = set(), []
    real_open, real_close = os.open, os.close

    def opening(*arguments):
        file = real_open(*arguments)
        opened.add(file)
        most.append(len(opened))
        return file

    def closing(file):
        opened.discard(file)
        real_close(file)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "close", closing)
    _, _, others = make(tmp_path / "many", pictures(30), size=1)
    assert others == files and len(most) >= 30 and max(most) == 2 and not opened


def test_a_chunk_that_is_cut_off_is_an_error(tmp_path):
    catalog, locations = chunks_of(tmp_path, pictures(12), DATA)
    plan = plan_store(catalog, locations, catalog.splits, DATA, tmp_path)
    (tmp_path / "000001.bin").write_bytes(b"short")
    said = f"000001.bin is cut off; delete {tmp_path} to decode it again"
    refused(lambda: write_store(plan, catalog, locations, DATA, tmp_path, tmp_path / "store"), said)


@pytest.mark.parametrize("size", [1, 3, 6, 12])
def test_gray_images_among_others_are_stored_in_color(tmp_path, size):
    images = [*pictures(6, gray=True), *pictures(6), np.repeat(picture(0, gray=True)[..., None], 3, axis=2)]
    plan, stats, files = make(tmp_path, images, size=size)
    array = shards_of(files)
    assert stats["channels"] == 3 and array.shape == (13, 8, 8, 3)
    for row, image in zip(array, plan.order, strict=True):
        assert (row == row[..., :1]).all() == (image not in range(6, 12))
    assert [finding[:2] for finding in plan.findings] == [("12", "duplicate")]


@pytest.mark.parametrize("data", [DATA, JPEG, change(DATA, protocol="all")], ids=["array", "jpeg", "all"])
def test_a_color_image_among_gray_ones_moves_no_other(tmp_path, data):
    gray = pictures(40, gray=True)
    plan, stats, _ = make(tmp_path / "gray", gray, data)
    other, mixed, _ = make(tmp_path / "mixed", [*gray, picture(99)], data)
    assert (stats["channels"], mixed["channels"]) == (1, 3)
    assert [row for row in other.order if row < 40] == plan.order.tolist()
    for split in ("train", "val"):
        sides = [set(each.order[each.rows[split]].tolist()) for each in (plan, other)]
        assert sides[1] - {40} == sides[0]


def test_statistics_of_jpegs_are_those_of_the_pixels_before_they_are_encoded(tmp_path):
    images = [picture(seed, (16, 16 + 4 * seed)) for seed in range(10)]
    plan, stats, _ = make(tmp_path, images, JPEG)
    assert [stats["mean"], stats["std"]] == statistics([images[row] for row in plan.order[plan.rows["train"]]])


@pytest.mark.parametrize(
    ("mean", "std"), [((0.4914, 0.4822, 0.4465), (0.2, 0.2, 0.2)), ((0.0, 0.5, 1.0), None), (None, (0.2, 0.3, 1.0))]
)
@pytest.mark.parametrize("data", [DATA, JPEG], ids=["array", "jpeg"])
def test_given_statistics_take_the_place_of_those_measured(tmp_path, data, mean, std):
    """And all else stays as it is, to the byte."""
    _, measured, files = make(tmp_path / "one", pictures(12), data)
    _, stats, others = make(tmp_path / "two", pictures(12), change(data, mean=mean, std=std))
    given = {name: list(values) for name, values in (("mean", mean), ("std", std)) if values}
    assert others == files and stats == measured | given


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(("gray", "values", "channels"), [(False, 1, 3), (True, 3, 1), (False, 4, 3), (False, 0, 3)])
def test_given_statistics_are_one_per_channel(tmp_path, name, gray, values, channels):
    refused(
        lambda: make(tmp_path, pictures(12, gray), change(DATA, **{name: (0.5,) * values})),
        f"data.{name} has {values} values; one per channel, {channels}, is allowed",
    )
    assert make(tmp_path / "fits", pictures(12, True), change(DATA, **{name: (0.5,)}))[1][name] == [0.5]


@pytest.mark.parametrize(("empty", "said"), [
    ((0, 1, 2), "all images have one and the same color: its standard deviation is 0"),
    ((2,), "channel 2 is constant: its standard deviation is 0; check the source, or set data.std"),
])  # fmt: skip
def test_an_empty_channel_needs_a_given_deviation(tmp_path, empty, said):
    """Two-color microscopy has nothing in blue."""
    images = pictures(12)
    for image in images:
        image[..., list(empty)] = 77
    refused(lambda: make(tmp_path, images, change(DATA, protocol="all")), said)
    _, stats, _ = make(tmp_path / "given", images, change(DATA, std=(0.2, 0.3, 1.0), protocol="all"))
    assert stats["std"] == [0.2, 0.3, 1.0]


@pytest.mark.parametrize("shard_rows", [1, 3, 4, 100])
def test_jpeg_shards_decode_to_the_images_and_are_cut_anywhere_the_same_bytes(tmp_path, shard_rows):
    shapes = [(16, 16), (16, 40), (50, 16), (16, 64)]
    coarse = [Image.fromarray(picture(seed, (3, 3))) for seed in range(11)]
    images = [
        np.asarray(image.resize(shapes[seed % 4][::-1], Image.Resampling.BICUBIC)) for seed, image in enumerate(coarse)
    ]
    images[4] = images[4][..., 0].copy()
    plan, stats, files = make(tmp_path / "shards", images, change(JPEG, shard_rows=shard_rows))
    found = images_of(files)
    assert len(found) == stats["count"] == 11 and sum(stats["rows"]) == 11 and len(files) == 2 * len(stats["rows"])
    for image, row in zip(found, plan.order, strict=True):
        wanted = Image.fromarray(images[row])
        assert image.size == wanted.size and image.mode == wanted.mode
        assert np.abs(np.asarray(image, int) - np.asarray(wanted, int)).mean() < 6
    whole = make(tmp_path / "whole", images, JPEG)[2]["jpeg-00000.bin"]
    assert b"".join(files[f"jpeg-{number:05d}.bin"] for number in range(len(stats["rows"]))) == whole


# --- duplicates

ALIKE = change(DATA, size=32)  # of smaller images nobody can tell


def test_of_small_images_only_equal_ones_are_alike(tmp_path):
    plan = make(tmp_path, [*pictures(8), picture(0), brighter(picture(1))], change(DATA, size=31))[0]
    assert [finding.kind for finding in plan.findings] == ["duplicate"]


def test_copies_share_a_side_and_near_copies_that_do_not_are_reported(tmp_path):
    images = [*pictures(16), *pictures(4), *map(brighter, pictures(16)[4:12])]
    alike = [(number, 16 + number) for number in range(12)]
    crossings = set()
    for seed in range(5):
        plan, stats, _ = make(tmp_path / str(seed), images, change(ALIKE, split_seed=seed))
        val = set(plan.order[plan.rows["val"]].tolist())
        crossing = {pair for pair in alike if (pair[0] in val) != (pair[1] in val)}
        assert stats["count"] == 28 and plan.across == len(crossing) and crossing <= set(alike[4:])
        assert [finding.kind for finding in plan.findings] == ["duplicate"] * 4 + ["near_duplicate"] * 8
        said = [f for f in plan.findings if f.reason.endswith(", which is on the other side of the split")]
        assert {int(finding.name) for finding in said} <= {number for pair in crossing for number in pair}
        assert len(said) == len(crossing)
        crossings |= crossing
    assert crossings


def test_a_copy_of_a_val_image_that_is_near_train_is_counted_too(tmp_path):
    """Three copies in val, one near them in train, and an image of val alone."""
    images = [*pictures(4), brighter(picture(9)), *[picture(9)] * 3, picture(10)]
    plan = make(tmp_path, images, ALIKE, splits=["train"] * 5 + ["val"] * 4)[0]
    assert plan.across == 3


def test_thumbnails_are_those_of_the_positions(tmp_path):
    locations = chunks_of(tmp_path, pictures(23), DATA)[1]
    order = np.random.default_rng(0).permutation(23)[:17]
    thumbs, positions = module._Thumbs(tmp_path, locations, order), np.array([3, 16, 3, 0, 11])
    each = [np.load(tmp_path / f"{row // 5:06d}.npz")["thumbs"][row % 5] for row in order[positions]]
    assert np.array_equal(thumbs(positions), np.stack(each))
    assert not (tmp_path / "thumbs.npy").exists()


def test_dropping_leaves_out_exact_copies_alone_and_near_ones_name_their_first(tmp_path):
    images = [*pictures(16), *pictures(4), *map(brighter, pictures(16)[4:])]
    data = change(ALIKE, duplicates="drop")
    plan, *wanted = make(tmp_path / "one", images, data)
    assert wanted[0]["count"] == 28 == len(plan.rows["train"]) + len(plan.rows["val"])
    kept = plan.order.tolist()
    assert sorted(row % 16 if row < 20 else row - 16 for row in kept) == sorted([*range(16), *range(4, 16)])
    which = [row % 16 if row < 20 else row - 16 for row in kept]
    assert plan.copies.tolist() == [which.index(image) for image in which]
    for seed in range(3):
        assert make(tmp_path / str(seed), images, data, shuffle=seed)[1:] == tuple(wanted)


def test_kept_images_are_copies_of_none(tmp_path):
    images = [*pictures(8), *pictures(4), *map(brighter, pictures(4))]
    assert make(tmp_path / "keep", images, ALIKE)[0].copies.tolist() == list(range(16))
    plan = make(tmp_path / "together", images, change(ALIKE, duplicates="together"))[0]
    which = [row % 8 if row < 12 else row - 12 for row in plan.order.tolist()]
    assert len(which) == 16 and plan.copies.tolist() == [which.index(image) for image in which]


def test_copies_of_a_near_duplicate_go_with_it(tmp_path):
    """Also if the first of them is near another."""
    for seed in range(6):
        image = picture(100 + seed)
        images = [*pictures(8), *[image] * 3, *[brighter(image)] * 3]
        plan = make(tmp_path / str(seed), images, change(ALIKE, duplicates="drop"))[0]
        assert len(plan.order) == 10 and len(set(plan.copies.tolist())) == 9


def test_an_image_near_many_is_listed_once(tmp_path):
    flock = [np.clip(picture(50).astype(int) + step, 0, 255).astype(np.uint8) for step in range(6)]
    plan, _, _ = make(tmp_path, [*pictures(8), *flock], ALIKE)
    assert [finding.kind for finding in plan.findings] == ["near_duplicate"] * 5
    assert len({finding.name for finding in plan.findings}) == 5


@pytest.mark.parametrize("duplicates", ["keep", "together", "drop"])
def test_in_official_splits_nothing_is_dropped_and_what_crosses_them_is_counted(tmp_path, duplicates):
    images = [*pictures(8), picture(0), brighter(picture(1)), picture(20), picture(2), picture(2)]
    splits = ["train"] * 8 + ["val"] * 5
    plan, _, _ = make(tmp_path, images, change(ALIKE, duplicates=duplicates), splits=splits)
    found = [sorted(plan.order[plan.rows[split]].tolist()) for split in ("train", "val")]
    assert found == [list(range(8)), list(range(8, 13))]
    assert plan.across == 4 and len(plan.findings) == 4


def test_under_protocol_all_nothing_crosses(tmp_path):
    plan, _, _ = make(tmp_path, [*pictures(30), *pictures(30)], change(DATA, protocol="all"))
    assert plan.across == 0 and len(plan.rows["train"]) == 60 and 2 <= len(plan.rows["val"]) < 30


def test_equal_images_of_several_splits_have_rows_that_no_name_decides(tmp_path):
    images = [*pictures(6), *pictures(6), *pictures(6), picture(9)]
    splits = ["train"] * 6 + ["val"] * 6 + ["extra"] * 6 + ["train"]
    first, _, _ = make(tmp_path / "one", images, splits=splits)
    for seed in range(4):
        plan, _, _ = make(tmp_path / str(seed), images, splits=splits, shuffle=seed)
        assert all(np.array_equal(plan.rows[split], first.rows[split]) for split in ("pretext", "train", "val"))


@pytest.mark.parametrize(("extra", "count", "pretext", "train"), [
    ("pretext", 15, ["extra", "train"], ["train"]), ("train", 15, ["extra", "train"], ["extra", "train"]),
    ("none", 10, ["train"], ["train"]),
])  # fmt: skip
def test_what_lies_beyond_is_stored_where_it_is_for_something(tmp_path, extra, count, pretext, train):
    splits = ["train", "val", "extra"] * 5
    plan, stats, files = make(tmp_path, pictures(15), change(DATA, extra=extra), splits=splits)
    assert stats["count"] == len(shards_of(files)) == count
    for split, kinds in {"pretext": pretext, "train": train, "val": ["val"]}.items():
        assert sorted(splits[row] for row in plan.order[plan.rows[split]]) == sorted(5 * kinds)


@pytest.mark.parametrize("extra", ["pretext", "none"])
def test_nothing_but_what_lies_beyond_is_an_error(tmp_path, extra):
    said = "each needs at least 2"
    refused(lambda: make(tmp_path, pictures(5), change(DATA, extra=extra), splits=["extra"] * 5), said)
