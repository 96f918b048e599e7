"""Both stores: crops against slices and PIL, for any shards and threads; what is not copied; errors."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from scan_core.images import store as module
from scan_core.images.store import ArrayImages, JpegImages
from tests.tiny import CPU, jpeg_store, pack, pixels, refused

STATS = [0.5] * 3, [0.25] * 3
ROWS = torch.tensor([7, 0, 11, 7, 3, 4])
OFFSETS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.3, 0.9], [0.99, 0.01]])


def channels_last(batch):
    """The batch as an array (B,height,width,channels), which is how it lies in memory."""
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    return batch.permute(0, 2, 3, 1).numpy()


def pictures(shapes, channels=3, seed=0):
    """Smooth images of the given shapes, all different, that JPEG keeps well."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (len(shapes), 3, 4, channels), dtype=np.uint8)
    return [
        np.stack(
            [
                np.asarray(Image.fromarray(small[..., channel]).resize((width, height), Image.Resampling.BICUBIC))
                for channel in range(channels)
            ],
            axis=2,
        )
        for small, (height, width) in zip(coarse, shapes, strict=True)
    ]


SHAPES = [(12, 20), (20, 12), (12, 12), (13, 48)] * 3


def decoded(images, mode, quality=90):
    """What PIL reads of each image, one by one."""
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=quality)
        yield Image.open(buffer).convert(mode)


# --- both


@pytest.mark.parametrize("side", [8, 5])
def test_plain_views_are_center_crops_with_mean_0_and_deviation_1(side):
    array = pixels(30)
    middle = array[:, (8 - side) // 2 :, (8 - side) // 2 :][:, :side, :side].reshape(-1, 3) / 255
    data = ArrayImages(CPU, [array], middle.mean(axis=0).tolist(), middle.std(axis=0).tolist(), side)
    values = data.plain_view(torch.arange(30))
    assert values.shape == (30, 3, side, side)
    assert values.dtype == data.mean.dtype == data.std.dtype == torch.float32
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)
    wanted = (middle.reshape(30, -1, 3) - middle.mean(axis=0)) / middle.std(axis=0)
    torch.testing.assert_close(values.flatten(2).mT, torch.from_numpy(wanted).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_stores_say_what_they_hold(channels, tmp_path):
    stats = [0.5] * channels, [0.25] * channels
    array = ArrayImages(CPU, [pixels(5, channels), pixels(4, channels)], *stats, 6)
    packed = jpeg_store(tmp_path, pictures(SHAPES, channels), 12, shards=2)
    assert (array.count, array.channels, array.side, array.has_margin, array.device) == (9, channels, 6, True, CPU)
    assert (packed.count, packed.channels, packed.side, packed.has_margin, packed.device) == (
        12,
        channels,
        12,
        True,
        CPU,
    )
    assert array.sizes(ROWS) == (8, 8)
    heights, widths = packed.sizes(ROWS)
    assert heights.dtype == widths.dtype == torch.float32
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == [SHAPES[row] for row in ROWS]
    square = jpeg_store(tmp_path / "square", pictures([(12, 12)] * 2), 12)
    assert not square.has_margin
    assert not ArrayImages(CPU, [pixels(4)], *STATS).has_margin


@pytest.mark.parametrize("margin", [0, 1, 2, 3, 8])
def test_crops_are_equally_often_at_each_position_and_the_center_is_the_lower_middle(margin):
    margins = torch.full((4000, 2), margin)
    corners = module._corners(margins, torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)))
    for column in range(2):
        counts = corners[:, column].bincount()
        assert len(counts) == margin + 1
        assert float(counts.min()) > 0.8 * 4000 / (margin + 1)
    assert module._corners(margins[:1], torch.tensor([[0.0, 1.0]])).tolist() == [[0, margin]]
    for center in (torch.tensor([[0.5, 0.5]]), None):
        assert module._corners(margins[:1], center).tolist() == [[margin // 2, margin // 2]]


# --- arrays


def test_crops_of_full_images_are_the_rows_in_their_order_and_a_gather_alone():
    array = pixels(12)
    data = ArrayImages(CPU, [array], *STATS)
    batch = data.crops(ROWS)
    assert batch.shape == (6, 3, 8, 8)
    assert np.array_equal(channels_last(batch), array[ROWS.numpy()])
    assert np.array_equal(channels_last(data.crops(ROWS, OFFSETS)), array[ROWS.numpy()])
    assert torch.equal(data.full(ROWS), batch)


@pytest.mark.parametrize("side", [8, 5])
@pytest.mark.parametrize("cuts", [[1], [4, 8], [11], [3, 3, 7], [1, 2, 3, 4, 5, 6]])
def test_shards_give_the_batches_of_one_array(cuts, side):
    array = pixels(12)
    one = ArrayImages(CPU, [array], *STATS, side)
    split = ArrayImages(CPU, np.split(array, cuts), *STATS, side)
    assert split.count == one.count == 12
    for rows in (ROWS, torch.arange(12), torch.arange(11, -1, -1), torch.tensor([5])):
        offset = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(1))
        assert torch.equal(split.full(rows), one.full(rows))
        assert torch.equal(split.crops(rows), one.crops(rows))
        assert torch.equal(split.crops(rows, offset), one.crops(rows, offset))


def sliced(image, side, offset=None):
    """The crop of an array (height,width,channels) at ``offset``, or of its center."""
    margins = [size - side for size in image.shape[:2]]
    offset = [None, None] if offset is None else offset.double().tolist()
    top, left = (
        margin // 2 if share is None else max(0, int(np.ceil(share * (margin + 1))) - 1)
        for margin, share in zip(margins, offset, strict=True)
    )
    return image[top : top + side, left : left + side]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 6])
def test_crops_of_arrays_are_slices(side, channels):
    array = pixels(12, channels)
    data = ArrayImages(CPU, [array], [0.5] * channels, [0.25] * channels, side)
    centers, anywhere = channels_last(data.crops(ROWS)), channels_last(data.crops(ROWS, OFFSETS))
    for row, offset, center, crop in zip(ROWS, OFFSETS, centers, anywhere, strict=True):
        assert np.array_equal(center, sliced(array[row], side))
        assert np.array_equal(crop, sliced(array[row], side, offset))


@pytest.mark.parametrize("shards", [[12], [5, 12]])
def test_a_row_that_is_not_there_is_an_error(shards):
    data = ArrayImages(CPU, np.split(pixels(shards[-1]), shards[:-1]), *STATS)
    with pytest.raises(IndexError):
        data.crops(torch.tensor([0, 12]))


def test_on_the_cpu_neither_arrays_nor_maps_are_copied(tmp_path, recwarn):
    array = pixels(4)
    assert np.shares_memory(ArrayImages(CPU, [array], *STATS).shards[0].numpy(), array)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels(6, seed=number))
    maps = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(2)]
    data = ArrayImages(CPU, maps, *STATS)
    for shard, mapped in zip(data.shards, maps, strict=True):
        assert np.shares_memory(shard.numpy(), mapped)
    assert np.array_equal(channels_last(data.crops(ROWS)), np.concatenate(maps)[ROWS.numpy()])
    assert not recwarn.list


def test_shards_are_joined_on_a_device_only_where_they_fit_its_memory(monkeypatch):
    """A device without memory of its own stands for the GPU."""
    shards, meta = [pixels(5), pixels(4, seed=1), pixels(3, seed=2)], torch.device("meta")
    size = sum(shard.nbytes for shard in shards)
    for free, joined in ((size / 0.6 + 2, True), (size / 0.6 - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        data = ArrayImages(meta, shards, *STATS)
        assert [shard.device.type for shard in data.shards] == (["meta"] if joined else ["cpu"] * 3)
        assert data.crops(ROWS).device.type == "meta"
        assert data.crops(ROWS).shape == (6, 3, 8, 8)
        assert data.count == 12
    assert np.array_equal(module._joined(CPU, [torch.from_numpy(shard) for shard in shards]), np.concatenate(shards))


# --- JPEG


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_crops_of_jpegs_are_slices_of_what_pil_decodes(channels, mode, tmp_path):
    images = pictures(SHAPES, channels)
    data, wanted = jpeg_store(tmp_path, images, 12, shards=3), [np.asarray(each) for each in decoded(images, mode)]
    centers, anywhere = channels_last(data.crops(ROWS)), channels_last(data.crops(ROWS, OFFSETS))
    for row, offset, center, crop in zip(ROWS.tolist(), OFFSETS, centers, anywhere, strict=True):
        image = wanted[row].reshape(*SHAPES[row], channels)
        assert np.array_equal(center, sliced(image, 12))
        assert np.array_equal(crop, sliced(image, 12, offset))


@pytest.mark.parametrize(("stored", "channels", "mode"), [(1, 3, "RGB"), (3, 1, "L")])
def test_gray_and_color_jpegs_become_what_the_store_is(stored, channels, mode, tmp_path):
    """A store of color holds its gray images as gray files."""
    images = pictures(SHAPES[:2], stored)
    path, table = pack(tmp_path, images)
    data = JpegImages(CPU, [path], [table], [0.5] * channels, [0.25] * channels, 12)
    windows = channels_last(data.crops(torch.tensor([0, 1]), torch.zeros(2, 2)))
    for window, wanted in zip(windows, decoded(images, mode), strict=True):
        assert np.array_equal(window, np.asarray(wanted)[:12, :12].reshape(12, 12, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_jpegs_are_torchvision_s_resized_crops_but_for_their_border(channels, tmp_path):
    """At its border a crop sees the image beyond, as those of arrays do; where torchvision repeats the crop's edge."""
    images = pictures([(80, 120), (120, 80), (90, 90)], channels)
    data = jpeg_store(tmp_path, images, 24)
    windows = [(0, 0, 80, 120), (10, 20, 48, 30), (33, 7, 57, 80)]  # top, left, height, width
    boxes = torch.tensor([[left, top, left + width, top + height] for top, left, height, width in windows]).double()
    views = channels_last(data.resized_crops(torch.arange(3), boxes)).astype(int)
    assert views.shape == (3, 24, 24, channels)
    for image, window, view in zip(decoded(images, "L" if channels == 1 else "RGB"), windows, views, strict=True):
        wanted = np.asarray(reference.resized_crop(image, *window, [24, 24], InterpolationMode.BILINEAR)).astype(int)
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(view[inner] - wanted.reshape(view.shape)[inner]).max() <= 1


def test_crops_may_have_fractions_and_shrink_without_aliases(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 250, 2, dtype=np.uint8), (125, 125))[..., None]
    stripes = np.broadcast_to((np.arange(128) % 2 * 255).astype(np.uint8), (128, 128))[..., None]
    data = jpeg_store(tmp_path, [ramp, stripes, ramp], 16)
    boxes = torch.tensor([[20.25, 3.5, 36.25, 19.5], [10.0, 10.0, 110.0, 110.0], [20.75, 3.5, 36.75, 19.5]])
    views = channels_last(data.resized_crops(torch.arange(3), boxes.double())).astype(float)
    assert views[0].mean() == pytest.approx((20.25 + 7.5) * 2, abs=0.6)
    assert views[2].mean() - views[0].mean() == pytest.approx(1, abs=0.3)
    assert np.abs(views[1] - 127.5).max() < 20


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_views_depend_neither_on_threads_nor_on_shards(threads, tmp_path, monkeypatch):
    images, rows = pictures(SHAPES), torch.arange(120) % 12
    wanted = jpeg_store(tmp_path / "one", images, 12)
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    data = jpeg_store(tmp_path / "other", images, 12, shards=5)
    boxes = torch.tensor([1.0, 0.5, 11.5, 10.25]).double().expand(120, 4)
    for _ in range(5):
        assert torch.equal(data.crops(rows), wanted.crops(rows))
        assert torch.equal(data.resized_crops(rows, boxes), wanted.resized_crops(rows, boxes))


def test_an_image_that_is_seen_twice_is_decoded_once(tmp_path, monkeypatch):
    data, decoded_rows = jpeg_store(tmp_path, pictures(SHAPES), 12), []
    decode = data._decoded
    wanted = torch.cat([data.crops(ROWS[i : i + 1], OFFSETS[i : i + 1]) for i in range(len(ROWS))])
    monkeypatch.setattr(data, "_decoded", lambda row: decoded_rows.append(row) or decode(row))
    assert torch.equal(data.crops(ROWS, OFFSETS), wanted)
    assert sorted(decoded_rows) == sorted(set(ROWS.tolist()))


def test_files_are_closed_with_the_store(tmp_path):
    before = os.listdir("/proc/self/fd")
    data = jpeg_store(tmp_path, pictures(SHAPES), 12, shards=3)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 3
    data.crops(ROWS)
    del data
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- damage


def packed(folder):
    return pack(folder, pictures(SHAPES))


def open_packed(path, table, side=12):
    return JpegImages(CPU, [path], [table], *STATS, side)


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 10**9), (1, 0), (0, 10**9)])
def test_a_table_that_points_outside_its_file_is_an_error(column, value, tmp_path):
    path, table = packed(tmp_path)
    table[5, column] = value
    refused(lambda: open_packed(path, table), f"{path} is damaged (it has ", " bytes, its table wants ")


def test_a_file_that_is_truncated_or_missing_or_has_too_small_images_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    open_packed(path, table, side=12)
    refused(lambda: open_packed(path, table, side=13), path, "an image of 12 pixels per side, below 13")
    refused(lambda: open_packed(path.with_name("missing.bin"), table), "missing.bin cannot be read (No such file")
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: open_packed(path, table), f"{path} is damaged (it has ", " bytes, its table wants ")


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    data = open_packed(path, table)
    data.crops(ROWS)
    with path.open("r+b") as file:
        file.truncate(int(table[7, 0]) + 200)
    data.crops(torch.tensor([0, 6]))
    refused(lambda: data.crops(ROWS), f"at byte {table[7, 0]:,}")


@pytest.mark.parametrize("how", ["zeros", "cut", "header"])
def test_an_image_that_cannot_be_decoded_is_an_error_that_says_where(how, tmp_path):
    path, table = packed(tmp_path)
    start, end = table[3, :2].tolist()
    content = bytearray(path.read_bytes())
    if how == "zeros":
        content[start:end] = bytes(end - start)
    elif how == "cut":
        table[3, 1] = (start + end) // 2
    else:
        content[start + 2 : start + 20] = bytes(18)
    path.write_bytes(content)
    data = open_packed(path, table)
    data.crops(torch.tensor([2, 4]))
    rows, boxes = torch.tensor([2, 3, 4]), torch.tensor([[0.0, 0, 12, 12]] * 3).double()
    for view in (lambda: data.crops(rows), lambda: data.resized_crops(rows, boxes)):
        refused(view, f"{path} is damaged (at byte {start:,}: ")


def test_a_table_that_disagrees_with_an_image_s_size_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    table[3, 2:] = 20, 13
    data = open_packed(path, table)
    refused(lambda: data.crops(torch.tensor([3])), "it has 48 x 13 pixels, its table says 13 x 20")
