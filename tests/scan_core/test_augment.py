"""Plain and random views: normalised float32, and the cut-out squares at the mean."""

import pytest
import torch

from scan_core import simclr_views, strong_views
from scan_core.augment import plain_view, random_view
from tests.scan_core.tiny import NO_AUGMENTATION, images, simclr_augmentation, strong_augmentation

ROWS = torch.tensor([5, 0, 11, 5])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_plain_view_is_the_normalised_image_and_nothing_else():
    data = images(12)
    view = plain_view(data, ROWS)
    assert view.shape == (4, 3, 8, 8)
    assert view.dtype == torch.float32
    for row, each in zip(ROWS, view, strict=True):
        wanted = (data.pixels[row].double() / 255 - data.mean) / data.std  # (height,width,channels)
        torch.testing.assert_close(each, wanted.permute(2, 0, 1).float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [simclr_augmentation(), strong_augmentation()], ids=lambda each: each.kind)
def test_a_random_view_is_float32_of_the_same_size(settings, channels):
    view = random_view(images(12, channels), ROWS, settings, generator())
    assert view.shape == (4, channels, 8, 8)
    assert view.dtype == torch.float32
    assert torch.isfinite(view).all()


@pytest.mark.parametrize("settings", [simclr_augmentation(), strong_augmentation()], ids=lambda each: each.kind)
def test_a_random_view_is_its_generators_and_each_image_has_its_own(settings):
    data, rows = images(12), torch.full((8,), 3)
    one, same, other = (random_view(data, rows, settings, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(one.flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("settings", [simclr_augmentation(), strong_augmentation()], ids=lambda each: each.kind)
def test_the_stored_images_stay_as_they_are(settings):
    data = images(12)
    before = data.pixels.clone()
    random_view(data, torch.arange(12), settings, generator())
    plain_view(data, torch.arange(12))
    assert torch.equal(data.pixels, before)


def test_views_are_normalised_after_they_are_augmented():
    data, rows = images(12), torch.arange(12)
    simclr = simclr_views.apply(data.batch(rows), simclr_views.draw(simclr_augmentation(), 12, 8, 8, generator()))
    torch.testing.assert_close(random_view(data, rows, simclr_augmentation(), generator()), data.normalize(simclr))
    strong, cut = strong_views.apply(data.batch(rows), strong_views.draw(strong_augmentation(), 12, 8, 8, generator()))
    view = random_view(data, rows, strong_augmentation(), generator())
    torch.testing.assert_close(view, data.normalize(strong).where(~cut, torch.zeros(())))


def test_without_augmentation_a_random_view_is_the_plain_one():
    data, rows = images(12), torch.arange(12)
    for settings in (NO_AUGMENTATION, strong_augmentation(flip=0.0, operations=0, cutout=0)):
        torch.testing.assert_close(random_view(data, rows, settings, generator()), plain_view(data, rows))


def test_cutout_is_filled_with_the_mean():
    """0 after normalisation, in every channel, in one square and nowhere else."""
    data, rows = images(12), torch.arange(12)
    whole = plain_view(data, rows)
    view = random_view(data, rows, strong_augmentation(flip=0.0, operations=0, cutout=3), generator())
    cut = view != whole
    assert torch.equal(cut.any(dim=1, keepdim=True).expand_as(cut), cut)
    assert (view[cut] == 0).all()
    sizes = cut[:, 0].sum(dim=(1, 2))
    assert float(sizes.min()) >= 4  # a corner: 2 x 2 of the 3 x 3
    assert float(sizes.max()) == 9
