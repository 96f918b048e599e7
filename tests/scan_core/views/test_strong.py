"""Strong views: each of the 14 operations against torchvision on 8-bit images; rounds, cutout, and what is drawn."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from scan_core.views.strong import OPS, StrongDraw, apply, draw
from tests.tiny import strong_augmentation

NAMES, AFFINE = [op.name for op in OPS], [op.name for op in OPS if op.matrix]
RANGES = {op.name: (op.low, op.high) for op in OPS}
TIES = 0.02  # share of pixels where nearest neighbor may round a tie, or a last bit, the other way


def to_affine(image, translate=(0, 0), shear=(0.0, 0.0), **keywords):
    """torchvision's affine as its RandAugment calls it: nearest, and black where there is no image."""
    translate, shear = list(translate), list(shear)
    return reference.affine(image, 0.0, translate, 1.0, shear, InterpolationMode.NEAREST, fill=[0.0], **keywords)


def slope(magnitude):
    return math.degrees(math.atan(magnitude))


REFERENCE = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: reference.autocontrast(image),
    "equalize": lambda image, _: reference.equalize(image),
    "rotate": lambda image, m: reference.rotate(image, m, InterpolationMode.NEAREST, fill=[0.0]),
    "solarize": lambda image, m: reference.solarize(image, m),
    "posterize": lambda image, m: reference.posterize(image, round(m)),
    "color": reference.adjust_saturation,
    "contrast": reference.adjust_contrast,
    "brightness": reference.adjust_brightness,
    "sharpness": reference.adjust_sharpness,
    "shear_x": lambda image, m: to_affine(image, shear=(slope(m), 0.0), center=[0, 0]),
    "shear_y": lambda image, m: to_affine(image, shear=(0.0, slope(m)), center=[0, 0]),
    "translate_x": lambda image, m: to_affine(image, translate=(int(m * image.shape[2]), 0)),
    "translate_y": lambda image, m: to_affine(image, translate=(0, int(m * image.shape[1]))),
}


def example_bytes(batch, channels=3, height=16, width=16, seed=0):
    """Random images of different brightness and range, so that histograms differ."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 100, (batch, channels, 1, 1), generator=generator)
    span = torch.randint(20, 155, (batch, channels, 1, 1), generator=generator)
    unit = torch.rand(batch, channels, height, width, generator=generator)
    return (low + span * unit**2).to(torch.uint8)


def drawn(names, magnitudes, flip=False, cutout=0, center=(0, 0)):
    """Parameters: ``names`` and ``magnitudes`` are lists (B) of lists (rounds)."""
    batch = len(names)
    return StrongDraw(
        flip=torch.as_tensor(flip).expand(batch),
        operation=torch.tensor([[NAMES.index(name) for name in each] for each in names]).reshape(batch, -1),
        magnitude=torch.tensor(magnitudes, dtype=torch.float32).reshape(batch, -1),
        cutout_center=torch.as_tensor(center).expand(batch, 2),
        cutout=cutout,
    )


def one_round(images, name, magnitudes):
    views, _ = apply(images, drawn([[name]] * len(images), [[float(m)] for m in magnitudes]))
    return views


def as_bytes(views):
    """The 8-bit values of views in [0,1], which must be whole."""
    values = views * 255
    assert float(values.min()) >= 0 and float(values.max()) <= 255
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
    return values.round().to(torch.uint8)


def differing(view, wanted):
    return float((as_bytes(view) != wanted).float().mean())


# --- apply


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 16, 16), (3, 32, 32), (3, 24, 40)])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvision_s(name, channels, height, width):
    images = example_bytes(7, channels, height, width)
    low, high = RANGES[name]
    magnitudes = torch.linspace(low, min(high, 255), 7)  # torchvision refuses a threshold above 255
    views = one_round(images, name, magnitudes)
    for image, view, magnitude in zip(images, views, magnitudes, strict=True):
        wanted = REFERENCE[name](image, float(magnitude))
        if name in (*AFFINE, "contrast", "color", "brightness", "sharpness"):
            assert differing(view, wanted) <= TIES
            if name not in AFFINE:  # a last bit before cutting to whole values
                assert int((as_bytes(view).int() - wanted.int()).abs().max()) <= 1
        else:
            assert torch.equal(as_bytes(view), wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_each_operation_changes_something(name):
    """Far more than the share that may differ, so that agreeing with the reference above says something."""
    images = example_bytes(4, height=32, width=32, seed=1)
    low, high = RANGES[name]
    magnitude = 50 if name == "solarize" else low if low == high or low > 0 else high
    views = one_round(images, name, [magnitude] * 4)
    for image, view in zip(images, views, strict=True):
        assert differing(view, image) > 0.3


def test_solarize_at_256_changes_nothing():
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(as_bytes(one_round(images, "solarize", [256])), images)
    assert torch.equal(as_bytes(one_round(images, "solarize", [255])), torch.zeros_like(images))


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "color", "sharpness"])
def test_images_of_one_color_are_torchvision_s(name):
    images = torch.tensor([0, 7, 128, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    views = one_round(images, name, [0.5] * 4)
    for image, view in zip(images, views, strict=True):
        wanted = REFERENCE[name](image, 0.5)
        assert int((as_bytes(view).int() - wanted.int()).abs().max()) <= 1


def test_equalize_of_few_values_and_of_many_is_torchvision_s():
    """Small images have steps of 0, where nothing changes; few values make large steps."""
    generator = torch.Generator().manual_seed(0)
    for size, values in ((8, 256), (16, 2), (32, 3), (32, 256), (64, 5)):
        images = torch.randint(0, values, (3, 3, size, size), generator=generator).to(torch.uint8)
        views = one_round(images, "equalize", [0] * 3)
        for image, view in zip(images, views, strict=True):
            assert torch.equal(as_bytes(view), reference.equalize(image))


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_fill_with_0(name):
    """A white image turned, sheared or moved has black where there was no image, and stays white elsewhere."""
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    low, high = RANGES[name]
    views = as_bytes(one_round(images, name, [low, high]))
    assert set(views.unique().tolist()) == {0, 255}


def test_flip_is_torchvision_s_of_the_images_drawn_only_and_comes_first():
    images, flip = example_bytes(3), torch.tensor([True, False, True])
    views, _ = apply(images, drawn([["translate_x"]] * 3, [[0.1]] * 3, flip=flip))
    for image, view, flipped in zip(images, views, flip, strict=True):
        wanted = REFERENCE["translate_x"](reference.hflip(image) if flipped else image, 0.1)
        assert torch.equal(as_bytes(view), wanted)


@pytest.mark.parametrize("names", [("solarize", "brightness"), ("posterize", "autocontrast"), ("contrast", "equalize")])
def test_the_order_of_the_rounds_matters(names):
    """Two images of one batch with the same two operations in both orders, each as torchvision one after the other."""
    images = example_bytes(1, height=32, width=32).expand(2, 3, 32, 32)
    magnitude = {"solarize": 100.0, "brightness": 0.6, "posterize": 4.0, "contrast": 0.5}
    orders = [list(names), list(reversed(names))]
    views, _ = apply(images, drawn(orders, [[magnitude.get(name, 0.0) for name in order] for order in orders]))
    for image, view, order in zip(images, views, orders, strict=True):
        wanted = image
        for name in order:
            wanted = REFERENCE[name](wanted, magnitude.get(name, 0.0))
        assert differing(view, wanted) <= TIES
    assert not torch.equal(as_bytes(views[0]), as_bytes(views[1]))


def test_each_image_of_a_batch_gets_its_own_operation():
    """All 14 in one batch, each as if it were alone."""
    images = example_bytes(14, height=32, width=32)
    magnitudes = [[sum(RANGES[name]) / 2 or RANGES[name][1]] for name in NAMES]
    together, _ = apply(images, drawn([[name] for name in NAMES], magnitudes))
    for number, name in enumerate(NAMES):
        alone = one_round(images[number : number + 1], name, magnitudes[number])
        assert torch.equal(together[number], alone[0]), name


def test_the_images_given_stay_as_they_are():
    images = example_bytes(14)
    before = images.clone()
    apply(images, drawn([[name, "solarize"] for name in NAMES], [[RANGES[n][1], 50.0] for n in NAMES], cutout=4))
    assert torch.equal(images, before)


# --- cutout


@pytest.mark.parametrize(
    ("side", "center", "rows", "columns"),
    [
        (0, (8, 8), range(0), range(0)), (1, (9, 6), range(9, 10), range(6, 7)), (2, (9, 6), range(8, 10), range(5, 7)),
        (3, (9, 6), range(8, 11), range(5, 8)), (6, (9, 6), range(6, 12), range(3, 9)),
        (4, (0, 0), range(2), range(2)), (4, (15, 15), range(13, 16), range(13, 16)),
        (4, (0, 15), range(2), range(13, 16)), (4, (8, 0), range(6, 10), range(2)),
    ],
)  # fmt: skip
def test_cutout_is_a_square_about_its_center_cut_at_the_border(side, center, rows, columns):
    centers = torch.tensor([center, (3, 4)])  # each image has its own
    _, mask = apply(example_bytes(2), drawn([[]] * 2, [[]] * 2, cutout=side, center=centers))
    assert mask.shape == (2, 1, 16, 16) and mask.dtype == torch.bool
    assert mask[0, 0].nonzero().tolist() == [[row, column] for row in rows for column in columns]
    assert int(mask[1].sum()) == side**2 and bool(mask[1, 0, 3, 4]) == (side > 0)


# --- draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_operations_are_drawn_with_replacement_all_equally_often():
    operation = draw(strong_augmentation(operations=4), 3500, 16, 16, generator()).operation
    assert operation.shape == (3500, 4)
    counts = operation.flatten().bincount(minlength=14)
    assert float(counts.min()) > 900  # of 1000
    assert float(counts.max()) < 1100
    repeated = (operation.sort(dim=1).values.diff(dim=1) == 0).any(dim=1).float().mean()
    assert float(repeated) == pytest.approx(1 - 13 * 12 * 11 / 14**3, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_magnitudes_are_uniform_over_the_operations_range(name):
    parameters = draw(strong_augmentation(operations=4), 7000, 16, 16, generator())
    magnitude = parameters.magnitude[parameters.operation == NAMES.index(name)]
    low, high = RANGES[name]
    assert low - 1e-6 <= float(magnitude.min()) <= low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) <= float(magnitude.max()) <= high + 1e-6
    assert float(magnitude.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low) + 1e-6)


def test_operations_and_ranges_are_the_published_ones():
    share, small = (0.05, 0.95), (-0.1, 0.1)
    assert {
        "identity": (0, 0), "autocontrast": (0, 0), "equalize": (0, 0),
        "rotate": (-30, 30), "solarize": (0, 256), "posterize": (4, 8),
        "color": share, "contrast": share, "brightness": share, "sharpness": share,
        "shear_x": small, "shear_y": small, "translate_x": small, "translate_y": small,
    } == RANGES  # fmt: skip
    assert len(OPS) == 14 and set(RANGES) == set(REFERENCE)


def test_cutout_centers_are_uniform_over_the_image():
    center = draw(strong_augmentation(cutout=4), 4000, 8, 12, generator()).cutout_center
    for column, size in enumerate((8, 12)):
        counts = center[:, column].bincount(minlength=size)
        assert len(counts) == size
        assert float(counts.min()) > 0.75 * 4000 / size


def test_offsets_are_drawn_first_uniform_and_only_if_there_is_a_margin():
    one, other = generator(), generator()
    torch.rand(4000, 2, generator=one)
    without = draw(strong_augmentation(), 4000, 8, 8, one)
    parameters = draw(strong_augmentation(), 4000, 8, 8, other, has_margin=True)
    assert without.offset is None
    assert torch.equal(without.magnitude, parameters.magnitude)
    assert torch.equal(without.flip, parameters.flip)
    assert parameters.offset.shape == (4000, 2)
    assert 0 <= float(parameters.offset.min()) < 0.01 and 0.99 < float(parameters.offset.max()) <= 1
    assert parameters.offset.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_has_the_given_probability(probability):
    flip = draw(strong_augmentation(flip=probability), 4000, 8, 8, generator()).flip
    assert float(flip.float().mean()) == pytest.approx(probability, abs=0.03 if 0 < probability < 1 else 0)
