"""Both stores: windows and crops against slices and PIL, for any shards and threads; what is not copied; errors."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from scan_core.errors import ScanError
from scan_core.images import store as module
from scan_core.images.store import array_images, images_on, jpeg_images
from tests.tiny import CPU, jpeg_store, pack, pixels

STATS = [0.5] * 3, [0.25] * 3
ROWS = torch.tensor([7, 0, 11, 7, 3, 4])
PLACES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.3, 0.9], [0.99, 0.01]])


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


def test_normalised_images_have_mean_0_and_deviation_1():
    array = pixels(30)
    scaled = array.reshape(-1, 3) / 255
    data = images_on(CPU, array, scaled.mean(axis=0).tolist(), scaled.std(axis=0).tolist())
    values = data.normalize(data.windows(torch.arange(30)).float() / 255)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)
    assert data.mean.dtype == data.std.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
def test_both_stores_say_what_they_hold(channels, tmp_path):
    stats = [0.5] * channels, [0.25] * channels
    array = array_images(CPU, [pixels(5, channels), pixels(4, channels)], 6, *stats)
    packed = jpeg_store(tmp_path, pictures(SHAPES, channels), 12, shards=2)
    assert (array.count, array.channels, array.side, array.roomy, array.device) == (9, channels, 6, True, CPU)
    assert (packed.count, packed.channels, packed.side, packed.roomy, packed.device) == (12, channels, 12, True, CPU)
    assert array.sizes(ROWS) == (8, 8)
    heights, widths = packed.sizes(ROWS)
    assert heights.dtype == widths.dtype == torch.float32
    assert list(zip(heights.tolist(), widths.tolist(), strict=True)) == [SHAPES[row] for row in ROWS]
    square = jpeg_store(tmp_path / "square", pictures([(12, 12)] * 2), 12)
    assert not square.roomy
    assert not images_on(CPU, pixels(4), *STATS).roomy


@pytest.mark.parametrize("room", [0, 1, 2, 3, 8])
def test_windows_are_equally_often_at_each_position_and_the_middle_is_the_lower_one(room):
    rooms = torch.full((4000, 2), room)
    corners = module._corners(rooms, torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)))
    for column in range(2):
        counts = corners[:, column].bincount()
        assert len(counts) == room + 1
        assert float(counts.min()) > 0.8 * 4000 / (room + 1)
    places = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert module._corners(rooms[:2], places).tolist() == [[0, room], [room // 2, room // 2]]
    assert module._corners(rooms[:1], None).tolist() == [[room // 2, room // 2]]


# --- arrays


def test_windows_of_whole_images_are_the_rows_in_their_order_and_a_gather_alone():
    array = pixels(12)
    data = images_on(CPU, array, *STATS)
    batch = data.windows(ROWS)
    assert batch.shape == (6, 3, 8, 8)
    assert np.array_equal(channels_last(batch), array[ROWS.numpy()])
    assert np.array_equal(channels_last(data.windows(ROWS, PLACES)), array[ROWS.numpy()])
    assert torch.equal(data.whole(ROWS), batch)


@pytest.mark.parametrize("side", [8, 5])
@pytest.mark.parametrize("cuts", [[1], [4, 8], [11], [3, 3, 7], [1, 2, 3, 4, 5, 6]])
def test_shards_give_the_batches_of_one_array(cuts, side):
    array = pixels(12)
    one = array_images(CPU, [array], side, *STATS)
    split = array_images(CPU, np.split(array, cuts), side, *STATS)
    assert split.count == one.count == 12
    for rows in (ROWS, torch.arange(12), torch.arange(11, -1, -1), torch.tensor([5])):
        place = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(1))
        assert torch.equal(split.whole(rows), one.whole(rows))
        assert torch.equal(split.windows(rows), one.windows(rows))
        assert torch.equal(split.windows(rows, place), one.windows(rows, place))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 6])
def test_windows_of_arrays_are_slices(side, channels):
    array = pixels(12, channels)
    data = array_images(CPU, [array], side, [0.5] * channels, [0.25] * channels)
    room = 8 - side
    middle = slice(room // 2, room // 2 + side)
    assert np.array_equal(channels_last(data.windows(ROWS)), array[ROWS.numpy(), middle, middle])
    for row, place, window in zip(ROWS, PLACES, channels_last(data.windows(ROWS, PLACES)), strict=True):
        top, left = (max(0, int(np.ceil(share * (room + 1))) - 1) for share in place.double().tolist())
        assert np.array_equal(window, array[row, top : top + side, left : left + side])


@pytest.mark.parametrize("shards", [[12], [5, 12]])
def test_a_row_that_is_not_there_is_an_error(shards):
    data = array_images(CPU, np.split(pixels(shards[-1]), shards[:-1]), 8, *STATS)
    with pytest.raises(IndexError):
        data.windows(torch.tensor([0, 12]))


def test_on_the_cpu_neither_arrays_nor_maps_are_copied(tmp_path, recwarn):
    array = pixels(4)
    assert np.shares_memory(images_on(CPU, array, *STATS).shards[0].numpy(), array)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels(6, seed=number))
    maps = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(2)]
    data = array_images(CPU, maps, 8, *STATS)
    for shard, mapped in zip(data.shards, maps, strict=True):
        assert np.shares_memory(shard.numpy(), mapped)
    assert np.array_equal(channels_last(data.windows(ROWS)), np.concatenate(maps)[ROWS.numpy()])
    assert not recwarn.list


def test_shards_are_joined_on_a_device_only_where_they_fit_its_memory(monkeypatch):
    """A device without memory of its own stands for the GPU."""
    shards, meta = [pixels(5), pixels(4, seed=1), pixels(3, seed=2)], torch.device("meta")
    size = sum(shard.nbytes for shard in shards)
    for free, joined in ((size / 0.6 + 2, True), (size / 0.6 - 2, False)):
        monkeypatch.setattr(module, "_free_memory", lambda device, free=free: free)
        data = array_images(meta, shards, 8, *STATS)
        assert [shard.device.type for shard in data.shards] == (["meta"] if joined else ["cpu"] * 3)
        assert data.windows(ROWS).device.type == "meta"
        assert data.windows(ROWS).shape == (6, 3, 8, 8)
        assert data.count == 12
    assert np.array_equal(module._joined(CPU, [torch.from_numpy(shard) for shard in shards]), np.concatenate(shards))


# --- JPEG


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_windows_of_jpegs_are_those_of_pil(channels, mode, tmp_path):
    images = pictures(SHAPES, channels)
    data, wanted = jpeg_store(tmp_path, images, 12, shards=3), [np.asarray(each) for each in decoded(images, mode)]
    assert data.windows(ROWS).shape == (6, channels, 12, 12)
    middle, anywhere = channels_last(data.windows(ROWS)), channels_last(data.windows(ROWS, PLACES))
    for row, place, centre, window in zip(ROWS.tolist(), PLACES.double().tolist(), middle, anywhere, strict=True):
        image = wanted[row].reshape(*SHAPES[row], channels)
        room = [size - 12 for size in SHAPES[row]]
        top, left = (each // 2 for each in room)
        assert np.array_equal(centre, image[top : top + 12, left : left + 12])
        top, left = (max(0, int(np.ceil(at * (each + 1))) - 1) for at, each in zip(place, room, strict=True))
        assert np.array_equal(window, image[top : top + 12, left : left + 12])


@pytest.mark.parametrize(("stored", "channels", "mode"), [(1, 3, "RGB"), (3, 1, "L")])
def test_grey_and_coloured_jpegs_become_what_the_store_is(stored, channels, mode, tmp_path):
    """A store of colours holds its grey images as grey files."""
    images = pictures(SHAPES[:2], stored)
    path, table = pack(tmp_path, images)
    data = jpeg_images(CPU, [path], [table], channels, 12, [0.5] * channels, [0.25] * channels)
    windows = channels_last(data.windows(torch.tensor([0, 1]), torch.zeros(2, 2)))
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


def test_a_crop_of_the_whole_window_is_the_window(tmp_path):
    data = jpeg_store(tmp_path, pictures(SHAPES), 12)
    left_top = torch.tensor([[0, 0], [0, 0], [18, 0], [0, 0], [18, 0], [4, 0]])
    rows = torch.tensor([0, 2, 3, 5, 7, 8])
    crops = data.resized_crops(rows, torch.cat([left_top, left_top + 12], dim=1).double())
    windows = [np.asarray(image) for image in decoded(pictures(SHAPES), "RGB")]
    for row, (left, top), crop in zip(rows, left_top, channels_last(crops), strict=True):
        assert np.array_equal(crop, windows[row][top : top + 12, left : left + 12])


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_views_do_not_depend_on_the_threads(threads, tmp_path, monkeypatch):
    images, rows = pictures(SHAPES), torch.arange(120) % 12
    wanted = jpeg_store(tmp_path / "one", images, 12)
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    data = jpeg_store(tmp_path / "other", images, 12, shards=2)
    boxes = torch.tensor([1.0, 0.5, 11.5, 10.25]).double().expand(120, 4)
    for _ in range(5):
        assert torch.equal(data.windows(rows), wanted.windows(rows))
        assert torch.equal(data.resized_crops(rows, boxes), wanted.resized_crops(rows, boxes))


def test_an_image_that_is_seen_twice_is_decoded_once(tmp_path, monkeypatch):
    data, decoded_rows = jpeg_store(tmp_path, pictures(SHAPES), 12), []
    decode = data._decoded
    wanted = torch.cat([data.windows(ROWS[i : i + 1], PLACES[i : i + 1]) for i in range(len(ROWS))])
    monkeypatch.setattr(data, "_decoded", lambda row: decoded_rows.append(row) or decode(row))
    assert torch.equal(data.windows(ROWS, PLACES), wanted)
    assert sorted(decoded_rows) == sorted(set(ROWS.tolist()))


def test_files_are_closed_with_the_store(tmp_path):
    before = os.listdir("/proc/self/fd")
    data = jpeg_store(tmp_path, pictures(SHAPES), 12, shards=3)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 3
    data.windows(ROWS)
    del data
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- damage


def packed(folder):
    return pack(folder, pictures(SHAPES))


def open_packed(path, table, side=12):
    return jpeg_images(CPU, [path], [table], 3, side, *STATS)


def one_line(raised):
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_truncated_file_is_an_error_that_names_it(tmp_path):
    path, table = packed(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ScanError, match=r"jpeg-00000\.bin is damaged \(it has .* bytes, its table wants") as raised:
        open_packed(path, table)
    assert one_line(raised).endswith("delete it and run dvc repro")


@pytest.mark.parametrize(("column", "value"), [(0, -1), (1, 10**9), (1, 0), (0, 10**9)])
def test_a_table_that_points_outside_its_file_is_an_error(column, value, tmp_path):
    path, table = packed(tmp_path)
    table[5, column] = value
    with pytest.raises(ScanError, match="its table wants"):
        open_packed(path, table)


def test_an_image_that_is_smaller_than_the_view_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    open_packed(path, table, side=12)
    with pytest.raises(ScanError, match="an image of 12 pixels a side, below 13"):
        open_packed(path, table, side=13)


def test_a_missing_file_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    with pytest.raises(ScanError, match=r"missing\.bin cannot be read \(No such file"):
        open_packed(path.with_name("missing.bin"), table)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    data = open_packed(path, table)
    data.windows(ROWS)
    with path.open("r+b") as file:
        file.truncate(int(table[7, 0]) + 200)
    data.windows(torch.tensor([0, 6]))
    with pytest.raises(ScanError, match=f"at byte {table[7, 0]:,}") as raised:
        data.windows(ROWS)
    one_line(raised)


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
    data.windows(torch.tensor([2, 4]))
    for view in (data.windows, lambda rows: data.resized_crops(rows, torch.tensor([[0.0, 0, 12, 12]] * 3).double())):
        with pytest.raises(ScanError, match=rf"jpeg-00000\.bin is damaged \(at byte {start:,}: ") as raised:
            view(torch.tensor([2, 3, 4]))
        one_line(raised)


def test_a_table_that_disagrees_with_an_image_s_size_is_an_error(tmp_path):
    path, table = packed(tmp_path)
    table[3, 2:] = 20, 13
    with pytest.raises(ScanError, match="it has 48 x 13 pixels, its table says 13 x 20"):
        open_packed(path, table).windows(torch.tensor([3]))


def test_views_are_an_image_s_own_whichever_shard_it_is_in(tmp_path):
    images = pictures(SHAPES)
    whole, split = (jpeg_store(tmp_path / str(shards), images, 12, shards) for shards in (1, 5))
    assert torch.equal(whole.windows(ROWS, PLACES), split.windows(ROWS, PLACES))
    assert torch.equal(whole.windows(torch.arange(12)), split.windows(torch.arange(12)))
