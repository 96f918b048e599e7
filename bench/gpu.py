"""``python -m bench.gpu --archive cifar10-jpeg.tar.xz --out DIR``: what is measured on an NVIDIA GPU.

Needs torch, torchvision, numpy, scipy, scikit-learn, Pillow, pydantic, lightning-fabric, safetensors, faiss and a YAML
reader; neither DVC nor MLflow. In this order: the GPU must agree with the CPU in fp32 (views, losses, gradients, eager
and compiled), and with itself to the byte, or nothing is measured; each training loop beside its ceiling, timed by CUDA
events, and the chip's own matrix and copy rates; then CIFAR-10 from archive to scores, seed after seed, until
``--minutes`` are over. A later call goes on where one stopped: unfinished training lies in ``--state``; finished
networks are also in ``--out``, in half precision and in parts of at most 15 MiB, and the pretext task's is read from
``--resume``. Results are in ``--out``/gpu.{md,json}; the table is printed last.
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
from bench.agreement import agreement, repeated
from bench.end_to_end import OutOfTime, Run, read_archive
from bench.steps import preset
from bench.timing import Row
from bench.views import MEAN, STD
from scan_core.compute.device import make_fabric
from scan_core.images.store import images_on

H200_BF16 = 790e12  # FLOP/s of a bf16 product there; the bar of 80,000 views/s is for it, and scales
SPELLS, SPELL_STEPS = 5, 20


# --- The chip


def chip(device: torch.device) -> dict[str, Any]:
    """Name, versions, and the measured rates of a bf16 product and of a copy inside the device."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    buffer = torch.empty(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    product, copy = (events(device, work, 10) for work in (lambda: a @ b, buffer.clone))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bf16_side": side,
        "bf16_flops": 2 * side**3 / product,
        "copy_bytes": 2 * buffer.numel() / copy,  # read and written
    }


def events(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Seconds of one ``work`` on the device's own clock, after three to warm up."""
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


# --- Loops beside their ceiling


def loops(device: torch.device) -> list[Row]:
    """Each loop and its ceiling in turn, by CUDA events."""
    fabric = make_fabric("auto", device.type)
    rows = []
    for sides, arguments in (
        (steps.pretext_step, ("resnet18", 512)),
        (steps.scan_step, ("resnet18", 128, False)),
        (steps.selflabel_step, ("resnet18", 1000)),
        (steps.scan_step, ("resnet18", 512, True)),
        (steps.embedding, ("resnet18",)),
    ):
        what, works = sides(fabric, *arguments)
        rates: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(SPELLS):
            for name, work in works.items():
                images = work()
                rates[name].append(images / events(device, work, SPELL_STEPS))
        rows.append(steps.ceiling_row(what, rates))
        if device.type == "cuda":
            rows[-1].mib = torch.cuda.max_memory_allocated(device) / 2**20
            del works, work
            gc.collect()  # what this row held is no part of the next one's peak
            torch.cuda.reset_peak_memory_stats(device)
        print(f"{what}: {rows[-1].rate:,.0f} images/s, {rows[-1].ratio:.2f} of the ceiling", flush=True)
    return rows


# --- Results


def earlier(out: Path) -> dict[str, Any]:
    """What other calls have measured."""
    path = out / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(out: Path, found: dict[str, Any]) -> str:
    """Both files, with what is ``found`` in place of what was; the table."""
    results = earlier(out) | found
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    here = results["chip"]
    lines = [
        "# Benchmarks on a GPU", "",
        f"`python -m bench.gpu`; {here['date']}, {here['device']}, torch {here['torch']}, CUDA {here['cuda']}, Python "
        f"{here['python']}. A bf16 product of {here['bf16_side']}² runs at {here['bf16_flops'] / 1e12:.3g} TFLOP/s, a "
        f"copy inside the device at {here['copy_bytes'] / 1e12:.2g} TB/s, read and written.",
    ]  # fmt: skip
    if found := results.get("agreement"):
        lines += ["", "In fp32, beside the CPU, and in the precision of a run, beside itself:", ""]
        lines += ["| | difference | allowed |", "| --- | --- | --- |"]
        lines += [f"| {each['what']} | {each['measured']:.1e} | {each['allowed']:.2g} |" for each in found]
    if found := results.get("loops"):
        wanted = 80_000 * here["bf16_flops"] / H200_BF16
        lines += ["", "| step | images/s | of its ceiling | bar | memory of both |", "| --- | --- | --- | --- | --- |"]
        for each in map(lambda row: Row(**row), found):
            memory = "" if each.mib is None else f"{each.mib:,.0f} MiB"
            also = f", ≥ {wanted:,.0f} images/s" if each.what.startswith("pretext") else ""
            spread = f"{100 * each.ratio:.0f} % ({100 * min(each.ratios):.0f} to {100 * max(each.ratios):.0f})"
            lines.append(f"| {each.what} | {each.rate:,.0f} | {spread} | ≥ 90 %{also} | {memory} |")
    if found := results.get("cifar10"):
        # The first are those that were mined.
        lines += [
            "", f"CIFAR-10 by `{results['preset']}`; features: {' / '.join(found[0]['features'])}", "",
            "| seed | purity at 20 | kNN, with labels | k-means | SCAN loss | self-label | epochs | kept | minutes |",
            "| " + "--- | " * 9,
        ]  # fmt: skip
        for run in found:
            acc = [f"{100 * run[name]['acc']:.1f}" for name in ("kmeans", "cluster", "selflabel")]
            kept, minutes = run["kept"], f"{sum(run['seconds'].values()) / 60:.1f}"
            if run["cut"] and not run["epochs"]["selflabel"]:  # time was over before
                acc[-1] = kept = "–"
            if "pretext" not in run["seconds"]:
                minutes += ", with features of an earlier call"
            features = [
                " / ".join(f"{100 * each[measure]:.1f}" for each in run["features"].values())
                for measure in ("purity_20", "knn_acc")
            ]
            cells = [str(run["seed"]), *features, *acc, str(run["epochs"]["selflabel"]), kept, minutes]
            lines.append(f"| {' | '.join(cells)} |")
    if results.get("unfinished"):
        lines += ["", f"Unfinished: {results['unfinished']}."]
    text = "\n".join(lines) + "\n"
    (out / "gpu.md").write_text(text)
    return text


def main() -> None:
    """Parses, measures what is asked for, writes after each part."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--archive", type=Path, help="cifar10-jpeg.tar.xz; without it CIFAR-10 is left out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/scan-gpu"))
    parser.add_argument("--resume", type=Path, help="where exported weights of an earlier call lie")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no new epoch starts")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--set", nargs="+", default=[], help="settings that differ from the preset: cluster.epochs=50")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", choices=["agreement", "loops", "cifar10"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try the script")
    parser.add_argument("--limit", type=int, help="images of each split, to try the script")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    # Parts and seeds share the process and compile the same function for many shapes: none may stay eager unseen.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    parts = chosen.parts or ["agreement", "loops", "cifar10"]
    chosen.out.mkdir(parents=True, exist_ok=True)
    params, name = preset(chosen.preset), ", ".join([chosen.preset, *chosen.set])
    for each in chosen.set:
        params = changed(params, each)
    what = hashlib.sha256(f"{params.model_dump_json()} {chosen.limit} {chosen.device}".encode()).hexdigest()[:8]
    before, found = earlier(chosen.out), {}
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    if set(parts) & {"agreement", "loops"} or before.get("chip", {}).get("device") != here:
        found["chip"] = chip(device)
    if "agreement" in parts:
        differences = agreement(device) + repeated(device)
        found["agreement"] = [vars(each) for each in differences]
        write(chosen.out, found)
        if wrong := [each for each in differences if each.too_large]:
            raise SystemExit(
                f"bench.gpu: error: the device computes something else: {wrong[0]}; see {chosen.out}/gpu.md"
            )
    if "loops" in parts:
        found["loops"] = [vars(row) for row in loops(device)]
        write(chosen.out, found)
    if "cifar10" in parts and chosen.archive:
        reading = time.monotonic()
        stored, labels, count = read_archive(chosen.archive, chosen.limit)
        images = images_on(device, stored, MEAN, STD)
        fabric, read = make_fabric("auto", device.type), time.monotonic() - reading
        # Another preset's scores, or a trial's on fewer images, are not gone on from; nor is a run that was cut.
        runs = before.get("cifar10", []) if before.get("what") == what else []
        done = {run["seed"]: run for run in runs if not run["cut"]}
        found |= {"preset": name, "what": what, "cifar10": list(done.values()), "unfinished": None}
        try:
            for seed in chosen.seeds:
                if seed not in done:
                    run = Run(params, seed, fabric, chosen.state, chosen.out, started + 60 * chosen.minutes, what)
                    run.seconds.setdefault("read", read)
                    done[seed] = run.scores(images, labels, count, chosen.resume)
                    found |= {"cifar10": list(done.values()), "unfinished": done[seed]["cut"]}
                    write(chosen.out, found)
        except OutOfTime as stopped:
            found["unfinished"] = str(stopped)
    print(write(chosen.out, found))


def changed(params: Any, setting: str) -> Any:
    """``params`` with one ``setting``, as cluster.epochs=50."""
    name, value = setting.split("=")
    fields = params.model_dump(mode="json")
    *groups, last = name.split(".")
    here = fields
    for group in groups:
        here = here[group]
    here[last] = json.loads(value)
    return type(params).model_validate_json(json.dumps(fields))


if __name__ == "__main__":
    main()
