"""Images of more than 8 bits: every value as the file has it, and one scale for the set."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scan_core.data.decode import Refused, Target, decode
from scan_core.data.depth import Deep, common_range, eight_bits, extent
from scan_core.data.ingest import ingest, load_chunks
from scan_core.data.types import Item, Source

TWELVE_BITS = Target(16, "crop", "array", 200_000_000, range=(0, 4095))
RNG = np.random.default_rng(0)


def png(values):
    """Of (height,width,channels) uint16."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    checked = (struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data)) for k, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def tiff(values, order="<", deflated=False, planes=False, extra=(), **tags):
    """Of (height,width,channels), written tag by tag; ``tags`` are t262=(1,), or t42113=b"text"."""
    height, width, channels = values.shape
    parts = [values[..., channel] for channel in range(channels)] if planes else [values]
    parts = [part.astype(values.dtype.newbyteorder(order)).tobytes() for part in parts]
    parts = [zlib.compress(part) if deflated else part for part in parts]
    starts = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = {
        256: (width,), 257: (height,), 258: (values.dtype.itemsize * 8,) * channels, 259: (8 if deflated else 1,),
        262: (2 if channels > 2 else 1,), 273: starts, 277: (channels,), 278: (height,), 279: [*map(len, parts)],
        284: (2 if planes else 1,), 339: (kinds[values.dtype.kind],) * channels,
        **({338: extra} if extra else {}), **{int(name[1:]): value for name, value in tags.items()},
    }  # fmt: skip
    at = 8 + sum(map(len, parts))
    table, room = struct.pack(order + "H", len(entries)), at + 2 + 12 * len(entries) + 4
    rest = b""
    for tag, value in sorted(entries.items()):
        is_text = isinstance(value, bytes)
        packed = value if is_text else b"".join(struct.pack(order + "I", number) for number in value)
        table += struct.pack(order + "HHI", tag, 2 if is_text else 4, len(value))
        table += packed if len(packed) == 4 else struct.pack(order + "I", room + len(rest))
        rest += packed if len(packed) != 4 else b""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return start + b"".join(parts) + table + bytes(4) + rest


def values_of(channels, dtype=np.uint16):
    return RNG.integers(0, 4096, (7, 9, channels)).astype(dtype)


def opaque(values):
    return np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "PNG with alpha", "TIFF <", "TIFF >", "deflated <", "deflated >"])
def test_no_bit_of_sixteen_is_lost(kind, channels):
    values = values_of(channels)
    if kind.startswith("PNG"):
        data = png(opaque(values) if "alpha" in kind else values)
    else:
        data = tiff(values, kind[-1], kind.startswith("deflated"))
    found = np.asarray(decode(data, TWELVE_BITS).image)
    assert np.array_equal(found.reshape(values.shape), np.round(values / 4095 * 255))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(("dtype", "offset"), [("i2", -2000), ("i4", -2000), ("f4", -0.5)])
def test_numbers_of_every_byte_order_are_the_same(dtype, offset, deflated, order):
    values = values_of(1).astype(dtype) + np.array(offset, dtype)
    scaled = Target(16, "crop", "array", 10**6, range=(offset, 4095 + offset))
    found = np.asarray(decode(tiff(values, order, deflated), scaled).image)
    assert np.array_equal(found, np.round((values[..., 0].astype(float) - offset) / 4095 * 255))


def test_unsigned_32_bits_are_not_below_zero():
    values = np.array([[[0], [3_000_000_000], [4_000_000_000]]], np.uint32)
    assert np.asarray(decode(tiff(values), Target(16, "crop", "array", 99)).image).tolist() == [[0, 191, 255]]


def test_where_white_is_zero_values_are_turned_around():
    values = values_of(1)
    found = np.asarray(decode(tiff(65535 - values, t262=(0,)), TWELVE_BITS).image)
    assert np.array_equal(found, np.round(values[..., 0] / 4095 * 255))


def test_what_was_not_measured_is_black_and_does_not_count():
    values = np.full((8, 8, 1), 300, np.float32)
    values[0, :5, 0] = [-9999, np.nan, np.inf, 100, 150]
    decoded = decode(tiff(values, t42113=b"-9999\0"), Target(16, "crop", "array", 99))
    assert decoded.extent.tolist() == [100, 100, 300, 300]
    assert np.asarray(decoded.image)[0, :6].tolist() == [0, 0, 0, 0, 64, 255]


def test_transparent_pixels_of_sixteen_bits_are_white():
    values = np.array([[[100, 200, 4095, 65535], [100, 200, 4095, 0]]], np.uint16)
    assert np.asarray(decode(png(values), TWELVE_BITS).image).tolist() == [[[6, 12, 255], [255] * 3]]


@pytest.mark.parametrize(("data", "reason"), [
    (tiff(values_of(13)), "13 bands; at most 4 are read; save three of them as an image"),
    (tiff(values_of(3, np.float32)), "a TIFF that is not read: 3 bands of 32 bits (float), compression 1"),
    (tiff(values_of(1, np.float64)), "a TIFF that is not read: 1 band of 64 bits (float), compression 1"),
    (
        tiff(values_of(3), planes=True),
        "a TIFF of 16 bits with its colors in separate planes; save it with interleaved ones",
    ),
    (b"II*\0\xff\xff\xff\xff", "damaged: the tags of a TIFF cannot be read"),
])  # fmt: skip
def test_a_tiff_that_is_not_read_says_what_it_is(data, reason, capfd):
    with pytest.raises(Refused, match="^" + reason.replace("(", r"\(").replace(")", r"\)") + "$"):
        decode(data, TWELVE_BITS)
    assert capfd.readouterr() == ("", "")


def extents(*ends):
    return np.array([(low, low, high, high) for low, high in ends], float).reshape(-1, 4)


@pytest.mark.parametrize(("measured", "scale"), [
    (extents(), None),
    (np.full((5, 4), np.nan), None),
    (extents((0, 1000), (np.nan, np.nan), (50, 4095)), (0, 4095)),
    (extents((20_000, 21_000), (20_500, 25_000)), (20_000, 25_000)),
    (extents((-3.4e38, 3.4e38)), (-3.4e38, 3.4e38)),
    (extents(*[(10, 500)] * 200, (0, 65535)), (10, 500)),  # one broken image of many
    (np.array([[0, 0, 0, 1.0]]), (0, 1)),  # a mask of few pixels
    (extents((7, 7)), (0, 7)),
    (extents((-7, -7)), (-7, 0)),
    (extents((0, 0)), (0, 1)),
])  # fmt: skip
def test_one_scale_holds_the_values_of_all_images(measured, scale):
    found = common_range(measured)
    assert found == scale
    assert found is None or found[0] < found[1]


def test_an_extent_leaves_out_hot_pixels():
    values = RNG.integers(100, 4000, (200, 200))
    values[0, 0], values[1, 1] = 65535, 0
    lowest, low, high, highest = extent(Deep(values))
    assert (lowest, highest) == (0, 65535)
    assert 100 <= low < 110
    assert 3990 < high < 4000


def test_an_image_is_scaled_strip_by_strip_as_a_whole(monkeypatch):
    values = RNG.random((50, 20, 3))
    whole = np.asarray(eight_bits(Deep(values), (0, 1)))
    monkeypatch.setattr("scan_core.data.depth.STRIP", 200)
    assert np.array_equal(np.asarray(eight_bits(Deep(values), (0, 1))), whole)


def test_a_set_is_decoded_again_with_its_scale_where_it_is_deep(tmp_path):
    gray = Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8))
    folder = tmp_path / "images"
    folder.mkdir()
    gray.save(folder / "plain.png")
    for name, top in (("dark.png", 1000), ("bright.png", 4000)):
        (folder / name).write_bytes(png(np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16, 1)))
    source = Source(lambda: (Item(name, str(folder / name)) for name in ("plain.png", "dark.png", "bright.png")))
    target, chunks = Target(16, "crop", "array", 10**6), tmp_path / "chunks"
    chunks.mkdir()
    count = ingest(source, target, chunks, 1, lambda *_: None, most=1)
    plain = (chunks / "000000.npz").stat().st_mtime_ns
    scale = common_range(load_chunks(chunks, count)[0].extents)
    assert scale == (0, 4000)
    ingest(source, Target(16, "crop", "array", 10**6, range=scale), chunks, 1, lambda *_: None, most=1)
    brightest = [max((chunks / f"{number:06d}.bin").read_bytes()) for number in range(count)]
    assert brightest == [max(gray.tobytes()), 64, 255]
    assert (chunks / "000000.npz").stat().st_mtime_ns == plain
