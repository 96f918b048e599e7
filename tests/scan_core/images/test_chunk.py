"""A decoded chunk in front of a network: the same pixels as from the store, whatever is gray."""

import numpy as np
import pytest
import torch
from PIL import Image

from scan_core.data.chunks import decode_chunk, load_chunk
from scan_core.data.decode import Target, square
from scan_core.data.types import Item
from scan_core.images.chunk import images_of_chunks
from tests.tiny import CPU


def photo(seed, gray=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC).convert("L" if gray else "RGB")


def chunk_of(folder, images, stored, number=0):
    target = Target(16, "crop", stored, 10**6)
    decode_chunk([Item(str(n), np.asarray(each)) for n, each in enumerate(images)], [], target, folder, number)
    return load_chunk(folder / f"{number:06d}.npz"), folder / f"{number:06d}.bin"


def stats(stored, channels, view=16):
    normal = {"mean": [0.5] * channels, "std": [1.0] * channels}
    return {"store": stored, "size": 16, "view": view, "channels": channels, **normal}


@pytest.mark.parametrize("stored", ["array", "jpeg"])
@pytest.mark.parametrize("gray", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_that_the_network_sees(tmp_path, stored, gray, channels):
    pictures = [photo(seed, each) for seed, each in enumerate(gray)]
    images = images_of_chunks([chunk_of(tmp_path, pictures, stored)], stats(stored, channels), CPU)
    found = images.crops(torch.arange(2)).permute(0, 2, 3, 1).numpy().astype(int)
    assert found.shape == (2, 16, 16, channels)
    target = Target(16, "crop", "array", 10**6)
    mode = "L" if channels == 1 else "RGB"
    wanted = [np.asarray(square(each, target).convert(mode), int).reshape(16, 16, -1) for each in pictures]
    assert np.abs(found - np.stack(wanted)).mean() <= (0 if stored == "array" else 10)  # JPEG, half a pixel


@pytest.mark.parametrize("stored", ["array", "jpeg"])
def test_several_chunks_are_seen_as_one_whether_all_of_one_is_gray_or_not(tmp_path, stored):
    pictures = [photo(0, gray=True), photo(1, gray=True), photo(2), photo(3, gray=True), photo(4)]
    whole = images_of_chunks([chunk_of(tmp_path, pictures, stored)], stats(stored, 3), CPU)
    parts = [chunk_of(tmp_path, pictures[:2], stored, 1), chunk_of(tmp_path, pictures[2:], stored, 2)]
    rows = torch.tensor([4, 0, 1, 2, 3])
    assert torch.equal(images_of_chunks(parts, stats(stored, 3), CPU).crops(rows), whole.crops(rows))


def test_color_becomes_gray_as_pil_makes_it(tmp_path):
    colors = Image.fromarray(np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    images = images_of_chunks([chunk_of(tmp_path, [colors], "array")], stats("array", 1), CPU)
    assert np.array_equal(images.full(torch.tensor([0]))[0, 0].numpy(), np.asarray(colors.convert("L")))


def test_a_view_is_cut_from_the_middle(tmp_path):
    images = images_of_chunks([chunk_of(tmp_path, [photo(1)], "array")], stats("array", 3, view=8), CPU)
    whole = images.full(torch.tensor([0]))
    assert torch.equal(images.crops(torch.tensor([0])), whole[:, :, 4:12, 4:12])
