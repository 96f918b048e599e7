"""Colors are sRGB's in the store, whatever profile a file has."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from scan_core.data import decode as decode_module
from scan_core.data.decode import Target, open_image
from tests.scan_core.data.test_decode import encoded, smooth

TARGET = Target(64, "crop", "array", 10**6)


def profile(red=(0.64, 0.33), green=(0.30, 0.60), blue=(0.15, 0.06), gamma=2.2, space=b"RGB "):
    """An ICC profile of version 2 with these primaries, white D65 and that gamma."""
    to_d50 = np.array([[1.0478, 0.0229, -0.0501], [0.0295, 0.9905, -0.0171], [-0.0092, 0.0150, 0.7521]])
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (red, green, blue)]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    colorants = to_d50 @ (columns * np.linalg.solve(columns, white))

    def xyz(values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {b"wtpt": xyz((0.9642, 1, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {name: xyz(colorants[:, at]) for at, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
        tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s12x4s", at + len(data), b"", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    head += bytes(68 - len(head)) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = profile((0.680, 0.320), (0.265, 0.690), gamma=2.2)
GRAY_18 = profile(gamma=1.8, space=b"GRAY")
PHOTO = smooth(64, 64)


def reference(image, icc, mode="RGB"):
    return np.asarray(
        ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), SRGB_PROFILE, outputMode=mode), int
    )


SRGB_PROFILE = ImageCms.createProfile("sRGB")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_wide_gamut_becomes_srgb(kind):
    data = encoded(PHOTO, kind, icc_profile=P3)
    found, plain = np.asarray(open_image(data, TARGET), int), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(found - reference(Image.fromarray(plain), P3)).max() <= 1
    assert np.abs(found - plain).max() > 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_with_a_profile_of_srgb_no_byte_differs(kind):
    with_profile, without = encoded(PHOTO, kind, icc_profile=SRGB), encoded(PHOTO, kind)
    assert open_image(with_profile, TARGET).tobytes() == open_image(without, TARGET).tobytes()
    if kind == "JPEG":
        assert decode_module._plain_jpeg(with_profile, TARGET) is not None


def test_a_damaged_profile_or_one_of_another_space_is_left_aside():
    for icc in (b"nonsense", SRGB[:300], GRAY_18):
        assert np.array_equal(open_image(encoded(PHOTO, "PNG", icc_profile=icc), TARGET), PHOTO)


def test_gray_stays_gray_and_takes_its_gamma():
    gray = PHOTO.convert("L")
    found = open_image(encoded(gray, "PNG", icc_profile=GRAY_18), TARGET)
    assert found.mode == "L"
    wanted = 255 * (np.asarray(gray) / 255.0) ** (1.8 / 2.2)
    assert np.abs(np.asarray(found) - wanted).max() < 8


def test_transparency_and_palettes_take_the_profile_too():
    alpha = PHOTO.copy()
    alpha.putalpha(Image.new("L", PHOTO.size, 255))
    few = PHOTO.quantize(16)
    for image in (alpha, few):
        found = np.asarray(open_image(encoded(image, "PNG", icc_profile=P3), TARGET), int)
        assert np.abs(found - reference(image.convert("RGB"), P3)).max() <= 1


def test_sixteen_bits_take_the_profile_too():
    values = np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257
    found = open_image(
        encoded(values, "PNG", icc_profile=GRAY_18), Target(64, "crop", "array", 10**6, range=(0, 65535))
    )
    assert np.array_equal(found, open_image(encoded(PHOTO.convert("L"), "PNG", icc_profile=GRAY_18), TARGET))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("chunk", [
    png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 300_000)),
    png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"word " * 300_000)),
    png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000))),
    png_chunk(b"tEXt", b"seed\0" + b"x" * 70_000_000),
])  # fmt: skip
def test_text_and_profiles_of_megabytes_keep_no_picture_out(chunk):
    data = encoded(PHOTO, "PNG")
    assert np.array_equal(open_image(data[:33] + chunk + data[33:], TARGET), PHOTO)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(mode, cut):
    data = encoded(PHOTO.convert(mode), "JPEG")
    assert np.array_equal(open_image(data[:-cut], TARGET), open_image(data, TARGET))


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff" * 9, b"<html>", b"\xff\xd8\xff\xe0"])
def test_bytes_behind_a_jpeg_do_not_matter(tail):
    data = encoded(PHOTO, "JPEG")
    assert np.array_equal(open_image(data + tail, TARGET), open_image(data, TARGET))


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_jpeg_of_which_a_part_is_missing_is_refused(share):
    data = encoded(smooth(300, 300), "JPEG")
    with pytest.raises(decode_module.Refused, match="truncated"):
        open_image(data[: int(share * len(data))], TARGET)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_of_several_pages_or_frames_the_first_is_taken_and_known(kind):
    pages = [smooth(64, 64, seed).convert("RGB") for seed in range(3)]
    options = {"save_all": True, "append_images": pages[1:]}
    decoded = decode_module.decode(encoded(pages[0], kind, **options), TARGET)
    assert decoded.paged
    alone = decode_module.decode(encoded(pages[0], kind), TARGET)
    assert not alone.paged
    assert np.array_equal(decoded.image, alone.image)


def test_libraries_are_silent(capfd):
    """libtiff writes hundreds of lines about this file, which is read."""
    rows = np.random.default_rng(0).random((2000, 64)) > 0.5
    data = bytearray(encoded(rows, "TIFF", compression="group4"))
    for at in range(200, len(data) - 2000, 97):
        data[at] ^= 0x55
    open_image(bytes(data), TARGET)
    assert capfd.readouterr() == ("", "")
