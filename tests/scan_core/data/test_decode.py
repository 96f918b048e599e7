"""Decoding: what every format and mode becomes, that the fast paths change nothing, and that no file stops a run."""

import builtins
import io
import itertools
import re
import struct
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from scan_core.data import decode
from scan_core.data.decode import EMPTY, ORIENTATION, UNKNOWN, Refused, Target, open_image, short_side, square
from tests.scan_core.data.little_files import DIGITS
from tests.tiny import change

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # damaged files cause warnings; workers ignore them
TARGET = Target(16, "crop", "array", 200_000_000)
RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def encoded(image, kind, **options):
    file = io.BytesIO()
    options |= {"lossless": True, "exact": True} if kind == "WEBP" else {}
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def opened(data, **values):
    """The mode and the pixels."""
    image = open_image(data, Target(**{**vars(TARGET), **values}))
    return image.mode, np.asarray(image)


def smooth(height, width, seed=0, channels=3):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), dtype=np.uint8)
    image = Image.fromarray(noise if channels > 1 else noise[..., 0])
    return image.resize((width, height), Image.Resampling.BICUBIC)


def palette(kind, mode, values, colors, **options):
    image = Image.frombytes(mode, (len(values), 1), bytes(values))
    image.putpalette(colors)
    return encoded(image, kind, **options)


def png_of(width, height, *chunks, depth=8):
    """A gray PNG whose header says it is that large, with any chunks."""
    png, header = b"\x89PNG\r\n\x1a\n", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png


def refusal(data, **values):
    with pytest.raises(Refused) as error:
        opened(data, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


COMMON = ("PNG", "BMP", "PPM", "TIFF")
SIXTEEN_BITS = np.array([[0, 257, 32768, 65535, 128, 129]], np.uint16)
EIGHT_BITS = [[0, 1, 128, 255, 0, 1]]
RAMP = [200, 200, 200, 9, 9, 9, 77, 77, 77, 0, 0, 0]
RED_GREEN_BLUE = [255, 0, 0, 0, 255, 0, 0, 0, 255]
RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
RGBA_ON_WHITE = [[[200, 100, 0], [255] * 3, [244, 224, 204]]]
FEW = Image.fromarray(COLOR).quantize(16)
LA = Image.fromarray(np.array([[[200, 255], [200, 0], [0, 51]]], np.uint8), "LA")
WHITE_AND_BLACK = (b"IDAT", zlib.compress(b"\0\xf0"))  # four pixels each

MODES = {
    **{f"color {kind}": (encoded(COLOR, kind), COLOR) for kind in (*COMMON, "WEBP", "JPEG2000", "ICO")},
    **{f"gray {kind}": (encoded(GRAY, kind), GRAY) for kind in (*COMMON, "GIF", "JPEG2000")},
    **{f"1 bit {kind}": (encoded(GRAY > 127, kind), (GRAY > 127) * np.uint8(255)) for kind in COMMON},
    "1 bit, black clear": (png_of(8, 1, (b"tRNS", b"\0\0"), WHITE_AND_BLACK, depth=1), [[255] * 8]),
    "1 bit, white clear": (png_of(8, 1, (b"tRNS", b"\0\1"), WHITE_AND_BLACK, depth=1), [[255] * 4 + [0] * 4]),
    **{f"palette {kind}": (encoded(FEW, kind), np.asarray(FEW.convert("RGB")))
       for kind in ("PNG", "GIF", "BMP", "TIFF")},
    "gray palette": (palette("PNG", "P", [3, 0, 1, 2], RAMP), [[0, 200, 9, 77]]),
    "gray palette, clear entries": (
        palette("PNG", "P", [1, 2, 0], RAMP[3:], transparency=bytes([0, 255, 51])), [[77, 204, 255]],
    ),
    **{f"palette {kind}, clear entry": (
        palette(kind, "P", [0, 1, 2], RED_GREEN_BLUE, transparency=1), [[[255, 0, 0], [255] * 3, [0, 0, 255]]],
    ) for kind in ("PNG", "GIF")},
    "gray, clear value": (encoded(np.array([[7, 8]], np.uint8), "PNG", transparency=7), [[255, 8]]),
    "color, clear value": (
        encoded(np.array([[[1, 2, 3], [3, 2, 1]]], np.uint8), "PNG", transparency=(1, 2, 3)), [[[255] * 3, [3, 2, 1]]],
    ),
    "16 bits, clear value": (
        png_of(3, 1, (b"tRNS", b"\0\7"), (b"IDAT", zlib.compress(b"\0\0\7\0\0\xff\xff")), depth=16), [[255, 0, 255]],
    ),
    **{f"RGBA {kind}": (encoded(RGBA, kind), RGBA_ON_WHITE) for kind in ("PNG", "TIFF", "WEBP")},
    **{f"LA {kind}": (encoded(LA, kind), [[200, 255, 204]]) for kind in ("PNG", "TIFF")},
    "CMYK": (encoded(Image.fromarray(COLOR).convert("CMYK"), "TIFF"), COLOR),
    **{f"16 bits {kind}": (encoded(SIXTEEN_BITS, kind), EIGHT_BITS) for kind in ("PNG", "TIFF")},
    "16 bits PGM": (b"P5 6 1 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes(), EIGHT_BITS),
    "floats in 0..1": (encoded(np.array([[0, 0.5, 1]], np.float32), "TIFF"), [[0, 128, 255]]),
    "other floats": (encoded(np.array([[-1, 0, 3]], np.float32), "TIFF"), [[0, 64, 255]]),
    "no numbers": (encoded(np.array([[np.nan, np.inf, 1]], np.float32), "TIFF"), [[0, 0, 255]]),
    "huge floats": (encoded(np.array([[3.4e38, -3.4e38]], np.float32), "TIFF"), [[255, 0]]),
    "one float": (encoded(np.array([[-2, -2]], np.float32), "TIFF"), [[0, 0]]),
    "32 bits": (encoded(np.array([[0, 65535, 514]], np.int32), "TIFF"), [[0, 255, 2]]),
    "32 bits beyond 16": (encoded(np.array([[0, 100000, 50000]], np.int32), "TIFF"), [[0, 255, 128]]),
    "gray pixels": (GRAY, GRAY),
    "color pixels": (COLOR, COLOR),
    "clear pixels": (np.zeros((2, 2, 4), np.uint8), [[[255] * 3] * 2] * 2),
    "largest of an icon": (encoded(smooth(64, 64), "ICO", sizes=[(16, 16), (64, 64)]), np.asarray(smooth(64, 64))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_gray_or_color(name):
    data, wanted = MODES[name]
    mode, found = opened(data)
    assert mode == ("L" if np.ndim(wanted) == 2 else "RGB")
    assert np.abs(found.astype(int) - wanted).max() <= (1 if name.startswith("RGBA") else 0)


@pytest.mark.parametrize(("mode", "data", "wanted"), [
    ("PA", [0, 255, 0, 0], (255, 255, 255)), ("RGBa", [0, 0, 0, 0], (255, 255, 255)),
    ("La", [0, 0], 255),
])  # fmt: skip
def test_modes_that_no_file_gives_are_flattened_too(mode, data, wanted):
    width = 2 if mode == "PA" else 1
    assert decode._flatten(Image.frombytes(mode, (width, 1), bytes(data))).getpixel((width - 1, 0)) == wanted


@pytest.mark.parametrize("kind", ["JPEG", "CMYK JPEG", "AVIF", "HEIF", "LAB TIFF"])
def test_lossy_formats_come_close(kind):
    image = smooth(64, 48)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    changed = image.convert("CMYK") if kind == "CMYK JPEG" else image
    if kind == "LAB TIFF":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    mode, found = opened(encoded(changed, kind.split()[-1]))
    assert mode == "RGB" and np.abs(found.astype(int) - image).mean() < 12


def test_ycck_is_what_pillow_makes_of_it():
    jpeg = encoded(smooth(32, 32).convert("CMYK"), "JPEG", quality=95)
    at = jpeg.index(b"Adobe") + 11
    ycck = jpeg[:at] + b"\2" + jpeg[at + 1 :]
    assert np.array_equal(opened(ycck)[1], np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB")))
    assert not np.array_equal(opened(ycck)[1], opened(jpeg)[1])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_images_counts(kind):
    first, second = Image.new("RGB", (8, 8), (200, 30, 30)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second, first])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(opened(data)[1].astype(int) - [200, 30, 30]).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(50, 60), (1100, 900)])  # one read, or the decoder's own
def test_a_file_gives_what_its_bytes_give(tmp_path, kind, size):
    data = encoded(RNG.integers(0, 256, (*size, 3), dtype=np.uint8), kind, quality=100, subsampling=0)
    assert (len(data) > decode.MEBIBYTE) == (size[0] > 1000)
    (tmp_path / "image").write_bytes(data)
    assert np.array_equal(opened(str(tmp_path / "image"))[1], opened(data)[1])


# --- orientation


def oriented(kind, orientation, image=None):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image or smooth(24, 40), kind, exif=exif)


UPRIGHT = {  # where the EXIF standard puts the stored first row and column
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
    0: lambda a: a, 9: lambda a: a, 65535: lambda a: a,  # these do not exist
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_turned_upright(kind, orientation):
    stored = np.asarray(Image.open(io.BytesIO(encoded(smooth(24, 40), kind))))
    if kind == "AVIF" and not 1 <= orientation <= 8:
        pytest.skip("the encoder refuses it")
    assert np.array_equal(opened(oriented(kind, orientation))[1], UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_heif_image_is_turned_by_its_decoder_and_not_again_by_exif(orientation):
    pytest.importorskip("pillow_heif").register_heif_opener()
    found = opened(oriented("HEIF", orientation))[1]
    assert found.shape == (24, 40, 3) and np.abs(found.astype(int) - smooth(24, 40)).mean() < 8


@pytest.mark.parametrize("block", [b"", b"\0", b"MM\0*", b"II*\0\xff\xff\xff\x7f", b"x" * 64, b"MM\0*\0\0\0\b\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_with_a_damaged_exif_block_can_be_used(kind, block):
    assert opened(encoded(smooth(12, 20), kind, exif=b"Exif\0\0" + block))[1].shape == (12, 20, 3)


@pytest.mark.parametrize("before", [10, 4096, 60000])
def test_exif_is_found_behind_other_segments(before):
    jpeg = oriented("JPEG", 6)
    other = b"\xff\xed" + struct.pack(">H", before + 2) + b"\0" * before
    assert open_image(jpeg[:2] + other + jpeg[2:], TARGET).size == (24, 40)


# --- fast paths of JPEG


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_large_jpeg_is_decoded_at_a_fraction(fit, orientation):
    stored = encoded(smooth(800, 1000), "JPEG")
    target = Target(64, fit, "array", 10**8)
    small = open_image(oriented("JPEG", orientation, smooth(800, 1000)), target)
    assert max(small.size) < 1000
    assert (min(small.size) if fit != "pad" else max(small.size)) >= 2 * 64  # enough is left to resize
    upright = Image.fromarray(UPRIGHT[orientation](np.asarray(Image.open(io.BytesIO(stored)))))
    found, full = (np.asarray(square(each, target)).astype(int) for each in (small, upright))
    assert np.abs(found - full).mean() < 1.5 and np.abs(found - full).max() < 30


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(600, 400), (100, 1000), (63, 500), (63, 120), (64, 120), (9, 300), (64, 64)])
def test_a_jpeg_is_decoded_at_a_fraction_on_both_paths_or_on_neither(fit, shape):
    data, target = encoded(smooth(*shape), "JPEG"), Target(16, fit, "array", 10**8)
    found = open_image(data, target)
    assert np.array_equal(np.asarray(found), np.asarray(decode._decode(io.BytesIO(data), target).image))
    if fit != "pad":
        assert (found.size == shape[::-1]) == (min(shape) < 64)


def jpegs():
    """JPEGs of every kind that the fast path may take, of odd sizes."""
    kinds = [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 2}]
    samplings, shapes = ("4:4:4", "4:2:2", "4:2:0", None), ((1, 1), (8, 8), (17, 31), (40, 7), (63, 61))
    for options, sampling, shape in itertools.product(kinds, samplings, shapes):
        extra = {} if sampling is None else {"subsampling": sampling}
        for image in (smooth(*shape), Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))):
            kept = image.convert("L") if sampling is None else image
            for quality in (30, 75, 95, 100):
                yield encoded(kept, "JPEG", quality=quality, **options, **extra)


def test_the_fast_path_gives_the_same_bytes():
    for data in jpegs():
        fast, slow = decode._plain_jpeg(data, TARGET), decode._decode(io.BytesIO(data), TARGET).image
        assert (fast.mode, fast.tobytes()) == (slow.mode, slow.tobytes())


UNUSUAL = {
    "cmyk": encoded(Image.new("CMYK", (8, 8)), "JPEG"), "exif": oriented("JPEG", 1), "start": b"\xff\xd8\xff",
    "mpo": encoded(smooth(9, 9), "MPO", save_all=True, append_images=[smooth(9, 9)]), "png": encoded(GRAY, "PNG"),
    "truncated": encoded(smooth(40, 40), "JPEG")[:-60], "large": encoded(smooth(64, 64), "JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_fast_path_leaves_the_unusual_ones(name):
    assert decode._plain_jpeg(UNUSUAL[name], TARGET) is None


# --- a rectangle becomes a square, or keeps its shape


def bands(height, width):
    """Columns from 0 to 255, or rows if it is high."""
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    return Image.fromarray(np.tile(ramp, (height, 1)) if width >= height else np.tile(ramp[:, None], (1, width)))


def test_a_square_of_the_size_is_left_alone():
    image = smooth(16, 16)
    assert square(image, TARGET) is image


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("make", "target", "wanted", "tolerance"), [
    (lambda h, w: square(bands(h, w), Target(16, "crop", "array", 1)), 48, np.linspace(0, 255, 48)[16:32], 2),
    (lambda h, w: square(bands(h, w), Target(16, "stretch", "array", 1)), 64,
     np.linspace(0, 255, 64).reshape(16, 4).mean(1), 6),
    (lambda h, w: short_side(bands(h, w), Target(16, "crop", "jpeg", 1)), 656,
     np.linspace(0, 255, 656)[296:360], 2),
], ids=["crop keeps the center", "stretch keeps all", "a strip is cut about its center"])  # fmt: skip
def test_what_is_kept_of_a_rectangle(make, target, wanted, tolerance, upright):
    found = np.asarray(make(target, 16) if upright else make(16, target)).astype(int)
    found = found.T if upright else found
    assert found.shape == (16, len(wanted)) and np.abs(found - wanted).max() <= tolerance


@pytest.mark.parametrize(("shape", "rows"), [((32, 64), slice(4, 12)), ((30, 3), slice(0, 16))])
def test_pad_keeps_all_between_bars(shape, rows):
    image = np.full(shape, 9, np.uint8)
    long = (0, -1) if shape[1] > shape[0] else (slice(None), [0, -1])
    image[[0, -1] if shape[1] > shape[0] else long] = 200  # the edges that the bars are beside
    found = np.asarray(square(Image.fromarray(image), Target(16, "pad", "array", 1)))
    columns = slice(0, 16) if shape[1] > shape[0] else slice(7, 9)
    inside = np.zeros((16, 16), bool)
    inside[rows, columns] = True
    assert (found[~inside] == 200).all() and found[inside].min() < 150


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (1000, 999)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_shape_becomes_a_square(fit, shape, mode):
    found = square(Image.new(mode, shape, "white"), Target(16, fit, "array", 1))
    assert (found.size, found.mode) == ((16, 16), mode)
    assert np.asarray(found).max() == 255 and (fit == "pad" or np.asarray(found).min() == 255)


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((40, 80), (16, 32)), ((80, 40), (32, 16)), ((16, 20), (16, 20)), ((1, 1), (16, 16)), ((5, 10), (16, 32)),
     ((1, 500), (16, 64)), ((500, 1), (64, 16)), ((100, 400), (16, 64)), ((100, 401), (16, 64)), ((33, 50), (16, 24))],
)  # fmt: skip
def test_the_short_side_is_the_size_and_the_long_at_most_four_times(shape, stored):
    assert short_side(Image.new("L", shape[::-1]), Target(16, "crop", "jpeg", 1)).size[::-1] == stored


def memory_taken(work):
    """MiB that ``work`` takes at most beyond what this process has now, and what ``work`` returns."""
    process = Path("/proc/self")
    if not (process / "clear_refs").exists():
        pytest.skip("only Linux tells how much memory a process has had at most since then")

    def now(name):
        return float(re.search(rf"{name}:\s+(\d+) kB", (process / "status").read_text())[1]) / 1024

    (process / "clear_refs").write_text("5")  # resets the peak
    before = now("VmRSS")
    found = work()
    return now("VmHWM") - before, found


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1)])
def test_an_extreme_strip_takes_little_memory(fit, size):
    image = Image.new("L", size, 9)
    taken, found = memory_taken(lambda: square(image, Target(16, fit, "array", 1)))
    assert taken < 40  # it was 100
    assert found.size == (16, 16) and np.asarray(found).max() == 9


# --- what is refused, and why


def claiming(data, at, *values):
    """``data`` with other numbers in its header."""
    return data[:at] + struct.pack(*values) + data[at + struct.calcsize(values[0]) :]


JPEG = encoded(smooth(8, 8), "JPEG")


BOMB = png_of(60000, 60000, (b"IDAT", zlib.compress(bytes(1000))))
ICON = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 8, len(BOMB), 22)
BOMBS = {  # and what is said before the limit
    "png": (BOMB, "60,000 x 60,000 pixels; data.max_pixels is "),
    "jpeg": (
        claiming(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 60000, 50000), "50,000 x 60,000 pixels; data.max_pixels is ",
    ),
    "gif": (claiming(encoded(GRAY, "GIF"), 6, "<HH", 65535, 65535), "65,535 x 65,535 pixels; data.max_pixels is "),
    "icon": (ICON + BOMB, "an icon of more pixels than data.max_pixels, "),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_the_pixel_limit_comes_before_decoding(kind):
    data, said = BOMBS[kind]
    taken, found = memory_taken(lambda: refusal(data))
    assert taken < 100 and found == f"{said}200,000,000"
    assert Image.MAX_IMAGE_PIXELS is None  # PIL's own limit does not apply to others


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_pixel_limit_is_inclusive(kind):
    data = encoded(GRAY, kind)
    assert opened(data, max_pixels=54)[1].size == 54
    assert refusal(data, max_pixels=53) == "9 x 6 pixels; data.max_pixels is 53"


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")])
def test_text_that_unpacks_to_too_much_is_refused_or_left_out(kind, head):
    packed = (kind, head + zlib.compress(bytes(50_000_000)))
    data = png_of(1, 2, packed, (b"IDAT", zlib.compress(b"\0\0" * 2)))
    assert memory_taken(lambda: survives(data))[0] < 30


NO_PIXELS = b"P6 0 0 255\n", b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\1\0\0;", png_of(0, 5)


@pytest.mark.parametrize("data", NO_PIXELS, ids=["ppm", "gif", "png"])
def test_an_image_without_pixels_is_refused(data):
    assert refusal(data)


def test_an_image_that_says_it_is_empty_never_reaches_resize(monkeypatch):
    monkeypatch.setattr(decode.Image, "open", lambda *args, **kwargs: Image.new("L", (0, 5)))
    assert refusal(b"GIF89a") == "an image without pixels"


ENCODED = {
    "jpeg": encoded(smooth(60, 50), "JPEG"), "progressive": encoded(smooth(60, 50), "JPEG", progressive=True),
    "png": encoded(COLOR, "PNG"), "png16": encoded(np.arange(400, dtype=np.uint16).reshape(20, 20), "PNG"),
    "exif png": oriented("PNG", 6), "gif": encoded(FEW, "GIF"), "webp": encoded(COLOR, "WEBP"),
    "tiff": encoded(COLOR, "TIFF", compression="tiff_lzw"), "bmp": encoded(COLOR, "BMP"), "ppm": encoded(COLOR, "PPM"),
    "ico": encoded(smooth(16, 16), "ICO"), "jp2": encoded(COLOR, "JPEG2000"),
    **({"avif": encoded(smooth(16, 16), "AVIF")} if features.check("avif") else {}),
}  # fmt: skip


def survives(data):
    """An image (None) or a reason in one line, never anything else."""
    try:
        image = open_image(data, TARGET)
    except Refused as refused:
        assert str(refused) and "\n" not in str(refused)
        return str(refused)
    assert image.mode in ("L", "RGB") and square(image, TARGET).size == (16, 16)
    return None


@pytest.mark.parametrize("kind", ENCODED)
def test_cut_off_anywhere_it_is_refused_or_an_image(kind):
    data = ENCODED[kind]
    reasons = [survives(data[:end]) for end in range(0, len(data) - 12, 10)]
    assert reasons[0] == EMPTY and all(reasons[: len(reasons) // 2])
    if kind in ("jpeg", "png", "png16", "exif png"):
        assert all(reasons[:-2]) and "truncated" in reasons


@pytest.mark.parametrize("kind", ENCODED)
@given(data=st.data())
@hypothesis_settings(max_examples=40)
@pytest.mark.slow
def test_flipped_bits_never_stop_a_run(kind, data):
    content = bytearray(ENCODED[kind])
    for at in data.draw(st.lists(st.integers(0, 8 * min(len(content), 600) - 1), min_size=1, max_size=6)):
        content[at // 8] ^= 1 << at % 8
    survives(bytes(content))


STARTS = [
    b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"BM", b"P5 ", b"RIFF\0\0\0\0WEBP",
    b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\0\0\1\0\1\0", b"\0\0\0\x0cjP  \r\n\x87\n",
]  # fmt: skip


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@hypothesis_settings(max_examples=250)
def test_random_bytes_never_stop_a_run(start, rest):
    survives(start + rest)


@pytest.mark.parametrize(
    "data",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", b"%PDF-1.4\n", b"<svg xmlns='x'/>",
     b"8BPS\0\1" + bytes(40), b"hello", b"\x80\x04cos\nsystem\n", b"\0\0\0\x18ftypisom" + bytes(40),
     b"\x93NUMPY\1\0", b"PK\3\4" + bytes(30)],
    ids=["eps", "pdf", "svg", "psd", "text", "pickle", "video", "npy", "zip"],
)  # fmt: skip
def test_other_files_are_refused_and_nothing_is_run(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("something was run"))
    assert refusal(data) == UNKNOWN


def test_a_large_video_is_not_read_whole(tmp_path):
    path = tmp_path / "video.mp4"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(3 * 2**30)
    taken, said = memory_taken(lambda: refusal(str(path)))
    assert taken < 50 and said == UNKNOWN


def test_a_file_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    assert refusal(str(tmp_path / "gone.png")) == "cannot be read: No such file or directory"
    assert refusal(str(tmp_path)) == "cannot be read: Is a directory"
    monkeypatch.setattr(builtins, "open", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    assert refusal("a.png") == "cannot be read: Permission denied"


def test_an_image_that_the_memory_cannot_hold_is_refused(monkeypatch):
    full = mock.Mock(side_effect=MemoryError)
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", full)
    assert opened(JPEG)[1].shape == (8, 8, 3), "the other path takes less"
    monkeypatch.setattr(decode, "_flatten", full)
    assert refusal(JPEG) == refusal(ENCODED["png"]) == "too large for the memory"


def test_without_its_package_a_heic_image_is_refused_with_the_packages_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pillow-heif" in refusal(b"\0\0\0\x18ftypheic" + bytes(40))


def test_the_target_is_that_of_the_settings():
    assert decode.target_of(change(DIGITS, size=32, fit="pad", max_pixels=5)) == Target(32, "pad", "array", 5)
    assert decode.target_of(change(DIGITS, size=224)) == Target(224, "crop", "jpeg", 200_000_000)
