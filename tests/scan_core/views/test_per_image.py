"""Operations for some images of a batch: what a GPU is given is what the CPU computes, and compiles."""

import pytest
import torch

from scan_core.views import per_image
from scan_core.views import simclr as simclr_views
from scan_core.views import strong as strong_views
from scan_core.views.per_image import for_each_image, grouped, masked
from scan_core.views.settings import SimclrAugmentation, StrongAugmentation

SIMCLR = SimclrAugmentation(
    kind="simclr", crop_size=None, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.3333), rotate=10, shear=10, flip=0.5,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0, blur_sigma=(0.1, 2.0),
)  # fmt: skip
STRONG = StrongAugmentation(kind="strong", flip=0.5, operations=4, cutout=4)


def batch(channels, size=9, count=96):
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def views(images, kind):
    if kind == "simclr":
        return simclr_views.apply(images, simclr_views.draw(SIMCLR, len(images), *images.shape[2:], generator()))
    return strong_views.apply(images, strong_views.draw(STRONG, len(images), *images.shape[2:], generator()))[0]


@pytest.mark.parametrize("pick", [grouped, masked])
def test_the_chosen_images_alone_are_changed_each_by_its_argument(pick):
    images, chosen = torch.rand(6, 3, 2, 2), torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.bool)
    before, argument = images.clone(), torch.arange(6.0)
    found = pick(images, chosen, lambda some, by: some + by.view(-1, 1, 1, 1), argument)
    wanted = before + torch.where(chosen, argument, 0.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("pick", [grouped, masked])
def test_none_and_all_may_be_chosen(pick):
    for value in (False, True):
        images = torch.rand(4, 1, 2, 2)
        found = pick(images.clone(), torch.full((4,), value), lambda some, _: some + 1, torch.zeros(4))
        torch.testing.assert_close(found, images + value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["simclr", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_masked_and_compiled_views_equal_the_grouped_ones(monkeypatch, kind, channels):
    """What runs on a GPU, with its kernels left out: one graph without a break, for one shape."""
    images, seen = batch(channels), []
    wanted = views(images.clone(), kind)

    def as_on_a_gpu(function):
        seen.append(function)
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    for module in (per_image, simclr_views):
        monkeypatch.setattr(module, "compiled", as_on_a_gpu)
        monkeypatch.setattr(module, "on_gpu", lambda images: True)
    torch.testing.assert_close(views(images.clone(), kind), wanted, rtol=0, atol=1e-6)
    assert len(set(seen)) == 1


def test_a_gpu_gets_the_compiled_function_once(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: made.append(how) or function)
    per_image.compiled.cache_clear()

    class OnGpu:
        """A batch that says it lies on a GPU."""

        device = torch.device("cuda")

        def __init__(self, images):
            self.images = images

    def function(images, chosen, pick):
        return pick(images.images, chosen, lambda some, _: some + 1, chosen)

    for _ in range(2):
        found = for_each_image(function, OnGpu(torch.zeros(2, 1, 1, 1)), torch.tensor([True, False]))
        assert found.flatten().tolist() == [1, 0]
    assert made == [{"fullgraph": True, "dynamic": False}]
    per_image.compiled.cache_clear()
