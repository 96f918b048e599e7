"""The results of ``python -m bench.gpu``: gpu.json, and gpu.md as a page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.timing import Row

H200_BF16 = 790e12  # FLOP/s of a bf16 product on the chip that H200_VIEWS is a target for
H200_VIEWS = 80_000  # per second in the pretext step; other chips' targets are in proportion to their bf16 rate


def load_results(out: Path) -> dict[str, Any]:
    """What earlier calls measured."""
    path = out / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_results(out: Path, measured: dict[str, Any]) -> str:
    """Updates both files with ``measured`` and returns the page."""
    results = load_results(out) | measured
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    chip = results["chip"]
    lines = [
        "# Benchmarks on a GPU", "",
        f"`python -m bench.gpu`; {chip['date']}, {chip['device']}, torch {chip['torch']}, CUDA {chip['cuda']}, Python "
        f"{chip['python']}. A bf16 product of {chip['bf16_side']}² runs at {chip['bf16_flops'] / 1e12:.3g} TFLOP/s, a "
        f"copy inside the device at {chip['copy_bytes'] / 1e12:.2g} TB/s, read and written.",
    ]  # fmt: skip
    if differences := results.get("agreement"):
        lines += ["", "Compared with the CPU in fp32, and with itself in the precision of a run:", ""]
        lines += ["| | difference | allowed |", "| --- | --- | --- |"]
        lines += [f"| {each['what']} | {each['measured']:.1e} | {each['allowed']:.2g} |" for each in differences]
    if rows := results.get("loops"):
        lines += ["", "| step | images/s | of its ceiling | target | memory of both |", "| --- " * 5 + "|"]
        lines += _loop_lines([Row(**row) for row in rows], H200_VIEWS * chip["bf16_flops"] / H200_BF16)
    if runs := results.get("cifar10"):
        lines += [
            "", f"CIFAR-10 by `{results['preset']}`; features: {' / '.join(runs[0]['features'])}", "",
            "| seed | purity at 20 | kNN, with labels | k-means | SCAN loss | self-label | epochs | kept | minutes |",
            "| " + "--- | " * 9, *map(_cifar10_line, runs),
        ]  # fmt: skip
    if results.get("unfinished"):
        lines += ["", f"Unfinished: {results['unfinished']}."]
    text = "\n".join(lines) + "\n"
    (out / "gpu.md").write_text(text)
    return text


def _loop_lines(rows: list[Row], views_target: float) -> Iterator[str]:
    for row in rows:
        memory = "" if row.mib is None else f"{row.mib:,.0f} MiB"
        target = "≥ 90 %" + (f", ≥ {views_target:,.0f} images/s" if row.what.startswith("pretext") else "")
        share = f"{100 * row.ratio:.0f} % ({100 * min(row.ratios):.0f} to {100 * max(row.ratios):.0f})"
        yield f"| {row.what} | {row.rate:,.0f} | {share} | {target} | {memory} |"


def _cifar10_line(run: dict[str, Any]) -> str:
    """The line of one seed. Of two features, the first one's neighbors were used."""
    acc = [f"{100 * run[name]['acc']:.1f}" for name in ("kmeans", "cluster", "selflabel")]
    kept, minutes = run["kept"], f"{sum(run['seconds'].values()) / 60:.1f}"
    if run["cut"] and not run["epochs"]["selflabel"]:  # time was over before the first epoch of self-labeling
        acc[-1] = kept = "–"
    if "pretext" not in run["seconds"]:
        minutes += ", with features of an earlier call"
    features = [
        " / ".join(f"{100 * scores[measure]:.1f}" for scores in run["features"].values())
        for measure in ("purity_20", "knn_acc")
    ]
    cells = [str(run["seed"]), *features, *acc, str(run["epochs"]["selflabel"]), kept, minutes]
    return f"| {' | '.join(cells)} |"
