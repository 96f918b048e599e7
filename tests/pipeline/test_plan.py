"""What a run would take: how times and memory are put together, and which plan is taken."""

import sys

import pytest
import torch

from pipeline import plan
from pipeline.inspect_source import SHARP, Inspection
from pipeline.params import validate
from pipeline.plan import COMPILING, LITE0, LITE2, PROBED, TRAINED, Plan, free_memory, options, plan_frozen
from pipeline.presets import preset_values, read_preset
from scan_core.clustering.candidates import FROM_CLUSTERS_STEPS
from scan_core.errors import ScanError
from tests.project import ROOT, completed, merge

PHOTOS = read_preset(ROOT / "presets" / "photos.yaml")


def found(side=224, images=1000):
    return Inspection("photos", PHOTOS.data, images, sizes=[(side, side)], seconds=0.25, read_seconds=2.0)


@pytest.mark.parametrize("side", [*SHARP, 192])
def test_networks_see_no_more_pixels_than_the_images_have(side):
    most = max(side, 128)  # images are enlarged to so many
    wanted = [((LITE0, most), (LITE2, most)), ((LITE0, most),), ((LITE0, 128),)]
    assert options(found(side)) == wanted[: 3 if side > 128 else 2]


@pytest.mark.parametrize(("plans", "chosen"), [
    ([(600, 3), (500, 2), (9, 1)], 0), ([(601, 3), (600, 2), (9, 1)], 1), ([(9, 4), (600, 3), (9, 1)], 1),
    ([(9000, 3), (7000, 2), (8000, 1)], 1), ([(9, 5), (9000, 3), (8000, 3)], 2), ([(9, 7), (9, 5.24)], None),
])  # fmt: skip
def test_the_best_plan_that_fits_and_ends_soon_is_chosen_else_the_quickest(monkeypatch, plans, chosen):
    monkeypatch.setattr(plan, "free_memory", lambda: 4e9)
    plans = [Plan((), seconds, memory * 1e9) for seconds, memory in plans]
    try:
        assert plan.choose(plans) is plans[chosen]
    except ScanError as error:
        assert chosen is None and str(error).startswith("5.2 GB of memory are needed, but 4.0 GB are free; close ")


def test_time_and_memory_of_frozen_networks(monkeypatch):
    rates, asked = {LITE0: 1.0, LITE2: 3.0}, []
    monkeypatch.setattr(plan, "embedding_seconds", lambda *each: asked.append(each) or rates[each[0]])
    monkeypatch.setattr(plan, "scan_seconds", lambda clusters, settings: 5.0 * clusters)
    plans = plan_frozen(found(), 10, PHOTOS.cluster)
    assert [each.spaces for each in plans] == options(found()) and asked == [(LITE0, 224), (LITE2, 224)]
    both, single, small = (each.seconds for each in plans)
    assert both - single == pytest.approx(COMPILING + 1000 * 3)
    assert single - small == pytest.approx(1000 * (1 - (128 / 224) ** 2))
    for clusters in (2, 50):
        none, some = (plan_frozen(found(images=images), clusters, PHOTOS.cluster)[1] for images in (0, 1000))
        assert none.seconds == pytest.approx(plan.STARTING + COMPILING + 2 + 5 * clusters)
        each = 1.25 + plan.PER_IMAGE + plan.PER_IMAGE_AND_CLUSTER * clusters
        assert some.seconds - none.seconds == pytest.approx(1000 * each)
        each = plan.IMAGE_BYTES + plan.IMAGE_AND_CLUSTER_BYTES * clusters
        assert (none.memory, some.memory) == (plan.BASE, plan.BASE + 1000 * each)


@pytest.mark.parametrize(("changes", "views", "batch"), [
    ({}, 2 * 3 + 2 * 50 + 8, 128), ({"cluster": {"epochs": 7, "batch_size": 32}}, 2 * 3 + 2 * 7 + 8, 64),
    ({"selflabel": {"epochs": 0}}, 2 * 3 + 2 * 50, 128), ({"pretext": {"method": "none"}}, 2 * 50 + 8, 128),
])  # fmt: skip
def test_training_takes_as_long_as_the_views_that_its_stages_see(monkeypatch, changes, views, batch):
    tiny = {"data": {"view": 12}, "pretext": {"epochs": 3, "batch_size": 64}, "selflabel": {"epochs": 6}}
    values = completed(merge(merge(preset_values(ROOT / "presets" / "digits.yaml"), tiny), changes))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 2))  # takes no other size
    monkeypatch.setattr("scan_core.models.networks.build_backbone", lambda *_: network)
    monkeypatch.setattr(plan, "_seconds", lambda work: work() or 7.0 * TRAINED)
    monkeypatch.setattr(plan, "_peak", iter([1e6, 1e6 + 10 * TRAINED]).__next__)
    planned = plan.plan_training(found(), validate(values, ROOT))
    assert planned.spaces == () and planned.memory == plan.BASE + 2 * batch * 10
    assert planned.seconds == pytest.approx(plan.STARTING + 2 + 1000 * (0.25 + 7 * views))


def test_what_is_measured_is_an_image_and_a_step_of_the_second_call(monkeypatch):
    calls = []
    monkeypatch.setattr(plan.time, "monotonic", lambda: len(calls) ** 2)
    monkeypatch.setattr("pipeline.weights.sign_weights", lambda *_: None)
    monkeypatch.setattr("scan_core.models.frozen.FrozenNetwork", lambda *_, **__: calls.append)
    monkeypatch.setattr("scan_core.clustering.heads.scan_heads", lambda *given: calls.append(given))
    assert plan.embedding_seconds(LITE0, 160) == (4 - 1) / PROBED and calls[0].shape == (PROBED, 3, 160, 160)
    settings = PHOTOS.cluster.model_copy(update={"heads": 3, "steps": 50})
    assert plan.scan_seconds(7, settings) == ((16 - 9) * 50 + (36 - 25) * 2 * FROM_CLUSTERS_STEPS) / 4
    assert [given[2][0].shape for given in calls[2::2]] == [(3, 7, 256), (1, 7, 256)] and calls[2][4] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups")
@pytest.mark.parametrize(("limit", "stat", "free"), [
    ("700000", "anon 9\ninactive_file 50000\nactive_file 8", 150_000), ("max", "inactive_file 50000", None),
    (str(10**18), "inactive_file 50000", None), ("700000", "anon 9", None), (None, "", None),
])  # fmt: skip
def test_free_memory_is_the_container_s_if_it_has_less_than_the_machine(monkeypatch, tmp_path, limit, stat, free):
    monkeypatch.setattr(plan, "CGROUP", tmp_path)
    for name, text in (("max", limit), ("current", "600000"), ("stat", stat)) if limit else ():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert free_memory() == free if free else 10**7 < free_memory() < 10**14
