"""``python -m bench.gpu --archive cifar10-jpeg.tar.xz --out DIR``: measures an NVIDIA GPU.

It needs torch, torchvision, numpy, scipy, scikit-learn, Pillow, pydantic, lightning-fabric, safetensors, faiss and a
YAML reader, but neither DVC nor MLflow. Its parts run in this order:

1. The GPU must agree with the CPU in fp32 (views, losses and gradients, eager and compiled), and with itself to the
   byte. Otherwise nothing else is measured.
2. Each training loop is compared with its ceiling by CUDA events. The chip's own matrix and copy rates are measured.
3. CIFAR-10 runs from its archive to scores, seed after seed, until ``--minutes`` are over.

A later call continues what an earlier one did not finish. Unfinished trainings are in ``--state``. Finished networks
are also in ``--out``, in half precision and in parts of at most 15 MiB, and ``--resume`` reads the pretext task's.
Results are in ``--out``/gpu.{md,json}; the table is printed last.
"""

import argparse
import gc
import hashlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import steps
from bench.agreement import compare_with_cpu, compare_with_itself
from bench.end_to_end import OutOfTime, Run, read_archive
from bench.gpu_results import load_results, write_results
from bench.steps import preset
from bench.timing import Row
from bench.views import MEAN, STD
from scan_core.compute.device import make_fabric
from scan_core.images.store import ArrayImages

ROUNDS, ROUND_STEPS = 5, 20


# --- The chip


def measure_chip(device: torch.device) -> dict[str, Any]:
    """Name, versions, and the rates of a bf16 product (FLOP/s) and of a copy inside the device (bytes/s)."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    buffer = torch.empty(2**30 if on_gpu else 2**24, dtype=torch.uint8, device=device)
    product, copy = (seconds_per_call(device, work, 10) for work in (lambda: a @ b, buffer.clone))
    return {
        "device": device_name(device),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bf16_side": side,
        "bf16_flops": 2 * side**3 / product,
        "copy_bytes": 2 * buffer.numel() / copy,  # bytes read and bytes written
    }


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


def seconds_per_call(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Seconds of one ``work`` by the device's own clock, after three calls to warm up."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000 / repeats


# --- Loops and their ceilings


def measure_loops(device: torch.device) -> list[Row]:
    """Each loop and its ceiling, taking turns."""
    fabric = make_fabric("auto", device.type)
    rows = []
    for make, arguments in (
        (steps.pretext_step, ("resnet18", 512)),
        (steps.scan_step, ("resnet18", 128, False)),
        (steps.selflabel_step, ("resnet18", 1000)),
        (steps.scan_step, ("resnet18", 512, True)),
        (steps.embedding, ("resnet18",)),
    ):
        what, works = make(fabric, *arguments)
        rates: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(ROUNDS):
            for name, work in works.items():
                images = work()
                rates[name].append(images / seconds_per_call(device, work, ROUND_STEPS))
        rows.append(steps.ceiling_row(what, rates))
        if device.type == "cuda":
            rows[-1].mib = torch.cuda.max_memory_allocated(device) / 2**20
            del works, work
            gc.collect()  # so that this row's memory does not count in the next row's peak
            torch.cuda.reset_peak_memory_stats(device)
        print(f"{what}: {rows[-1].rate:,.0f} images/s, {rows[-1].ratio:.2f} of the ceiling", flush=True)
    return rows


# --- The command


def main() -> None:
    """Measures the parts that the command line names, and writes the results after each."""
    started = time.monotonic()
    options = _parser().parse_args()
    device = torch.device(options.device)
    # Parts and seeds share the process, and compile the same function for many shapes. An error is better than a
    # function that silently stays eager.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    params = preset(options.preset)
    for setting in options.set:
        params = with_setting(params, setting)
    options.out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    earlier_device = load_results(options.out).get("chip", {}).get("device")
    if {"agreement", "loops"} & set(options.parts) or earlier_device != device_name(device):
        measured["chip"] = measure_chip(device)
    if "agreement" in options.parts:
        differences = compare_with_cpu(device) + compare_with_itself(device)
        measured["agreement"] = [vars(difference) for difference in differences]
        write_results(options.out, measured)
        if wrong := [difference for difference in differences if difference.too_large]:
            raise SystemExit(
                f"bench.gpu: error: the device computes something else: {wrong[0]}; see {options.out}/gpu.md"
            )
    if "loops" in options.parts:
        measured["loops"] = [vars(row) for row in measure_loops(device)]
        write_results(options.out, measured)
    if "cifar10" in options.parts and options.archive:
        _run_cifar10(options, params, device, started + 60 * options.minutes, measured)
    print(write_results(options.out, measured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--archive", type=Path, help="cifar10-jpeg.tar.xz; without it CIFAR-10 is left out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/scan-gpu"))
    parser.add_argument("--resume", type=Path, help="the folder of an earlier call's exported weights")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no new epoch starts")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--set", nargs="+", default=[], help="settings that differ from the preset: cluster.epochs=50")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parts = ["agreement", "loops", "cifar10"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the script")
    parser.add_argument("--limit", type=int, help="images of each split, to try the script")
    return parser


def _run_cifar10(
    options: argparse.Namespace, params: Any, device: torch.device, deadline: float, measured: dict[str, Any]
) -> None:
    """Runs each seed without finished scores, adds the scores to ``measured`` and writes them after each seed."""
    reading = time.monotonic()
    stored, labels, count = read_archive(options.archive, options.limit)
    images, fabric = ArrayImages(device, [stored], MEAN, STD), make_fabric("auto", device.type)
    read_seconds = time.monotonic() - reading
    # A run continues only under the same settings, number of images and device.
    key = hashlib.sha256(f"{params.model_dump_json()} {options.limit} {options.device}".encode()).hexdigest()[:8]
    earlier = load_results(options.out)
    runs = earlier.get("cifar10", []) if earlier.get("what") == key else []
    done = {run["seed"]: run for run in runs if not run["cut"]}
    name = ", ".join([options.preset, *options.set])
    measured |= {"preset": name, "what": key, "cifar10": list(done.values()), "unfinished": None}
    try:
        for seed in options.seeds:
            if seed not in done:
                run = Run(params, seed, fabric, options.state, options.out, deadline, key)
                run.seconds.setdefault("read", read_seconds)
                done[seed] = run.scores(images, labels, count, options.resume)
                measured |= {"cifar10": list(done.values()), "unfinished": done[seed]["cut"]}
                write_results(options.out, measured)
    except OutOfTime as stopped:
        measured["unfinished"] = str(stopped)


def with_setting(params: Any, setting: str) -> Any:
    """``params`` with one ``setting``, such as cluster.epochs=50."""
    name, value = setting.split("=")
    fields = params.model_dump(mode="json")
    *groups, last = name.split(".")
    group = fields
    for key in groups:
        group = group[key]
    group[last] = json.loads(value)
    return type(params).model_validate_json(json.dumps(fields))


if __name__ == "__main__":
    main()
