"""SimCLR's views: for given parameters those of torchvision, image by image; and what is drawn."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import ks_2samp
from torch.nn import functional
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from scan_core.views import simclr as simclr_views
from scan_core.views.simclr import SimclrDraw, apply, draw
from tests.tiny import simclr_augmentation

IDENTITY = torch.eye(2, 3)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ADJUST = [getattr(reference, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")]


def floats(batch, channels=3, size=16, seed=0):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def drawn(
    batch, theta=None, jitter=False, order=(0, 1, 2, 3), factors=(1.0, 1.0, 1.0, 0.0), grayscale=False, blur=None
):
    """Parameters, the same for each image unless given image by image; by default a view is the image."""
    theta = IDENTITY.expand(batch, 2, 3) if theta is None else theta
    return SimclrDraw(
        center=theta[:, :, 2],
        crop=torch.ones(batch, 2),
        turn=theta[:, :, :2],
        jitter=torch.as_tensor(jitter).expand(batch),
        order=torch.as_tensor(order).expand(batch, 4),
        factors=torch.as_tensor(factors).expand(batch, 4),
        grayscale=torch.as_tensor(grayscale).expand(batch),
        blur=None if blur is None else torch.as_tensor(blur).expand(batch),
    )


def crop_theta(top, left, height, width, size):
    """The matrix that shows the window of these pixels."""
    x, y = (left + width / 2) / size * 2 - 1, (top + height / 2) / size * 2 - 1
    return torch.tensor([[width / size, 0, x], [0, height / size, y]])


# --- apply


@pytest.mark.parametrize("seen", [(16, 16), (9, 14), (8, 5)])
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (9, 5), (1, 7), (33, 2)])
def test_the_points_of_a_view_are_those_of_affine_grid(monkeypatch, seen, size):
    """For any matrix and sizes, none of them square, and so is what is made of them."""
    grids, original = [], simclr_views.F.grid_sample

    def spy(images, grid, **how):
        grids.append(grid)
        return original(images, grid, **how)

    random = torch.Generator().manual_seed(0)
    images, theta = torch.rand(4, 3, *seen, generator=random), torch.randn(4, 2, 3, generator=random)
    monkeypatch.setattr(simclr_views.F, "grid_sample", spy)
    views = simclr_views._sample(images, theta, size)
    wanted = functional.affine_grid(theta, [4, 3, *size], align_corners=False)
    assert grids[0].shape == (4, *size, 2)
    torch.testing.assert_close(grids[0], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        views, original(images, wanted, mode="bilinear", padding_mode="border", align_corners=False),
        rtol=0, atol=1e-5,
    )  # fmt: skip


def test_crop_is_torchvision_resized_crop_but_for_its_border():
    """Inside the crop. At its border grid_sample sees the image beyond, where torchvision repeats the crop's edge."""
    images, size = floats(4, size=16), 16
    windows = [(0, 0, 16, 16), (2, 3, 8, 8), (5, 1, 7, 12), (4, 8, 12, 5)]
    views = apply(images, drawn(4, torch.stack([crop_theta(*window, size) for window in windows])))
    for image, window, view in zip(images, windows, views, strict=True):
        wanted = reference.resized_crop(image, *window, [size, size], InterpolationMode.BILINEAR, antialias=False)
        _, _, height, width = window
        # An output pixel needs neighbors beyond the crop if its center is within half an input pixel of the edge.
        margin_y, margin_x = math.ceil(size / height / 2), math.ceil(size / width / 2)
        inner = slice(margin_y, size - margin_y), slice(margin_x, size - margin_x)
        assert wanted[:, *inner].numel() > 300
        torch.testing.assert_close(view[:, *inner], wanted[:, *inner], rtol=0, atol=2e-5)


def test_color_jitter_is_torchvision_s_in_each_image_s_own_order():
    """All 24 orders in one batch, each with its own factors, among images without jitter."""
    orders = torch.tensor(list(itertools.permutations(range(4))) * 2)
    images, factors = floats(48), 1.8 * torch.rand(48, 4, generator=generator())
    images[5] = 0.5  # no hue, no saturation
    factors[::7, :HUE] = 0.0
    factors[:, HUE] = torch.linspace(-0.5, 0.5, 48)
    jitter = torch.arange(48) % 4 > 0
    views = apply(images, drawn(48, jitter=jitter, order=orders, factors=factors))
    for image, view, order, factor, jittered in zip(images, views, orders, factors, jitter, strict=True):
        wanted = image
        for number in order if jittered else ():
            wanted = ADJUST[number](wanted, float(factor[number]))
        torch.testing.assert_close(view, wanted, rtol=0, atol=5e-5)


def test_the_slots_of_the_example_in_the_docstring():
    example = {"order": (CONTRAST, HUE, BRIGHTNESS, SATURATION), "factors": (1.2, 0.8, 1.4, 0.1)}
    amounts, hue_position = simclr_views._slot_amounts(drawn(2, jitter=torch.tensor([True, False]), **example))
    wanted = {0: (0.2, 0, 1), 3: (0.1, 0, 0), 5: (-0.2, 0, 0), 6: (-0.4, 1, 0)}  # weight, of luma, of mean luma
    torch.testing.assert_close(amounts[0], torch.tensor([wanted.get(slot, (0.0, 0, 0)) for slot in range(7)]))
    assert not amounts[1, :, 0].any()
    assert hue_position.tolist() == [1, -1]


def test_grayscale_is_torchvision_s_and_comes_after_the_jitter():
    images = floats(3)
    views = apply(images, drawn(3, jitter=True, factors=(1.3, 1, 1, 0), grayscale=torch.tensor([True, False, True])))
    for number, (image, view) in enumerate(zip(images, views, strict=True)):
        bright = reference.adjust_brightness(image, 1.3)
        wanted = bright if number == 1 else reference.rgb_to_grayscale(bright, num_output_channels=3)
        torch.testing.assert_close(view, wanted, rtol=0, atol=1e-5)


def test_one_channel_images_are_torchvision_s():
    """Saturation, hue and grayscale do nothing to them; brightness and contrast do."""
    images, factors = floats(3, channels=1), [1.3, 0.6, 1.4, 0.2]
    views = apply(images, drawn(3, jitter=True, order=(1, 3, 2, 0), factors=factors, grayscale=True))
    assert views.shape == images.shape
    for image, view in zip(images, views, strict=True):
        wanted = reference.adjust_brightness(reference.adjust_contrast(image, factors[1]), factors[0])
        torch.testing.assert_close(view, wanted, rtol=0, atol=2e-5)


def test_bytes_become_floats_in_0_to_1_and_the_images_stay_as_they_are():
    images = (floats(2) * 255).to(torch.uint8)
    before = images.clone()
    views = apply(images, drawn(2, jitter=True, factors=(1.4, 1.4, 1.4, 0.1), grayscale=torch.tensor([True, False])))
    assert views.dtype == torch.float32
    assert float(views.min()) >= 0 and float(views.max()) <= 1
    assert torch.equal(images, before)
    torch.testing.assert_close(apply(images, drawn(2)), images / 255, rtol=0, atol=1e-5)


def blurred(image, sigma):
    """torchvision's, cut off at 3 sigma or where a mirror image ends."""
    radius = min(math.ceil(3 * sigma), image.shape[1] - 1)
    return reference.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "sigmas"),
    [
        (16, [0.1, 0.3, 0.33, 0.34, 1.0, 2.0]), (16, [0.7, 0.0, 1.4, 0.0, 0.1, 0.5]), (16, [2.5] * 6),
        (16, [0.0, 0.0, 0.0, 0.0, 0.0, 1.3]), (8, [2.34, 2.5, 4.0, 30.0, 0.5, 0.0]), (1, [2.0] * 6),
    ],
    ids=str,
)  # fmt: skip
def test_blur_is_torchvision_s_gaussian_blur(size, sigmas, channels):
    """Each image by its own sigma, whatever the others'; where that is 0 not a bit changes."""
    images = floats(6, channels, size)
    sharp, views = apply(images, drawn(6)), apply(images, drawn(6, blur=sigmas))
    for sigma, image, view in zip(sigmas, sharp, views, strict=True):
        if sigma:
            torch.testing.assert_close(view, blurred(image, sigma), rtol=0, atol=1e-6)
            assert sigma < 0.3 or size == 1 or not torch.allclose(view, image, atol=1e-2)
        else:
            assert torch.equal(view, image)


def test_blur_comes_after_colors_and_grayscale():
    """What jitter cuts off at 1 is cut off before."""
    images = floats(2)
    factors, gray = (1.8, 1.0, 1.0, 0.0), torch.tensor([True, False])
    sharp = apply(images, drawn(2, jitter=True, factors=factors, grayscale=gray))
    views = apply(images, drawn(2, jitter=True, factors=factors, grayscale=gray, blur=1.0))
    for image, view in zip(sharp, views, strict=True):
        torch.testing.assert_close(view, blurred(image, 1.0), rtol=0, atol=1e-6)
    assert torch.equal(views[0, 0], views[0, 1])
    early = apply(torch.stack([blurred(image, 1.0) for image in images]), drawn(2, jitter=True, factors=factors))
    assert not torch.allclose(views[1], early[1], atol=1e-2)


@pytest.mark.parametrize(("channels", "side"), [(1, None), (3, None), (3, 8)])
def test_blocks_change_no_bit(monkeypatch, channels, side):
    """Of one image to all of them; 24 pixels a side, of which some views are a mean of several points."""
    images = torch.randint(0, 256, (40, 24, 24, channels), dtype=torch.uint8, generator=generator()).permute(0, 3, 1, 2)
    parameters = draw(simclr_augmentation(rotate=10.0), 40, 24, 24, generator())
    whole = apply(images, parameters, side)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for pixels in (1, 7 * 24 * 24, 39 * 24 * 24):
        monkeypatch.setattr(simclr_views, "BLOCK", pixels)
        assert torch.equal(apply(images, parameters, side), whole)


def test_blur_is_of_the_view_s_pixels_not_of_the_image_s():
    """As large as the view is, not as the image was; a crop that was cut before keeps its blur."""
    images = smooth(2, 48)
    parameters = replace(crops((0, 0, 48, 48), (8, 8, 16, 16), size=48), blur=torch.tensor([1.0, 0.5]))
    sharp = apply(images, replace(parameters, blur=None), 16)
    for view, image, sigma in zip(apply(images, parameters, 16), sharp, (1.0, 0.5), strict=True):
        torch.testing.assert_close(view, blurred(image, sigma), rtol=0, atol=1e-6)
    assert torch.equal(parameters.cropped().blur, parameters.blur)


def crops(*windows, size):
    """Draws of nothing but the windows (top, left, height, width) of images of ``size`` pixels."""
    windows = torch.tensor(windows, dtype=torch.float32)
    top_left, sides = windows[:, :2] / size, windows[:, 2:] / size
    return replace(drawn(len(windows)), center=(top_left * 2 + sides - 1).flip(1), crop=sides.flip(1))


def smooth(batch, size):
    """Images without details that a bilinear look at every third pixel would miss."""
    return reference.resize(floats(batch, size=6), [size, size], InterpolationMode.BICUBIC).clamp(0, 1)


def test_a_view_of_another_size_is_torchvision_s_resized_crop():
    images, windows = smooth(4, 48), [(0, 0, 48, 48), (4, 6, 36, 36), (10, 2, 16, 16), (8, 8, 9, 30)]
    views = apply(images, crops(*windows, size=48), 16)
    assert views.shape == (4, 3, 16, 16)
    for image, window, view in zip(images, windows, views, strict=True):
        wanted = reference.resized_crop(image, *window, [16, 16], InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(view[:, 2:-2, 2:-2], wanted[:, 2:-2, 2:-2], rtol=0, atol=0.03)


def test_a_crop_that_shrinks_is_a_mean_and_no_other_is():
    """Stripes one pixel wide: gray from afar, to be seen from near."""
    images = (torch.arange(48) % 2).float().expand(3, 3, 48, 48)
    views = apply(images, crops((0, 0, 48, 48), (8, 8, 16, 16), (8, 8, 16, 8), size=48), 16)
    assert float((views[0] - 0.5).abs().max()) < 0.2  # of three stripes one or two are white
    torch.testing.assert_close(views[1], images[1, :, 8:24, 8:24], rtol=0, atol=1e-6)
    assert float(views[2].std()) > 0.2
    assert torch.equal(views[2:], apply(images[2:], crops((8, 8, 16, 8), size=48), 16))
    for image, window in ((images[:1], (0, 0, 16, 48)), (images[:1].mT, (0, 0, 48, 16))):  # shrinks along one side
        assert float((apply(image, crops(window, size=48), 16) - 0.5).abs().max()) < 0.2


def test_a_crop_of_a_rectangle_that_does_not_shrink_is_its_pixels():
    image = floats(1, size=48)[:, :, :16]
    middle = replace(drawn(1), crop=torch.tensor([[1 / 3, 1.0]]))
    torch.testing.assert_close(apply(image, middle, 16), image[:, :, :, 16:32], rtol=0, atol=1e-5)


def test_cropping_first_and_the_rest_after_is_the_whole_view():
    """A quarter of an image, cut to its pixels, then turned, flipped and colored: but for the border, the same."""
    images = smooth(6, 32)
    whole = draw(simclr_augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)), 6, 32, 32, generator())
    quarter = replace(whole, crop=torch.full((6, 2), 0.5), center=torch.full((6, 2), 0.25))
    left, top, right, bottom = quarter.boxes(32, 32)[0].int().tolist()
    assert (left, top, right, bottom) == (12, 12, 28, 28)
    after = apply(images[:, :, top:bottom, left:right], quarter.cropped())
    torch.testing.assert_close(after[:, :, 4:12, 4:12], apply(images, quarter, 16)[:, :, 4:12, 4:12], rtol=0, atol=0.02)


# --- draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_parameter_is_drawn_for_each_image():
    parameters = draw(simclr_augmentation(jitter=0.5, grayscale=0.5), 64, 16, 16, generator())
    assert len(parameters.theta.flatten(1).unique(dim=0)) == 64
    assert len(parameters.factors.unique(dim=0)) == 64
    assert len(parameters.order.unique(dim=0)) > 12  # of 24 orders
    for flags in (parameters.jitter, parameters.grayscale, parameters.theta[:, 0, 0] < 0):
        assert 10 < int(flags.sum()) < 54


def test_each_image_has_a_crop_of_its_own_size():
    """Heights and widths one by one: the crops are those of batches of such images alone."""
    height, width = torch.tensor([16.0, 12.0, 40.0]), torch.tensor([16.0, 20.0, 10.0])
    each = draw(simclr_augmentation(), 3, height, width, generator())
    for number, (tall, wide) in enumerate([(16, 16), (12, 20), (40, 10)]):
        alone = draw(simclr_augmentation(), 3, tall, wide, generator())
        assert torch.equal(each.theta[number], alone.theta[number])
        assert torch.equal(each.boxes(height, width)[number], alone.boxes(tall, wide)[number])


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_boxes_are_the_crops_in_pixels_and_have_the_drawn_ratio(ratio):
    height, width = torch.tensor([30.0, 60.0, 20.0]).repeat(200), torch.tensor([30.0, 20.0, 80.0]).repeat(200)
    chosen = simclr_augmentation(crop_scale=(0.04, 0.1), crop_ratio=(ratio, ratio))
    parameters = draw(chosen, 600, height, width, generator())
    left, top, right, bottom = parameters.boxes(height, width).unbind(dim=1)
    assert float(left.min()) >= 0 and float(top.min()) >= 0
    assert (right <= width).all() and (bottom <= height).all()
    torch.testing.assert_close((right - left) / (bottom - top), torch.full((600,), ratio).double(), rtol=1e-4, atol=0)
    share = (right - left) * (bottom - top) / (width * height)
    assert 0.04 - 1e-5 < float(share.min()) < 0.041
    assert 0.099 < float(share.max()) < 0.1 + 1e-5
    torch.testing.assert_close((left + right) / width - 1, parameters.center[:, 0].double(), rtol=0, atol=1e-5)
    torch.testing.assert_close((top + bottom) / height - 1, parameters.center[:, 1].double(), rtol=0, atol=1e-5)


def test_a_whole_crop_is_the_whole_image_to_the_last_bit():
    """PIL refuses a box that ends beyond the image."""
    chosen = simclr_augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    parameters = draw(chosen, 3, torch.tensor([7.0, 300.0, 77.0]), torch.tensor([7.0, 300.0, 77.0]), generator())
    wanted = torch.tensor([[0, 0, size, size] for size in (7, 300, 77)], dtype=torch.float64)
    assert torch.equal(parameters.boxes(*[torch.tensor([7.0, 300.0, 77.0])] * 2), wanted)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (90, 120), (100, 40)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.8, 1.0), (0.5, 2.0))])
@pytest.mark.slow
def test_crops_are_drawn_as_torchvision_draws_them(height, width, scale, ratio):
    """What does not fit is drawn again, so that crops of nearly all of the image are rare. In pixels of a large image,
    where torchvision's whole ones tell nothing: the distributions of area, ratio and place."""
    large, count = 100, 4000
    chosen = simclr_augmentation(crop_scale=scale, crop_ratio=ratio, rotate=0.0, shear=0.0, flip=0.0)
    left, top, right, bottom = draw(chosen, count, height, width, generator()).boxes(height, width).T
    torch.manual_seed(0)
    size = torch.empty(1, height * large, width * large, dtype=torch.uint8, device="meta")
    theirs = torch.tensor([RandomResizedCrop.get_params(size, list(scale), list(ratio)) for _ in range(count)]) / large
    wanted = {"top": theirs[:, 0], "left": theirs[:, 1], "height": theirs[:, 2], "width": theirs[:, 3]}
    found = {"top": top, "left": left, "height": bottom - top, "width": right - left}
    for each in (wanted, found):
        each["share"] = 100 * each["height"] * each["width"] / (height * width)
    for name in wanted:  # in tenths: where nothing fits, all have one value, and rounding is no difference
        tenths = [(10 * each[name].double()).round().numpy() for each in (found, wanted)]
        assert ks_2samp(*tenths).pvalue > 1e-3, name


def test_where_no_crop_fits_it_is_the_middle_with_an_allowed_ratio():
    chosen = simclr_augmentation(crop_scale=(1.0, 1.0), crop_ratio=(0.9, 1.1), rotate=0.0, shear=0.0, flip=0.0)
    boxes = {(16, 16): (0, 0, 16, 16), (10, 20): (4.5, 0, 15.5, 10), (20, 9): (0, 5, 9, 15)}
    for (height, width), box in boxes.items():
        found = draw(chosen, 5, height, width, generator()).boxes(height, width)
        torch.testing.assert_close(found, torch.tensor([box] * 5).double(), rtol=0, atol=1e-4)


def test_rotation_and_shear_are_those_drawn():
    """The inverse of a rotation, then a shear along x: determinant 1, angles up to the given ones and about 0."""
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0}
    theta = draw(simclr_augmentation(**whole, rotate=30.0, shear=0.0), 1000, 16, 16, generator()).theta
    angles = torch.atan2(theta[:, 1, 0], theta[:, 0, 0]).rad2deg()
    torch.testing.assert_close(theta[:, :, :2] @ theta[:, :, :2].mT, torch.eye(2).expand(1000, 2, 2))
    assert [float(angles.min()), float(angles.max())] == pytest.approx([-30, 30], abs=1)

    theta = draw(simclr_augmentation(**whole, rotate=0.0, shear=20.0), 1000, 16, 16, generator()).theta
    slopes = theta[:, 0, 1].atan().rad2deg()
    assert [float(slopes.min()), float(slopes.max())] == pytest.approx([-20, 20], abs=1)
    assert torch.equal(theta[:, :, 0], IDENTITY[:, 0].expand(1000, 2))
    torch.testing.assert_close(theta[:, :, :2].det(), torch.ones(1000))


def test_the_flip_comes_last_and_mirrors_the_view():
    """The same generator with and without: crop, rotation and shear are the same, seen in a mirror."""
    images = floats(4)
    plain, mirrored = (
        apply(images, draw(simclr_augmentation(flip=flip, jitter=0.0, grayscale=0.0), 4, 16, 16, generator()))
        for flip in (0.0, 1.0)
    )
    torch.testing.assert_close(mirrored, plain.flip(3), rtol=0, atol=1e-4)


def test_rotation_and_shear_are_about_the_center_of_the_crop():
    """The same generator with and without: the same crop, turned and sheared in it."""
    colors = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
    crop = draw(simclr_augmentation(**colors, rotate=0.0, shear=0.0), 50, 16, 16, generator()).theta
    both = draw(simclr_augmentation(**colors, rotate=30.0, shear=20.0), 50, 16, 16, generator()).theta
    assert torch.equal(both[:, :, 2], crop[:, :, 2])
    inside = crop[:, :, :2].inverse() @ both[:, :, :2]
    torch.testing.assert_close(inside.det(), torch.ones(50))
    torch.testing.assert_close(inside[:, :, 0].norm(dim=1), torch.ones(50))  # a shear along x, then a rotation
    assert float((inside - torch.eye(2)).abs().amax(dim=(1, 2)).min()) > 1e-3


def test_factors_have_the_given_ranges():
    spreads = {"brightness": 0.1, "contrast": 0.2, "saturation": 1.5, "hue": 0.3}
    factors = draw(simclr_augmentation(**spreads), 4000, 16, 16, generator()).factors
    assert factors.amin(dim=0).tolist() == pytest.approx([0.9, 0.8, 0.0, -0.3], abs=0.01)
    assert factors.amax(dim=0).tolist() == pytest.approx([1.1, 1.2, 2.5, 0.3], abs=0.01)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_jitter_grayscale_and_blur_have_the_given_probabilities(probability):
    names = {name: probability for name in ("flip", "jitter", "grayscale", "blur")}
    parameters = draw(simclr_augmentation(**names, rotate=0.0), 4000, 16, 16, generator())
    blurry = torch.zeros(4000) if parameters.blur is None else parameters.blur > 0
    for flags in (parameters.theta[:, 0, 0] < 0, parameters.jitter, parameters.grayscale, blurry):
        assert float(flags.float().mean()) == pytest.approx(probability, abs=0.03 if 0 < probability < 1 else 0)


def test_orders_are_permutations_with_each_operation_equally_often_first():
    order = draw(simclr_augmentation(), 4000, 16, 16, generator()).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(4000, 4))
    for counts in (order[:, 0].bincount(), order[:, 3].bincount()):
        assert float(counts.min()) > 900


def test_sigmas_are_uniform_in_the_given_range():
    sigma = draw(simclr_augmentation(blur=1.0, blur_sigma=(0.5, 1.5)), 4000, 16, 16, generator()).blur
    assert sigma.dtype == torch.float32
    assert 0.5 <= float(sigma.min()) < 0.51 and 1.49 < float(sigma.max()) <= 1.5
    assert float(sigma.mean()) == pytest.approx(1, abs=0.03)


def test_without_blur_the_random_numbers_are_those_of_code_that_knew_none():
    """20 for an image's crop, 11 others, 4 for its order: none for a blur that cannot come. Where it can, nothing else
    changes.
    """
    without, numbers = generator(), generator()
    plain = draw(simclr_augmentation(blur=0.0), 5, 16, 16, without)
    for _ in range(20 + 11 + 4):
        torch.rand(5, generator=numbers)
    assert torch.equal(without.get_state(), numbers.get_state())
    blurry = draw(simclr_augmentation(blur=0.5), 5, 16, 16, generator())
    for name in ("center", "crop", "turn", "jitter", "order", "factors", "grayscale"):
        assert torch.equal(getattr(plain, name), getattr(blurry, name)), name
    assert plain.blur is None
