"""Random views: normalized float32, of all of a stored image, and with the cut-out squares at the mean."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scan_core.images.store import ArrayImages
from scan_core.views import simclr as simclr_views
from scan_core.views import strong as strong_views
from scan_core.views.random_view import random_view
from tests.tiny import (
    CPU,
    NO_AUGMENTATION,
    PLAIN,
    change,
    images,
    jpeg_store,
    pixels,
    simclr_augmentation,
    strong_augmentation,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


RECORDED = [  # views[:, :, 2, 5], and the generator's next number
    (
        simclr_augmentation(),
        [
            [-0.719918132, -0.806187093, -1.33119798], [0.203273535, 0.0215352774, -0.564931512],
            [1.08990741, -0.435407877, -0.41318655], [-0.280145526, -0.385399938, -0.961686313],
            [-0.0978578329, -0.482897639, -0.988942206], [-0.568418622, -0.568418622, -0.568418622],
        ],
        27383938,
    ),
    (
        strong_augmentation(operations=4, cutout=3),
        [
            [-0.639215589, -0.529411674, -0.199999928], [-1.70588231, -1.69019604, -1.72156858],
            [-0.29411757, -0.247058749, -0.419607759], [0.129411817, -0.607843041, -0.780392051],
            [-0.576470494, -1.01568627, -1.26666665], [0.741176605, 1.50980401, 0.647058964],
        ],
        498752356,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "wanted", "following"), RECORDED, ids=["simclr", "strong"])
def test_views_of_whole_arrays_are_those_recorded(settings, wanted, following):
    """Whatever else the store may be, a run on whole images gives what it gave. Another CPU may round the last bit."""
    drawing = generator(5)
    views = random_view(images(12), torch.arange(6), settings, drawing)
    torch.testing.assert_close(views[:, :, 2, 5], torch.tensor(wanted), rtol=0, atol=2e-6)
    assert int(torch.randint(2**31, (1,), generator=drawing)) == following


def test_views_are_normalized_after_they_are_augmented():
    data, rows = images(12), torch.arange(12)
    simclr = simclr_views.apply(data.crops(rows), simclr_views.draw(simclr_augmentation(), 12, 8, 8, generator()))
    torch.testing.assert_close(random_view(data, rows, simclr_augmentation(), generator()), data.normalize(simclr))
    strong, cut = strong_views.apply(data.crops(rows), strong_views.draw(strong_augmentation(), 12, 8, 8, generator()))
    view = random_view(data, rows, strong_augmentation(), generator())
    torch.testing.assert_close(view, data.normalize(strong).where(~cut, torch.zeros(())))


def test_without_augmentation_a_random_view_is_the_plain_one():
    data, rows = images(12), torch.arange(12)
    for settings in (NO_AUGMENTATION, strong_augmentation(flip=0.0, operations=0, cutout=0)):
        torch.testing.assert_close(random_view(data, rows, settings, generator()), data.plain_view(rows))


@pytest.mark.parametrize("store", ["array", "jpeg"])
def test_no_augmentation_is_the_plain_view_and_draws_nothing(store, tmp_path):
    data = larger() if store == "array" else jpegs(tmp_path)
    rows = torch.tensor([2, 0, 1, 2])
    own, before, everyone_s = generator(), generator().get_state(), torch.get_rng_state()
    assert torch.equal(random_view(data, rows, PLAIN, own), data.plain_view(rows))
    assert torch.equal(own.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everyone_s)


def test_cutout_is_filled_with_the_mean():
    """0 after normalization, in every channel, in one square and nowhere else."""
    data, rows = images(12), torch.arange(12)
    whole = data.plain_view(rows)
    view = random_view(data, rows, strong_augmentation(flip=0.0, operations=0, cutout=3), generator())
    cut = view != whole
    assert torch.equal(cut.any(dim=1, keepdim=True).expand_as(cut), cut)
    assert (view[cut] == 0).all()
    sizes = cut[:, 0].sum(dim=(1, 2))
    assert int(sizes.min()) >= 4 and int(sizes.max()) == 9  # in a corner 2 x 2 of the 3 x 3


# --- stores with more than is seen


def larger(side=8):
    return ArrayImages(CPU, [pixels(12, size=16)], [0.45] * 3, [0.25] * 3, side)


def jpegs(folder, side=8, shapes=((16, 24), (24, 16), (16, 16))):
    """12 images in three shapes, as the store packs them."""
    smooth = [pixels(1, size=32, seed=number)[0] for number in range(12)]
    return jpeg_store(folder, [image[:h, :w] for image, (h, w) in zip(smooth, shapes * 4, strict=True)], side)


@pytest.mark.parametrize("settings", [simclr_augmentation(), strong_augmentation()], ids=lambda each: each.kind)
@pytest.mark.parametrize("store", ["full", "gray", "array", "jpeg"])
def test_a_random_view_is_its_generator_s_and_each_image_has_its_own(settings, store, tmp_path):
    made = {"full": images, "gray": lambda: images(12, 1), "array": larger, "jpeg": lambda: jpegs(tmp_path)}
    data, rows = made[store](), torch.full((8,), 3)
    one, same, other = (random_view(data, rows, settings, generator(seed)) for seed in (0, 0, 1))
    assert (one.shape, one.dtype) == ((8, data.channels, 8, 8), torch.float32)
    assert torch.isfinite(one).all()
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len(one.flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("store", ["array", "jpeg"])
def test_strong_views_are_of_random_crops(store, tmp_path):
    data, rows = larger() if store == "array" else jpegs(tmp_path), torch.arange(12)
    offset = torch.rand(12, 2, generator=generator())
    view = random_view(data, rows, strong_augmentation(flip=0.0, operations=0, cutout=0), generator())
    torch.testing.assert_close(view, data.normalize(data.crops(rows, offset) / 255))
    assert not torch.allclose(view, data.plain_view(rows), atol=1e-2)


def test_simclr_crops_arrays_from_the_whole_image():
    """Not from the center crop: without other changes, the whole image shrinks to the view."""
    data, rows = larger(), torch.arange(12)
    view = random_view(data, rows, NO_AUGMENTATION, generator())
    wanted = F.avg_pool2d(data.full(rows) / 255, 2)
    assert float((view - data.normalize(wanted)).abs().mean()) < 0.05  # bilinear points, not the pixels themselves
    with pytest.raises(AssertionError):
        torch.testing.assert_close(view, data.plain_view(rows), rtol=0, atol=0.3)


@pytest.mark.parametrize("size", [8, 11, 20])
@pytest.mark.parametrize("store", ["array", "jpeg"])
def test_simclr_views_have_the_size_they_are_told_and_what_they_show_is_the_same(store, size, tmp_path):
    data, rows = larger() if store == "array" else jpegs(tmp_path), torch.arange(12)
    usual = random_view(data, rows, NO_AUGMENTATION, generator())
    view = random_view(data, rows, change(NO_AUGMENTATION, crop_size=size), generator())
    assert view.shape == (12, 3, size, size) and usual.shape == data.plain_view(rows).shape
    means = (F.adaptive_avg_pool2d(each, 2) for each in (view, usual))
    assert float(torch.sub(*means).abs().mean()) < 0.1


@pytest.mark.parametrize("size", [None, 20])
def test_simclr_crops_jpegs_from_the_whole_image_to_the_size_of_a_view_at_once(size, tmp_path):
    """Not to the size of a plain view first, which would blur a larger one."""
    data, rows, settings = jpegs(tmp_path), torch.arange(12), simclr_augmentation(crop_size=size)
    parameters = simclr_views.draw(settings, 12, *data.sizes(rows), generator())
    pixels = data.resized_crops(rows, parameters.boxes(*data.sizes(rows)), size)
    wanted = data.normalize(simclr_views.apply(pixels, parameters.cropped()))
    assert torch.equal(random_view(data, rows, settings, generator()), wanted)


@pytest.mark.parametrize(("height", "width"), [(16, 64), (64, 16)])
def test_random_views_see_every_part_of_a_jpeg(height, width, tmp_path):
    """Each part of a long image has a gray of its own; crops of the center square alone would see a quarter of them."""
    ramp = np.linspace(0, 255, 64)
    image = np.broadcast_to(ramp[:, None] if height == 64 else ramp, (height, width)).astype(np.uint8)[..., None]
    data, rows = jpeg_store(tmp_path, [image], 16), torch.zeros(400, dtype=torch.long)
    quiet = {"rotate": 0.0, "shear": 0.0, "jitter": 0.0, "grayscale": 0.0, "crop_ratio": (1.0, 1.0)}
    for settings in (
        simclr_augmentation(**quiet, crop_scale=(0.1, 0.2)), strong_augmentation(flip=0.0, operations=0, cutout=0),
    ):  # fmt: skip
        views = random_view(data, rows, settings, generator()) * data.std + data.mean
        assert float(views.min()) < 0.02 and float(views.max()) > 0.98
        middle = views.mean(dim=(1, 2, 3))
        assert float(middle.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(middle.min()) < 0.25 and float(middle.max()) > 0.75


def test_both_stores_give_nearly_the_same_views_of_the_same_images(tmp_path):
    ramp = np.linspace(20, 230, 24)
    images = np.stack([ramp[:, None] * share + ramp * (1 - share) for share in (0.0, 0.3, 0.6, 1.0)])
    images = np.repeat(images[..., None], 3, axis=3).astype(np.uint8)  # (4,24,24,3)
    array, rows = ArrayImages(CPU, [images], [0.45] * 3, [0.25] * 3, 16), torch.arange(4)
    packed = jpeg_store(tmp_path, list(images), 16)
    torch.testing.assert_close(array.plain_view(rows), packed.plain_view(rows), rtol=0, atol=0.06)
    strong = strong_augmentation(flip=0.0, operations=0, cutout=0)
    # Crops with a turn that stays inside: at the border a JPEG's crop repeats its edge.
    for settings in (strong, simclr_augmentation(rotate=0.0, shear=0.0), simclr_augmentation()):
        one, other = (random_view(data, rows, settings, generator(2)) for data in (array, packed))
        torch.testing.assert_close(one[:, :, 3:-3, 3:-3], other[:, :, 3:-3, 3:-3], rtol=0, atol=0.15)
