"""Chunks: every item is taken or listed; bytes, digests and sums; written whole or not at all."""

import io
import itertools
import os
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from scan_core.data.chunks import decode_chunk, load_chunk, load_thumbs
from scan_core.data.decode import Target
from scan_core.data.types import Finding, Item
from tests.scan_core.data.test_decode import COLOR, ENCODED, TARGET, encoded, png_of, smooth

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # damaged files cause warnings; workers ignore them
PNG = encoded(COLOR, "PNG")


def decoded(folder, items, findings=(), **values):
    target = Target(**{**vars(TARGET), **values})
    counts = decode_chunk(items, list(findings), target, folder, 3)
    chunk = load_chunk(folder / "000003.npz")
    assert counts == (len(chunk.names), len(chunk.findings))
    return chunk, (folder / "000003.bin").read_bytes()


def pngs(images):
    return [Item(str(number), encoded(image, "PNG"), "a", "val") for number, image in enumerate(images)]


@pytest.mark.parametrize(("name", "data", "kind"), [
    ("a.jpg", b"hello", "rejected"), ("a.JPG", b"hello", "rejected"), ("a.heic", b"hello", "rejected"),
    ("a.txt", b"hello", "ignored"), ("a.JSON", b"hello", "ignored"), ("README", b"hello", "ignored"),
    ("a.png", b"", "rejected"), ("__init__.py", b"", "ignored"), ("b/.png/a.txt", b"hello", "ignored"),
    ("a.txt", PNG[:-30], "rejected"), ("a.png", PNG[:-30], "rejected"), ("a", PNG[:-30], "rejected"),
])  # fmt: skip
def test_a_file_is_rejected_only_if_it_claims_to_be_an_image(tmp_path, name, data, kind):
    chunk, _ = decoded(tmp_path, [Item(name, data)])
    assert [(finding.name, finding.kind) for finding in chunk.findings] == [(name, kind)]
    chunk, _ = decoded(tmp_path, [Item(name, data, is_declared_image=True)])
    assert [finding.kind for finding in chunk.findings] == ["rejected"], "a row of a table is meant as an image"


def test_every_item_is_either_taken_or_listed(tmp_path):
    good = [Item(f"{number}.png", data) for number, data in enumerate(ENCODED.values())]
    good += [Item("notes.txt", PNG), Item("a\nb,\udcff.jpg", PNG)]
    bad = [Item(f"x{number}.png", data[: len(data) // 2]) for number, data in enumerate(ENCODED.values())]
    bad += [Item("video.mp4", b"\0\0\0\x18ftypisom"), Item("bomb.png", png_of(60000, 60000)), Item("gone.png", "/gone")]
    link = Finding("link.png", "rejected", "a link")
    chunk, _ = decoded(tmp_path, [*good, *bad], [link])
    assert chunk.names == [item.name for item in good]
    assert chunk.findings[0] == link and [each.name for each in chunk.findings[1:]] == [item.name for item in bad]


def test_a_resize_that_the_memory_cannot_hold_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", mock.Mock(side_effect=MemoryError))
    chunk, data = decoded(tmp_path, [Item("a.png", PNG)])
    assert chunk.findings == [Finding("a.png", "rejected", "too large for the memory")] and data == b""


@pytest.mark.parametrize("stored", ["array", "jpeg"])
def test_a_chunk_without_an_image_is_still_a_chunk(tmp_path, stored):
    chunk, data = decoded(tmp_path, [], [Finding("a", "ignored", "b")], stored=stored)
    assert (chunk.names, data) == ([], b"")
    assert chunk.shapes.shape == (0, 2) and chunk.digests.shape == (0, 32)
    assert chunk.sums.shape == chunk.squares.shape == (0, 3)
    assert load_thumbs(tmp_path / "000003.npz").shape == (0, 32, 32, 3)


def assert_sums(chunk, images):
    wide = [np.asarray(image.convert("RGB")).astype(np.int64) for image in images]
    assert chunk.sums.tolist() == [each.sum((0, 1)).tolist() for each in wide]
    assert chunk.squares.tolist() == [(each**2).sum((0, 1)).tolist() for each in wide]


@pytest.mark.parametrize("which", ["gray", "color", "both", "white"])
def test_the_bytes_of_an_array_chunk_are_the_pixels(tmp_path, which):
    gray, color, white = smooth(300, 300, 1, 1), smooth(300, 300, 2), Image.new("L", (300, 300), 255)
    images = {"gray": [gray] * 40, "color": [color], "both": [gray, color, gray], "white": [white]}[which]
    chunk, data = decoded(tmp_path, pngs(images), size=300)
    pixels = [np.asarray(image.convert("RGB") if which in ("color", "both") else image) for image in images]
    assert data == b"".join(each.tobytes() for each in pixels)
    assert chunk.ends.tolist() == np.cumsum([each.size for each in pixels]).tolist()
    assert chunk.gray.tolist() == [image.mode == "L" for image in images]
    assert (chunk.labels, chunk.splits) == (["a"] * len(images), ["val"] * len(images))
    assert_sums(chunk, images)


def test_the_bytes_of_a_jpeg_chunk_are_jpegs(tmp_path):
    images = [smooth(16, 32), smooth(16, 64, 1, 1), smooth(16, 16)]
    chunk, data = decoded(tmp_path, [*pngs(images), Item("large", encoded(smooth(40, 80), "PNG"))], stored="jpeg")
    found = [Image.open(io.BytesIO(data[a:b])) for a, b in itertools.pairwise([0, *chunk.ends])]
    assert [list(each.size[::-1]) for each in found] == chunk.shapes.tolist()
    assert chunk.shapes.tolist() == [[16, 32], [16, 64], [16, 16], [16, 32]]
    assert [each.mode for each in found] == ["RGB", "L", "RGB", "RGB"]
    for jpeg, image in zip(found, images, strict=False):
        assert np.abs(np.asarray(jpeg).astype(int) - image).mean() < 12
    chunk, _ = decoded(tmp_path, pngs(images), stored="jpeg")
    assert_sums(chunk, images)


def test_equal_pixels_have_equal_digests(tmp_path):
    gray, color = smooth(16, 16, 1, 1), smooth(16, 16, 2)
    mixed, _ = decoded(tmp_path, pngs([gray, gray.convert("RGB"), color]))
    assert np.array_equal(mixed.digests[0], mixed.digests[1]) and not np.array_equal(mixed.digests[0], mixed.digests[2])
    alone, _ = decoded(tmp_path, pngs([gray]))  # whatever else is in the chunk
    assert np.array_equal(alone.digests[0], mixed.digests[0])


def test_nothing_is_unpickled(tmp_path):
    with (tmp_path / "000003.npz").open("wb") as file:
        np.savez(file, text=np.array([os.system], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_chunk(tmp_path / "000003.npz")


def test_a_chunk_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        decode_chunk([Item("a.png", PNG)], [], TARGET, tmp_path, 3)
    assert not (tmp_path / "000003.npz").exists()
