"""Operations for some images of a batch: what a GPU is given is what the CPU computes, and compiles."""

import pytest
import torch

from scan_core.views import per_image
from scan_core.views import simclr as simclr_views
from scan_core.views import strong as strong_views
from scan_core.views.per_image import apply_indexed, apply_masked, apply_per_image
from tests.tiny import simclr_augmentation, strong_augmentation


def batch(channels, size=9, count=96):
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def views(images, kind):
    given = len(images), *images.shape[2:], generator()
    if kind == "simclr":
        return simclr_views.apply(images, simclr_views.draw(simclr_augmentation(), *given))
    return strong_views.apply(images, strong_views.draw(strong_augmentation(operations=4, cutout=4), *given))[0]


@pytest.mark.parametrize("apply_to", [apply_indexed, apply_masked])
@pytest.mark.parametrize("chosen", [[1, 0, 0, 1, 1, 0], [0] * 6, [1] * 6], ids=str)
def test_the_chosen_images_alone_are_changed_each_by_its_argument(apply_to, chosen):
    images, chosen, argument = torch.rand(6, 3, 2, 2), torch.tensor(chosen, dtype=torch.bool), torch.arange(6.0)
    wanted = images + torch.where(chosen, argument, 0.0).view(-1, 1, 1, 1)
    found = apply_to(images, chosen, lambda some, by: some + by.view(-1, 1, 1, 1), argument)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["simclr", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.slow
def test_masked_and_compiled_views_equal_the_indexed_ones(monkeypatch, kind, channels):
    """What runs on a GPU, with its kernels left out: one graph without a break, for one shape."""
    images, seen = batch(channels), []
    wanted = views(images.clone(), kind)

    def as_on_a_gpu(function):
        seen.append(function)
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    for module in (per_image, simclr_views):
        monkeypatch.setattr(module, "compiled_for_gpu", as_on_a_gpu)
        monkeypatch.setattr(module, "runs_compiled", lambda images: True)
    torch.testing.assert_close(views(images.clone(), kind), wanted, rtol=0, atol=1e-6)
    assert len(set(seen)) == 1


def test_a_gpu_gets_the_compiled_function_once(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: made.append(how) or function)
    per_image.compiled_for_gpu.cache_clear()

    class OnGpu:
        """A batch that says it lies on a GPU."""

        device = torch.device("cuda")

        def __init__(self, images):
            self.images = images

    def function(images, chosen, apply_to):
        return apply_to(images.images, chosen, lambda some, _: some + 1, chosen)

    for _ in range(2):
        found = apply_per_image(function, OnGpu(torch.zeros(2, 1, 1, 1)), torch.tensor([True, False]))
        assert found.flatten().tolist() == [1, 0]
    assert made == [{"fullgraph": True, "dynamic": False}]
    per_image.compiled_for_gpu.cache_clear()
