"""What a run on a source would take on this machine, measured in seconds on a sample of its images.

The estimates are those of an idle machine without a GPU; ``python -m bench frozen`` compares them with runs.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.inspect_source import Inspection
from pipeline.params import Params
from pipeline.suggest import Number, Spaces
from scan_core.errors import ScanError

if TYPE_CHECKING:
    from scan_core.clustering.settings import FrozenCluster
    from scan_core.pretext.settings import AdaptedPretext

LITE0, LITE2 = "efficientnet_lite0", "efficientnet_lite2"
SMALLEST = 128  # pixels that a frozen network sees: images are enlarged to them
SIDES = (128, 160, 192, 224)
PATIENCE = 600  # seconds: the best plan that ends within these is taken
LIKELY = 20  # groups, if their number is to be estimated
PROBED, TRAINED = 32, 8  # images, from whose time that of the others is estimated: frozen, trained on
# Seconds that do not depend on the images: stages start, networks are compiled, the report is written.
STARTING, COMPILING = 70.0, 7.0
# Of neighbors, k-means, the graph and the scores, beyond the SCAN loss, for each image; the latter for each cluster.
PER_IMAGE, PER_IMAGE_AND_CLUSTER = 0.5e-3, 0.06e-3
# Bytes: what DVC, a stage with torch and the delivery to MLflow hold together, and what a stage needs for each image
# and also for each cluster.
BASE, IMAGE_BYTES, IMAGE_AND_CLUSTER_BYTES = 3.6e9, 14e3, 250
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Plan:
    """What would run, how long, and with how much memory in all processes together."""

    spaces: Spaces  # () if a network is trained
    seconds: float
    memory: float  # bytes

    @property
    def fits(self) -> bool:
        """Whether the memory is there."""
        return self.memory < free_memory()


def options(found: Inspection) -> list[Spaces]:
    """The frozen networks that may be used, the best first. None sees more pixels than the images have, beyond 128."""
    side = max(side for side in SIDES if side <= max(found.short_side, SMALLEST))
    single: Spaces = ((LITE0, side),)
    return [(*single, (LITE2, side)), single, *([((LITE0, SMALLEST),)] if side > SMALLEST else [])]


def choose(plans: list[Plan]) -> Plan:
    """The first of ``plans`` that fits in memory and ends within ``PATIENCE``, else the quickest that fits.

    Raises ``ScanError`` if none fits.
    """
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        least = min(plan.memory for plan in plans)
        raise ScanError(
            f"{least / 1e9:.1f} GB of memory are needed, but {free_memory() / 1e9:.1f} GB are free; close other "
            "programs, or give fewer images"
        )
    patient = [plan for plan in fitting if plan.seconds <= PATIENCE]
    return patient[0] if patient else min(fitting, key=lambda plan: plan.seconds)


def plan_frozen(found: Inspection, number: Number, settings: "FrozenCluster") -> list[Plan]:
    """A plan for each of ``options``."""
    clusters = LIKELY if number == "auto" else number
    rates = {(name, side): embedding_seconds(name, side) for name, side in options(found)[0]}
    scan = scan_seconds(clusters, settings)
    plans = []
    for spaces in options(found):
        # The time of a network grows as its pixels: the smaller side needs no measurement of its own.
        embedding = sum(
            rates.get((name, side)) or next(rates[each] * (side / each[1]) ** 2 for each in rates if each[0] == name)
            for name, side in spaces
        )
        each = found.seconds + embedding + PER_IMAGE + PER_IMAGE_AND_CLUSTER * clusters
        seconds = STARTING + found.read_seconds + COMPILING * len(spaces) + scan + found.images * each
        plans.append(Plan(spaces, seconds, BASE + found.images * (IMAGE_BYTES + IMAGE_AND_CLUSTER_BYTES * clusters)))
    return plans


def embedding_seconds(name: str, side: int) -> float:
    """Seconds for an image in the frozen network ``name``, which is compiled first."""
    import torch

    from pipeline.artifacts import ENGINES
    from pipeline.environment import use_threads
    from pipeline.weights import sign_weights, weights_file
    from scan_core.models.frozen import FrozenNetwork

    use_threads()
    sign_weights("embed.spaces", name, Path.cwd())  # writes the file if it is missing
    network = FrozenNetwork(weights_file(name, Path.cwd()), torch.device("cpu"), side, kept=ENGINES)
    pixels = torch.zeros(PROBED, 3, side, side, dtype=torch.uint8)
    return _seconds(lambda: network(pixels)) / PROBED


def adapting_seconds(found: Inspection, plan: Plan, clusters: int, settings: "AdaptedPretext") -> float:
    """Seconds that ``pretext.method`` adapted takes before ``plan``, whose first network adapts."""
    import torch

    from pipeline.environment import use_threads
    from pipeline.weights import weights_file
    from scan_core.models.files import load_frozen
    from scan_core.models.halves import LowerLayers, UpperLayers

    use_threads()
    name, side = plan.spaces[0]
    network, _ = load_frozen(weights_file(name, Path.cwd()))
    with torch.inference_mode():
        maps = LowerLayers(network)(torch.zeros(settings.batch_size, 3, side, side))
    upper = UpperLayers(network)
    upper.requires_grad_(True)

    def step() -> None:
        with torch.no_grad():
            upper(maps)
        upper(torch.cat([maps, maps])).square().mean().backward()

    images = min(found.images, settings.images)
    views = images * ((1 + settings.views) * embedding_seconds(name, side) + embedding_seconds(settings.judge, side))
    each = images * (PER_IMAGE + PER_IMAGE_AND_CLUSTER * clusters)
    return views + settings.steps * _seconds(step) + 2 * (scan_seconds(clusters, settings.groups) + each)


def scan_seconds(clusters: int, settings: "FrozenCluster") -> float:
    """Seconds of all steps of the SCAN loss on stored embeddings."""
    import torch

    from scan_core.clustering.candidates import FROM_CLUSTERS_STEPS
    from scan_core.clustering.heads import new_heads, scan_heads

    generator, steps = torch.Generator().manual_seed(0), 4
    points = torch.nn.functional.normalize(torch.randn(2 * settings.batch_size, 256, generator=generator))
    near = torch.zeros(len(points), settings.neighbors, dtype=torch.long)

    def step(heads: int) -> float:
        start = new_heads(heads, clusters, points.shape[1], generator)
        plan = (1.0, steps, settings.batch_size, settings.lr)
        return _seconds(lambda: scan_heads(points, near, start, *plan, generator)) / steps

    return step(settings.heads) * settings.steps + step(1) * 2 * FROM_CLUSTERS_STEPS


def plan_training(found: Inspection, params: Params) -> Plan:
    """The plan of a network that is trained on the source alone, from steps on a few images of its size."""
    import torch

    from pipeline.environment import use_threads
    from scan_core.clustering.settings import ScanCluster
    from scan_core.compute.device import configure_compute
    from scan_core.models.networks import build_backbone

    use_threads()
    compute = configure_compute(params.precision, "cpu")
    backbone = build_backbone(params.backbone, 3).train()
    side = params.data.side

    def step(images: int) -> None:
        with compute.autocast():
            features = backbone(torch.zeros(images, 3, side, side))
        features.float().pow(2).mean().backward()

    step(2)
    before = _peak()
    seconds = _seconds(lambda: step(TRAINED)) / TRAINED
    of_a_view = max(_peak() - before, 0) / TRAINED
    # Pretext and clustering train on two views of an image; self-labeling sees one and trains on the other.
    assert isinstance(params.cluster, ScanCluster)
    views = 2 * params.pretext.trained_epochs + 2 * params.cluster.epochs + 4 / 3 * params.selflabel.epochs
    batch = max(params.pretext.batch_size, params.cluster.batch_size)
    total = STARTING + found.read_seconds + found.images * (found.seconds + views * seconds)
    return Plan((), total, BASE + 2 * batch * of_a_view)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second call: the first one allocates and compiles."""
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _peak() -> float:
    """The most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def free_memory() -> float:
    """Bytes that new processes may take: the machine's, or the container's if these are fewer."""
    pages = os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):  # not Linux
        return float(pages * os.sysconf("SC_PHYS_PAGES"))
    try:
        most, used, stat = (Path(CGROUP, f"memory.{name}").read_text().strip() for name in ("max", "current", "stat"))
        cached = float(dict(line.split() for line in stat.splitlines())["inactive_file"])
        return min(free, float(most) - float(used) + cached)
    except (OSError, ValueError, KeyError):  # no cgroup of version 2, or its limit is the word max
        return free
