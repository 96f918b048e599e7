"""Decoding: what every format and mode becomes, that the quick paths change nothing, and that no file stops a run."""

import builtins
import io
import os
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features

from pipeline.presets import read_preset
from scan_core.data import decode
from scan_core.data.chunks import decode_chunk, load_chunk, load_thumbs
from scan_core.data.decode import (
    EMPTY,
    ORIENTATION,
    UNKNOWN,
    Refused,
    Target,
    open_image,
    short_side,
    square,
    target_of,
)
from scan_core.data.sources import Finding, Item
from tests.project import ROOT
from tests.tiny import change

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as in a worker: damaged files make it chatter
DIGITS = read_preset(ROOT / "presets" / "digits.yaml").data
TARGET = Target(16, "crop", "array", 200_000_000)
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def encoded(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def opened(data, **values):
    """The mode and the pixels."""
    image = open_image(data, Target(**{**vars(TARGET), **values}))
    assert image.mode in ("L", "RGB")
    return image.mode, np.asarray(image)


def smooth(height, width, seed=0, channels=3):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), dtype=np.uint8)
    image = Image.fromarray(noise if channels > 1 else noise[..., 0])
    return image.resize((width, height), Image.Resampling.BICUBIC)


def chunk(png, kind, data):
    content = kind + data
    return png + struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


def png_of(width, height, *chunks, depth=8, colour=0):
    """A PNG that says it is that large, with whatever chunks."""
    png = chunk(b"\x89PNG\r\n\x1a\n", b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    for kind, data in chunks:
        png = chunk(png, kind, data)
    return chunk(png, b"IEND", b"")


def refusal(data, **values):
    with pytest.raises(Refused) as error:
        open_image(data, Target(**{**vars(TARGET), **values}))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "ICO"])
def test_colour_comes_out_as_it_went_in(kind):
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    mode, found = opened(encoded(pixels, kind, **options))
    assert mode == "RGB"
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF", "JPEG2000"])
def test_gray_stays_gray(kind):
    mode, found = opened(encoded(GRAY, kind))
    assert mode == "L"
    assert np.array_equal(found, GRAY)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "HEIF"])
def test_lossy_formats_come_close(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = smooth(64, 48)
    mode, found = opened(encoded(image, kind))
    assert mode == "RGB"
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 6


def test_one_bit_is_black_and_white():
    bits = GRAY > 127
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        mode, found = opened(encoded(Image.fromarray(bits), kind))
        assert mode == "L"
        assert np.array_equal(found, bits * np.uint8(255))


@pytest.mark.parametrize("clear", [0, 1])
def test_one_bit_with_a_clear_value(clear):
    rows = zlib.compress(b"\0\xf0")  # four white, four black
    png = png_of(8, 1, (b"tRNS", struct.pack(">H", clear)), (b"IDAT", rows), depth=1)
    mode, found = opened(png)
    assert mode == "L"
    assert found.tolist() == [[255] * 8 if clear == 0 else [255] * 4 + [0] * 4]


def test_palettes_become_what_they_show():
    colours = Image.fromarray(COLOUR).quantize(16)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        mode, found = opened(encoded(colours, kind))
        assert mode == "RGB"
        assert np.array_equal(found, np.asarray(colours.convert("RGB")))
    ramp = Image.fromarray(GRAY % 4)
    ramp = Image.frombytes("P", ramp.size, ramp.tobytes())
    ramp.putpalette([200, 200, 200, 9, 9, 9, 77, 77, 77, 0, 0, 0])
    mode, found = opened(encoded(ramp, "PNG"))
    assert mode == "L"
    assert np.array_equal(found, np.array([200, 9, 77, 0], np.uint8)[GRAY % 4])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_clear_entry_lies_over_white(kind):
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 1]))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    mode, found = opened(encoded(image, kind, transparency=1))
    assert mode == "RGB"
    assert found[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255], [255, 255, 255]]


def test_a_gray_palette_with_clear_entries_stays_gray():
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 10, 10, 20, 20, 20, 30, 30, 30])
    mode, found = opened(encoded(image, "PNG", transparency=bytes([255, 0, 51])))
    assert mode == "L"
    assert found[0].tolist() == [10, 255, 210]  # a fifth of 30, the rest white


def test_clear_values_lie_over_white():
    mode, found = opened(encoded(np.array([[7, 8]], np.uint8), "PNG", transparency=7))
    assert mode == "L"
    assert found.tolist() == [[255, 8]]
    mode, found = opened(encoded(np.array([[[1, 2, 3], [3, 2, 1]]], np.uint8), "PNG", transparency=(1, 2, 3)))
    assert mode == "RGB"
    assert found.tolist() == [[[255, 255, 255], [3, 2, 1]]]
    rows = zlib.compress(b"\0" + struct.pack(">3H", 7, 0, 65535))
    mode, found = opened(png_of(3, 1, (b"tRNS", struct.pack(">H", 7)), (b"IDAT", rows), depth=16))
    assert mode == "L"
    assert found.tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_over_white(kind):
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    mode, found = opened(encoded(pixels, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert mode == "RGB"
    assert np.abs(found[0].astype(int) - [[200, 100, 0], [255, 255, 255], [244, 224, 204]]).max() <= 1


def test_gray_with_alpha_stays_gray():
    pixels = np.array([[[200, 255], [200, 0], [0, 51]]], np.uint8)
    for kind in ("PNG", "TIFF"):
        mode, found = opened(encoded(Image.fromarray(pixels, "LA"), kind))
        assert mode == "L"
        assert found[0].tolist() == [200, 255, 204]


def test_a_palette_with_an_alpha_channel_lies_over_white():
    image = Image.frombytes("PA", (2, 1), bytes([0, 255, 0, 0]))
    image.putpalette([9, 8, 7])
    assert np.asarray(decode._flatten(image)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert decode._flatten(Image.new("RGBa", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert decode._flatten(Image.new("La", (1, 1), (0, 0))).getpixel((0, 0)) == 255


def test_cmyk_is_what_pillow_makes_of_it():
    image = Image.fromarray(COLOUR).convert("CMYK")
    mode, found = opened(encoded(image, "TIFF"))
    assert mode == "RGB"
    assert np.array_equal(found, COLOUR)
    jpeg = encoded(smooth(32, 32).convert("CMYK"), "JPEG", quality=95)
    mode, found = opened(jpeg)
    assert mode == "RGB"
    assert np.abs(found.astype(int) - np.asarray(smooth(32, 32))).mean() < 8
    at = jpeg.index(b"Adobe") + 11
    ycck = jpeg[:at] + b"\2" + jpeg[at + 1 :]
    assert opened(ycck)[0] == "RGB"
    assert np.array_equal(opened(ycck)[1], np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB")))
    assert not np.array_equal(opened(ycck)[1], found)


def test_sixteen_bits_become_eight():
    values = np.array([[0, 257, 32768, 65535, 128, 129]], np.uint16)
    for kind in ("PNG", "TIFF"):
        mode, found = opened(encoded(values, kind))
        assert mode == "L"
        assert found.tolist() == [[0, 1, 128, 255, 0, 1]]
    big = b"P5 6 1 65535\n" + values.astype(">u2").tobytes()
    assert opened(big)[1].tolist() == [[0, 1, 128, 255, 0, 1]]
    swapped = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    assert np.asarray(decode._flatten(swapped)).tolist() == [[0, 1, 128, 255, 0, 1]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[-1, 0, 3]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, np.inf, 1]], np.float32), [0, 0, 255]),
        (np.array([[0, 65535, 514]], np.int32), [0, 255, 2]),
        (np.array([[0, 100000, 50000]], np.int32), [0, 255, 128]),
        (np.array([[70000, 70000]], np.int32), [0, 0]),
        (np.array([[-2, -2]], np.float32), [0, 0]),
        (np.array([[3.4e38, -3.4e38]], np.float32), [255, 0]),
    ],
)
def test_other_ranges_are_stretched(values, expected):
    mode, found = opened(encoded(values, "TIFF"))
    assert mode == "L"
    assert found[0].tolist() == expected


def test_lab_becomes_colour():
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    colours = smooth(8, 8)
    image = ImageCms.profileToProfile(colours, srgb, lab, outputMode="LAB")
    mode, found = opened(encoded(image, "TIFF"))
    assert mode == "RGB"
    assert np.abs(found.astype(int) - np.asarray(colours)).mean() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_images_counts(kind):
    first, second = Image.new("RGB", (8, 8), (200, 30, 30)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second, first])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(opened(data)[1].astype(int) - [200, 30, 30]).max() <= 4


def test_the_largest_image_of_an_icon_counts():
    image = smooth(64, 64)
    found = opened(encoded(image, "ICO", sizes=[(16, 16), (64, 64)]))[1]
    assert np.array_equal(found, np.asarray(image))


def oriented(kind, orientation, image=None):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = image or smooth(24, 40)
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_turned_upright(kind, orientation):
    data = oriented(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((40, 24) if orientation < 5 else (24, 40))
    assert np.array_equal(opened(data)[1], np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_pixels_lie_where_the_orientation_says(orientation):
    """Against the EXIF standard, not against Pillow: where the stored first row and column belong."""
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
        6: stored.T[:, ::-1], 7: stored.T[::-1, ::-1], 8: stored.T[::-1],
    }[orientation]  # fmt: skip
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(opened(oriented(kind, orientation, Image.fromarray(stored)))[1], upright)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_phones_photo_is_turned_by_its_own_boxes_and_not_by_exif(orientation):
    """HEIF says what turns an image in a box of its own, which libheif follows; its EXIF only repeats that."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    image = smooth(24, 40)
    found = open_image(oriented("HEIF", orientation, image), TARGET)
    assert found.size == (40, 24)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(image)).mean() < 8


@pytest.mark.parametrize(
    "block", [b"", b"\0", b"MM\0*", b"II*\0\xff\xff\xff\x7f", b"x" * 64, b"MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_makes_no_bad_picture(kind, block):
    image = smooth(12, 20)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert open_image(encoded(image, kind, exif=b"Exif\0\0" + block, **options), TARGET).size == (20, 12)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    assert open_image(oriented("JPEG", value), TARGET).size == (40, 24)


@pytest.mark.parametrize("before", [10, 4096, 60000])
def test_exif_is_found_behind_other_segments(before):
    jpeg = oriented("JPEG", 6)
    other = b"\xff\xed" + struct.pack(">H", before + 2) + b"\0" * before
    assert open_image(jpeg[:2] + other + jpeg[2:], TARGET).size == (24, 40)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_large_jpeg_is_decoded_at_a_fraction(fit, orientation, monkeypatch):
    image = smooth(800, 1000)
    data = oriented("JPEG", orientation, image)
    target = Target(64, fit, "array", 10**8)
    small = open_image(data, target)
    assert max(small.size) < 1000
    short = min(small.size) if fit != "pad" else max(small.size)
    assert short >= 2 * 64  # enough is left to resize
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found, full = (np.asarray(square(each, target)).astype(int) for each in (small, upright))
    assert np.abs(found - full).mean() < 1.5
    assert np.abs(found - full).max() < 30


def test_a_small_jpeg_is_not():
    assert open_image(encoded(smooth(100, 120), "JPEG"), TARGET).size != (120, 100)
    assert open_image(encoded(smooth(63, 120), "JPEG"), TARGET).size == (120, 63)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(600, 400), (100, 1000), (63, 500), (9, 300), (64, 64)])
def test_the_quick_path_takes_nothing_that_would_be_decoded_at_a_fraction(fit, shape):
    data, target = encoded(smooth(*shape), "JPEG"), Target(16, fit, "array", 10**8)
    slow = decode._decode(io.BytesIO(data), target)
    assert np.array_equal(np.asarray(open_image(data, target)), np.asarray(slow))


def jpegs():
    """JPEGs of every kind that the quick path might take, of odd sizes."""
    kinds = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 2}]
    number = 0
    for options in kinds:
        for sampling in ("4:4:4", "4:2:2", "4:2:0", None):
            for height, width in ((1, 1), (8, 8), (17, 31), (40, 7), (63, 61)):
                number += 1
                channels = 1 if sampling is None else 3
                extra = {} if sampling is None else {"subsampling": sampling}
                quality = (30, 75, 95, 100)[number % 4]
                image = smooth(height, width, number, channels)
                yield encoded(image, "JPEG", quality=quality, **options, **extra)
                noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
                yield encoded(noise if channels == 3 else noise[..., 0], "JPEG", quality=quality, **options, **extra)


def test_the_quick_path_gives_the_same_bytes():
    taken = 0
    for data in jpegs():
        quick = decode._plain_jpeg(data, TARGET)
        slow = decode._decode(io.BytesIO(data), TARGET)
        taken += quick is not None
        if quick is not None:
            assert quick.mode == slow.mode
            assert quick.tobytes() == slow.tobytes()
    assert taken == 200


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("CMYK", (8, 8)), "JPEG"),
        oriented("JPEG", 1),
        encoded(smooth(9, 9), "MPO", save_all=True, append_images=[smooth(9, 9)]),
        encoded(smooth(40, 40), "JPEG")[:-60],
        encoded(smooth(64, 64), "JPEG"),
        encoded(smooth(9, 9), "PNG"),
        b"\xff\xd8\xff",
    ],
    ids=["cmyk", "exif", "mpo", "truncated", "large", "png", "start"],
)
def test_the_quick_path_leaves_the_odd_ones(data):
    assert decode._plain_jpeg(data, TARGET) is None


def test_the_quick_path_leaves_what_the_memory_cannot_hold(monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", full)
    assert open_image(encoded(smooth(9, 8), "JPEG"), TARGET).size == (8, 9)


def test_pixels_are_taken_as_they_are():
    assert opened(GRAY)[0] == "L"
    assert np.array_equal(opened(GRAY)[1], GRAY)
    assert np.array_equal(opened(COLOUR)[1], COLOUR)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert opened(clear)[1].tolist() == [[[255] * 3] * 2] * 2


def test_a_file_gives_what_its_bytes_give(tmp_path):
    for number, image in enumerate(
        (smooth(50, 60), Image.fromarray(RNG.integers(0, 256, (900, 700, 3), dtype=np.uint8)))
    ):
        for kind in ("PNG", "JPEG"):
            data = encoded(image, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
            path = tmp_path / f"{number}.{kind}"
            path.write_bytes(data)
            assert (len(data) > decode.MEBIBYTE) == bool(number)  # one read, or the decoder's own
            assert np.array_equal(opened(str(path))[1], opened(data)[1])


# How a rectangle becomes a square.


def bands(height, width):
    """Columns from 0 to 255, or rows where it is high."""
    if width >= height:
        return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))
    return Image.fromarray(np.tile(np.linspace(0, 255, height).astype(np.uint8)[:, None], (1, width)))


def test_a_square_of_the_size_is_left_alone():
    image = smooth(16, 16)
    assert square(image, TARGET) is image


def test_crop_keeps_the_centre():
    found = np.asarray(square(bands(16, 48), TARGET)).astype(int)
    assert np.abs(found - np.linspace(0, 255, 48)[16:32]).max() <= 2
    tall = np.asarray(square(bands(48, 16), TARGET))
    assert np.array_equal(tall, found.T)


def test_pad_keeps_all_between_bars():
    found = np.asarray(square(Image.new("RGB", (64, 32), (9, 9, 9)), Target(16, "pad", "array", 1)))
    assert (found[4:12] == 9).all()
    assert not found[:4].any()
    assert not found[12:].any()
    found = np.asarray(square(Image.new("L", (3, 30), 9), Target(16, "pad", "array", 1)))
    assert found.shape == (16, 16)
    assert (found == 9).sum() == 32


def test_stretch_keeps_all():
    found = np.asarray(square(bands(16, 64), Target(16, "stretch", "array", 1))).astype(int)
    assert np.abs(found - np.linspace(0, 255, 64).reshape(16, 4).mean(1)).max() <= 6


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (1000, 999)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_shape_becomes_a_square(fit, shape, mode):
    found = square(Image.new(mode, shape, "white"), Target(16, fit, "array", 1))
    assert (found.size, found.mode) == ((16, 16), mode)
    assert np.asarray(found).max() == 255
    if fit != "pad":
        assert np.asarray(found).min() == 255


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((40, 80), (16, 32)), ((80, 40), (32, 16)), ((16, 20), (16, 20)), ((1, 1), (16, 16)), ((5, 10), (16, 32)),
     ((1, 500), (16, 64)), ((500, 1), (64, 16)), ((100, 400), (16, 64)), ((100, 401), (16, 64)), ((33, 50), (16, 24))],
)  # fmt: skip
def test_the_short_side_is_the_size_and_the_long_at_most_four_times(shape, stored):
    found = short_side(Image.new("L", shape[::-1]), Target(16, "crop", "jpeg", 1))
    assert found.size[::-1] == stored


def memory_taken(work: Callable[[], object]) -> float:
    """MiB that ``work`` takes at most beyond what this process has; what it had at most before does not count."""
    process = Path("/proc/self")
    if not (process / "clear_refs").exists():
        pytest.skip("Linux alone tells how much memory a process has had at most since then")

    def now(name: str) -> float:
        return float(re.search(rf"{name}:\s+(\d+) kB", (process / "status").read_text())[1]) / 1024

    (process / "clear_refs").write_text("5")  # the peak is what there is now
    before = now("VmRSS")
    work()
    return now("VmHWM") - before


def test_a_strip_is_cut_about_its_centre():
    found = np.asarray(short_side(bands(10, 410), Target(10, "crop", "jpeg", 1))).astype(int)
    assert found.shape == (10, 40)
    assert np.abs(found - np.linspace(0, 255, 410)[185:225]).max() <= 2


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("upright", [False, True])
def test_an_extreme_strip_takes_little_memory(fit, upright):
    long = 3_000_000
    image = Image.new("L", (1, long) if upright else (long, 1), 9)
    found = []
    assert memory_taken(lambda: found.append(square(image, Target(16, fit, "array", 1)))) < 40  # MiB; it was 100
    assert found[0].size == (16, 16)
    assert np.asarray(found[0]).max() == 9


# What is refused, and why.


def test_the_pixel_limit_comes_before_decoding():
    start = time.perf_counter()
    assert refusal(png_of(60000, 60000)) == "60,000 x 60,000 pixels; data.max_pixels is 200,000,000"
    jpeg = bytearray(encoded(smooth(8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60000, 50000)
    assert refusal(bytes(jpeg)) == "50,000 x 60,000 pixels; data.max_pixels is 200,000,000"
    gif = bytearray(encoded(GRAY, "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    assert "65,535 x 65,535 pixels" in refusal(bytes(gif))
    assert time.perf_counter() - start < 1


def test_the_pixel_limit_is_inclusive():
    for kind in ("PNG", "JPEG"):
        data = encoded(GRAY, kind)
        assert opened(data, max_pixels=54)[1].size == 54
        assert refusal(data, max_pixels=53) == "9 x 6 pixels; data.max_pixels is 53"


def test_an_icon_that_hides_a_bomb_is_refused():
    bomb = png_of(60000, 60000, (b"IDAT", zlib.compress(bytes(1000))))
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 8, len(bomb), 22) + bomb
    said = []
    assert memory_taken(lambda: said.append(refusal(icon))) < 100
    assert said == ["an icon of more pixels than data.max_pixels, 200,000,000"]
    assert Image.MAX_IMAGE_PIXELS is None  # of others the limit is our own


def test_text_that_unpacks_to_more_than_it_should_is_refused_or_left_out():
    pixels = (b"IDAT", zlib.compress(b"\0\0" * 2))
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        data = png_of(1, 2, (kind, head + zlib.compress(bytes(50_000_000))), pixels)

        def look(data=data):
            try:
                assert open_image(data, TARGET).size == (1, 2)
            except Refused as refused:
                assert "\n" not in str(refused)

        assert memory_taken(look) < 30


@pytest.mark.parametrize(
    "data", [b"P6 0 0 255\n", b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\1\0\0;", png_of(0, 5)]
)
def test_an_image_without_pixels_is_refused(data):
    assert refusal(data)


def test_an_image_that_says_it_is_empty_never_reaches_resize(monkeypatch):
    empty = Image.new("L", (0, 5))
    empty.format = "GIF"
    monkeypatch.setattr(decode.Image, "open", lambda *args, **kwargs: empty)
    assert refusal(b"GIF89a") == "an image without pixels"


ENCODED = {
    "jpeg": encoded(smooth(60, 50), "JPEG"),
    "progressive": encoded(smooth(60, 50), "JPEG", progressive=True),
    "png": encoded(COLOUR, "PNG"),
    "png16": encoded(np.arange(400, dtype=np.uint16).reshape(20, 20), "PNG"),
    "exif png": oriented("PNG", 6),
    "gif": encoded(Image.fromarray(COLOUR).quantize(16), "GIF"),
    "tiff": encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    "webp": encoded(COLOUR, "WEBP"),
    "bmp": encoded(COLOUR, "BMP"),
    "ppm": encoded(COLOUR, "PPM"),
    "ico": encoded(smooth(16, 16), "ICO"),
    "jp2": encoded(COLOUR, "JPEG2000"),
    **({"avif": encoded(smooth(16, 16), "AVIF")} if features.check("avif") else {}),
}


def survives(data):
    """An image or a reason in one line, never anything else."""
    try:
        image = open_image(data, TARGET)
    except Refused as refused:
        assert str(refused)
        assert "\n" not in str(refused)
        return str(refused)
    assert image.mode in ("L", "RGB")
    assert square(image, TARGET).size == (16, 16)
    return None


@pytest.mark.parametrize("kind", ENCODED)
def test_cut_off_anywhere_it_is_refused_or_an_image(kind):
    data = ENCODED[kind]
    reasons = [survives(data[:end]) for end in range(0, len(data) - 12, 10)]
    assert reasons[0] == EMPTY
    assert all(reasons[: len(reasons) // 2])
    if kind in ("jpeg", "png", "png16", "exif png"):
        assert all(reasons[:-2])
        assert "truncated" in reasons


@pytest.mark.parametrize("kind", ENCODED)
@given(data=st.data())
@hypothesis_settings(max_examples=40)
def test_flipped_bits_never_stop_a_run(kind, data):
    content = bytearray(ENCODED[kind])
    for at in data.draw(st.lists(st.integers(0, 8 * min(len(content), 600) - 1), min_size=1, max_size=6)):
        content[at // 8] ^= 1 << at % 8
    survives(bytes(content))


STARTS = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"P5 ",
    b"RIFF\0\0\0\0WEBP",
]
STARTS += [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\0\0\1\0\1\0", b"\0\0\0\x0cjP  \r\n\x87\n"]


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@hypothesis_settings(max_examples=250)
def test_random_bytes_never_stop_a_run(start, rest):
    survives(start + rest)


@pytest.mark.parametrize(
    "data",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", b"%PDF-1.4\n", b"<svg xmlns='x'/>",
     b"8BPS\0\1" + bytes(40), b"hello", b"\x80\x04cos\nsystem\n", b"\0\0\0\x18ftypisom" + bytes(40),
     b"\x93NUMPY\1\0", b"PK\3\4" + bytes(30)],
    ids=["eps", "pdf", "svg", "psd", "text", "pickle", "film", "npy", "zip"],
)  # fmt: skip
def test_what_is_no_image_is_refused_and_nothing_is_run(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("something was run"))
    assert refusal(data) == UNKNOWN


def test_a_large_film_is_not_read_whole(tmp_path):
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(3 * 2**30)
    start, said = time.perf_counter(), []
    assert memory_taken(lambda: said.append(refusal(str(path)))) < 50
    assert said == [UNKNOWN]
    assert time.perf_counter() - start < 2


def test_a_file_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    assert refusal(str(tmp_path / "gone.png")) == "cannot be read: No such file or directory"
    assert refusal(str(tmp_path)) == "cannot be read: Is a directory"

    def denied(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(builtins, "open", denied)
    assert refusal("a.png") == "cannot be read: Permission denied"


def test_an_image_that_the_memory_cannot_hold_is_refused(monkeypatch):
    def full(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    monkeypatch.setattr(decode, "_flatten", full)
    assert refusal(encoded(COLOUR, "PNG")) == "too large for the memory"


# Chunks.


def decoded(folder, items, findings=(), **values):
    target = Target(**{**vars(TARGET), **values})
    counts = decode_chunk(items, list(findings), target, folder, 3)
    chunk = load_chunk(folder / "000003.npz")
    assert counts == (len(chunk.names), len(chunk.findings))
    return chunk, (folder / "000003.bin").read_bytes()


PNG = encoded(COLOUR, "PNG")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.jpg", b"hello", "rejected"), ("a.JPG", b"hello", "rejected"), ("a.heic", b"hello", "rejected"),
        ("a.txt", b"hello", "ignored"), ("a.JSON", b"hello", "ignored"), ("README", b"hello", "ignored"),
        ("a.png", b"", "rejected"), ("__init__.py", b"", "ignored"), ("b/.png/a.txt", b"hello", "ignored"),
        ("a.txt", PNG[:-30], "rejected"), ("a.png", PNG[:-30], "rejected"), ("a", PNG[:-30], "rejected"),
    ],
)  # fmt: skip
def test_only_what_says_it_is_an_image_counts_as_rejected(tmp_path, name, data, kind):
    chunk, _ = decoded(tmp_path, [Item(name, data)])
    assert [(finding.name, finding.kind) for finding in chunk.findings] == [(name, kind)]


def test_an_image_of_any_name_is_taken(tmp_path):
    chunk, _ = decoded(tmp_path, [Item("notes.txt", PNG), Item("a\nb,\udcff.jpg", PNG)])
    assert chunk.names == ["notes.txt", "a\nb,\udcff.jpg"]


def test_every_item_is_either_taken_or_listed(tmp_path):
    items = [Item(f"{number}.png", data) for number, data in enumerate(ENCODED.values())]
    items += [Item(f"x{number}.png", data[: len(data) // 2]) for number, data in enumerate(ENCODED.values())]
    items += [
        Item("film.mp4", b"\0\0\0\x18ftypisom"),
        Item("bomb.png", png_of(60000, 60000)),
        Item("gone.png", "/gone"),
    ]
    before = [Finding("link.png", "rejected", "a link")]
    chunk, _ = decoded(tmp_path, items, before)
    assert sorted([*chunk.names, *(finding.name for finding in chunk.findings)]) == sorted(
        [item.name for item in items] + ["link.png"]
    )
    assert chunk.names == [f"{number}.png" for number in range(len(ENCODED))]


def test_a_resize_that_the_memory_cannot_hold_is_listed(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    chunk, data = decoded(tmp_path, [Item("a.png", PNG)])
    assert chunk.findings == [Finding("a.png", "rejected", "too large for the memory")]
    assert data == b""


def test_garbage_in_a_table_is_rejected_whatever_its_name(tmp_path):
    chunk, _ = decoded(
        tmp_path, [Item("a.parquet/0000003", b"hello", is_declared_image=True), Item("README", b"hello")]
    )
    assert [(each.name, each.kind) for each in chunk.findings] == [
        ("a.parquet/0000003", "rejected"),
        ("README", "ignored"),
    ]


@pytest.mark.parametrize("stored", ["array", "jpeg"])
def test_a_chunk_without_an_image_is_still_a_chunk(tmp_path, stored):
    chunk, data = decoded(tmp_path, [], [Finding("a", "ignored", "b")], stored=stored)
    assert (chunk.names, data) == ([], b"")
    assert chunk.shapes.shape == (0, 2)
    assert chunk.digests.shape == (0, 32)
    assert chunk.sums.shape == chunk.squares.shape == (0, 3)
    assert load_thumbs(tmp_path / "000003.npz").shape == (0, 16, 16, 3)


@pytest.mark.parametrize("which", ["gray", "colour", "both"])
def test_the_bytes_of_an_array_chunk_are_the_pixels(tmp_path, which):
    gray, colour = smooth(16, 16, 1, 1), smooth(16, 16, 2)
    images = {"gray": [gray, gray], "colour": [colour], "both": [gray, colour, gray]}[which]
    items = [Item(str(number), encoded(image, "PNG"), "a", "val") for number, image in enumerate(images)]
    chunk, data = decoded(tmp_path, items)
    pixels = [np.asarray(image if which == "gray" else image.convert("RGB")) for image in images]
    assert data == b"".join(each.tobytes() for each in pixels)
    assert chunk.ends.tolist() == np.cumsum([each.size for each in pixels]).tolist()
    assert chunk.gray.tolist() == [image.mode == "L" for image in images]
    assert (chunk.labels, chunk.splits) == (["a"] * len(images), ["val"] * len(images))
    wide = [np.asarray(image.convert("RGB")).astype(np.int64) for image in images]
    assert chunk.sums.tolist() == [each.sum((0, 1)).tolist() for each in wide]
    assert chunk.squares.tolist() == [(each**2).sum((0, 1)).tolist() for each in wide]


def test_the_bytes_of_a_jpeg_chunk_are_jpegs(tmp_path):
    images = [smooth(40, 80), smooth(1, 500, 1, 1), smooth(16, 16)]
    items = [Item(str(number), encoded(image, "PNG")) for number, image in enumerate(images)]
    chunk, data = decoded(tmp_path, items, stored="jpeg")
    starts = [0, *chunk.ends]
    found = [np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in zip(starts, chunk.ends, strict=False)]
    assert [list(each.shape[:2]) for each in found] == chunk.shapes.tolist() == [[16, 32], [16, 64], [16, 16]]
    assert [each.ndim for each in found] == [3, 2, 3]
    assert np.abs(found[2].astype(int) - np.asarray(images[2])).mean() < 12
    wide = np.asarray(images[2]).astype(np.int64)
    assert chunk.sums[2].tolist() == wide.sum((0, 1)).tolist()
    assert chunk.squares[2].tolist() == (wide**2).sum((0, 1)).tolist()


def test_equal_pixels_have_equal_digests(tmp_path):
    gray, colour = smooth(16, 16, 1, 1), smooth(16, 16, 2)
    images = [gray, gray.convert("RGB"), colour]
    items = [Item(str(number), encoded(image, "PNG")) for number, image in enumerate(images)]
    mixed, _ = decoded(tmp_path, items)
    assert np.array_equal(mixed.digests[0], mixed.digests[1])
    assert not np.array_equal(mixed.digests[0], mixed.digests[2])
    alone, _ = decoded(tmp_path, items[:1])  # and in whichever chunk they lie
    assert np.array_equal(alone.digests[0], mixed.digests[0])


def test_nothing_is_unpickled(tmp_path):
    with (tmp_path / "000003.npz").open("wb") as file:
        np.savez(file, text=np.array([os.system], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_chunk(tmp_path / "000003.npz")


def test_a_chunk_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        decode_chunk([Item("a.png", PNG)], [], TARGET, tmp_path, 3)
    assert not (tmp_path / "000003.npz").exists()


def test_what_the_settings_make_of_an_image():
    assert target_of(change(DIGITS, size=32, fit="pad", max_pixels=5)) == Target(32, "pad", "array", 5)
    assert target_of(change(DIGITS, size=224)) == Target(224, "crop", "jpeg", 200_000_000)


def test_without_the_package_that_reads_it_a_heic_image_is_refused_with_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Refused, match="pillow-heif"):
        open_image(b"\0\0\0\x18ftypheic" + bytes(40), TARGET)
