"""Both stores: crops against slices and PIL, for any shards and threads; what is not copied; errors."""

import io
import os
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from scan_core.images import store as module
from scan_core.images.store import ArrayImages, JpegImages
from tests.tiny import CPU, jpeg_store, pack, pixels, refused

ROWS = torch.tensor([7, 0, 11, 7, 3, 4])
OFFSETS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.3, 0.9], [0.99, 0.01]])


def channels_last(batch):
    """The batch as an array (B,height,width,channels), which is how it lies in memory."""
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    return batch.permute(0, 2, 3, 1).numpy()


def pictures(shapes, channels=3, seed=0):
    """Smooth images of the given shapes, all different, that JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (len(shapes), 3, 4, channels), dtype=np.uint8)
    return [
        np.stack([np.asarray(Image.fromarray(part).resize(shape[::-1], Image.Resampling.BICUBIC)) for part in small], 2)
        for small, shape in zip(coarse.transpose(0, 3, 1, 2), shapes, strict=True)
    ]


def array_images(shards, side=None):
    """Of one array or several."""
    shards = [shards] if isinstance(shards, np.ndarray) else shards
    channels = shards[0].shape[3]
    return ArrayImages(CPU, shards, [0.5] * channels, [0.25] * channels, side)


SHAPES = [(12, 20), (20, 12), (12, 12), (13, 48)] * 3


def decoded(images, channels):
    """What PIL reads of each image, one by one."""
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=90)
        yield Image.open(buffer).convert("L" if channels == 1 else "RGB")


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
    array = array_images([pixels(5, channels), pixels(4, channels)], 6)
    packed = jpeg_store(tmp_path, pictures(SHAPES, channels), 12, shards=2)
    for data, count, side in ((array, 9, 6), (packed, 12, 12)):
        held = (data.count, data.channels, data.side, data.has_margin, data.device)
        assert held == (count, channels, side, True, CPU)
    assert array.sizes(ROWS) == (8, 8)
    heights, widths = packed.sizes(ROWS)
    assert heights.dtype == widths.dtype == torch.float32
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == [SHAPES[row] for row in ROWS]
    square = jpeg_store(tmp_path / "square", pictures([(12, 12)] * 2), 12)
    assert not square.has_margin and not array_images(pixels(4)).has_margin


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


def test_crops_of_full_images_are_the_rows_in_their_order():
    array = pixels(12)
    data = array_images(array)
    for batch in (data.crops(ROWS), data.crops(ROWS, OFFSETS), data.full(ROWS)):
        assert np.array_equal(channels_last(batch), array[ROWS.numpy()])


@pytest.mark.parametrize("side", [8, 5])
@pytest.mark.parametrize("cuts", [[1], [4, 8], [11], [3, 3, 7], [1, 2, 3, 4, 5, 6]])
def test_shards_give_the_batches_of_one_array(cuts, side):
    array = pixels(12)
    one, split = array_images(array, side), array_images(np.split(array, cuts), side)
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
@pytest.mark.parametrize("side", [5, 6, "jpeg"])
def test_crops_are_slices_of_the_array_or_of_what_pil_decodes(side, channels, tmp_path):
    if side == "jpeg":
        images, side = pictures(SHAPES, channels), 12
        data = jpeg_store(tmp_path, images, side, shards=3)
        images = [np.asarray(each).reshape(*each.size[::-1], channels) for each in decoded(images, channels)]
    else:
        images = pixels(12, channels)
        data = array_images(images, side)
    centers, anywhere = channels_last(data.crops(ROWS)), channels_last(data.crops(ROWS, OFFSETS))
    for row, offset, center, crop in zip(ROWS, OFFSETS, centers, anywhere, strict=True):
        assert np.array_equal(center, sliced(images[row], side))
        assert np.array_equal(crop, sliced(images[row], side, offset))


@pytest.mark.parametrize("cuts", [[], [5]])
def test_a_row_that_is_not_there_is_an_error(cuts):
    with pytest.raises(IndexError):
        array_images(np.split(pixels(12), cuts)).crops(torch.tensor([0, 12]))


def test_on_the_cpu_neither_arrays_nor_maps_are_copied(tmp_path, recwarn):
    array = pixels(4)
    assert np.shares_memory(array_images(array).shards[0].numpy(), array)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels(6, seed=number))
    maps = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(2)]
    data = array_images(maps)
    assert all(np.shares_memory(shard.numpy(), mapped) for shard, mapped in zip(data.shards, maps, strict=True))
    assert np.array_equal(channels_last(data.crops(ROWS)), np.concatenate(maps)[ROWS.numpy()])
    assert not recwarn.list


@pytest.mark.parametrize(("spare", "kinds"), [(2, ["meta"]), (-2, ["cpu"] * 3)], ids=["fit", "do not fit"])
def test_shards_are_joined_on_a_device_only_where_they_fit_its_memory(monkeypatch, spare, kinds):
    """A device without memory of its own stands for the GPU."""
    shards = [pixels(5), pixels(4, seed=1), pixels(3, seed=2)]
    free = sum(shard.nbytes for shard in shards) / 0.6 + spare
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    data = ArrayImages(torch.device("meta"), shards, [0.5] * 3, [0.25] * 3)
    assert [shard.device.type for shard in data.shards] == kinds and data.count == 12
    batch = data.crops(ROWS)
    assert (batch.device.type, batch.shape) == ("meta", (6, 3, 8, 8))
    assert np.array_equal(module._joined(CPU, [torch.from_numpy(shard) for shard in shards]), np.concatenate(shards))


@pytest.mark.parametrize(("stored", "channels"), [(1, 3), (3, 1)])
def test_gray_and_color_jpegs_become_what_the_store_is(stored, channels, tmp_path):
    """A store of color holds its gray images as gray files."""
    images = pictures(SHAPES[:2], stored)
    path, table = pack(tmp_path, images)
    data = JpegImages(CPU, [path], [table], [0.5] * channels, [0.25] * channels, 12)
    windows = channels_last(data.crops(torch.tensor([0, 1]), torch.zeros(2, 2)))
    for window, wanted in zip(windows, decoded(images, channels), strict=True):
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
    for image, window, view in zip(decoded(images, channels), windows, views, strict=True):
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
    data = jpeg_store(tmp_path, pictures(SHAPES), 12)
    wanted = torch.cat([data.crops(ROWS[i : i + 1], OFFSETS[i : i + 1]) for i in range(len(ROWS))])
    monkeypatch.setattr(data, "_decoded", mock.Mock(side_effect=data._decoded))
    assert torch.equal(data.crops(ROWS, OFFSETS), wanted)
    assert sorted(call.args[0] for call in data._decoded.call_args_list) == sorted(set(ROWS.tolist()))


def test_files_are_closed_with_the_store(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    data = jpeg_store(tmp_path, pictures(SHAPES), 12, shards=3)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    data.crops(ROWS)
    del data
    assert len(os.listdir("/proc/self/fd")) == before


# --- damage


@pytest.fixture
def packed(tmp_path):
    return pack(tmp_path, pictures(SHAPES))


def open_packed(path, table, side=12):
    return JpegImages(CPU, [path], [table], [0.5] * 3, [0.25] * 3, side)


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 10**9), (1, 0), (0, 10**9), (None, None)])
def test_a_table_that_points_outside_its_file_is_an_error(column, value, packed):
    path, table = packed
    if column is None:  # the file is cut
        os.truncate(path, path.stat().st_size - 1)
    else:
        table[5, column] = value
    refused(lambda: open_packed(path, table), f"{path} is damaged (it has ", " bytes, its table wants ")


def test_a_file_that_is_missing_or_has_too_small_images_is_an_error(packed):
    path, table = packed
    open_packed(path, table, side=12)
    refused(lambda: open_packed(path, table, side=13), path, "an image of 12 pixels per side, below 13")
    refused(lambda: open_packed(path.with_name("missing.bin"), table), "missing.bin cannot be read (No such file")


def test_a_file_that_is_cut_while_it_is_read_is_an_error(packed):
    path, table = packed
    data = open_packed(path, table)
    data.crops(ROWS)
    os.truncate(path, int(table[7, 0]) + 200)
    data.crops(torch.tensor([0, 6]))
    refused(lambda: data.crops(ROWS), f"at byte {table[7, 0]:,}")


@pytest.mark.parametrize("how", ["zeros", "cut", "header"])
def test_an_image_that_cannot_be_decoded_is_an_error_that_says_where(how, packed):
    path, table = packed
    start, end = table[3, :2].tolist()
    content = bytearray(path.read_bytes())
    if how == "cut":
        table[3, 1] = (start + end) // 2
    else:
        part = slice(start, end) if how == "zeros" else slice(start + 2, start + 20)
        content[part] = bytes(part.stop - part.start)
    path.write_bytes(content)
    data = open_packed(path, table)
    data.crops(torch.tensor([2, 4]))
    rows, boxes = torch.tensor([2, 3, 4]), torch.tensor([[0.0, 0, 12, 12]] * 3).double()
    for view in (lambda: data.crops(rows), lambda: data.resized_crops(rows, boxes)):
        refused(view, f"{path} is damaged (at byte {start:,}: ")


def test_a_table_that_disagrees_with_an_image_s_size_is_an_error(packed):
    path, table = packed
    table[3, 2:] = 20, 13
    data = open_packed(path, table)
    refused(lambda: data.crops(torch.tensor([3])), "it has 48 x 13 pixels, its table says 13 x 20")
