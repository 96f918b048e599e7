"""Artifact paths and formats. Files are byte-stable: they hold no time, host or random id."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scan_core.errors import ScanError

SOURCE = Path("data/source.json")  # the signature of the source, for DVC
WEIGHTS = Path("data/weights.json")  # the hash of the file backbone.weights, for DVC
SPACES = Path("data/spaces.json")  # the hashes of the files that embed.spaces names, for DVC
CODE = Path("data/code")  # {stage}.json: a digest of each module that the stage depends on, for DVC
# Shards, stats.json, the rows of each split in pretext.npy, train.npy, val.npy, in copies.npy the row that each is a
# copy of, and in digests.npy the start of the SHA-256 of each image as it is stored.
IMAGES = Path("data/images")
DIGEST = 16  # bytes
ITEMS = Path("data/items")  # items.parquet, findings.csv; read by evaluate alone
LABELS = Path("data/labels")  # labels.npy, classes.json; read by evaluate alone
# {train,val}.npy; {train,val}_first.npy, the position in the split of the image that each is a copy of; bank.npy, whole
# features of some of train, of length 1, and the lengths they had in bank_lengths.npy, with the nearest of them in
# {train,val}_bank.npy and {train,val}_bank_similarity.npy; of frozen networks also reduction.safetensors, and
# networks/<hash>.safetensors
EMBEDDINGS = Path("data/embeddings")
NEIGHBORS = Path("data/neighbors")  # {train,val}.npy and {train,val}_similarity.npy
GROUPS = Path("data/groups.json")  # the number of groups: given, or estimated and why
ASSIGNMENTS = Path("data/assignments")  # cluster.npy, selflabel.npy: (epochs,N_val); heads.npy (H,N_val); int32
MODELS = Path("models")
BELONGING = MODELS / "belonging.safetensors"  # what tells whether a new image belongs to its group
ENGINES = Path(".scan/engines")  # frozen networks as the engine of a CPU has them; may be deleted at any time
REJECTED = Path(".scan/rejected.csv")  # the findings, if they made prepare fail
PLOTS = Path("reports/plots")
METRICS = Path("reports/metrics.json")
HEADLINE = Path("reports/headline.json")  # the few of them that runs are compared by
PREDICTIONS = Path("reports/predictions.parquet")
PREDICTED = (("cluster", "probability"), ("runner_up", "runner_up_probability"))  # its columns, the best cluster first
REPORT = Path("reports/report.html")
VERDICT = Path("reports/verdict.json")  # how far the groups can be trusted, without labels
SAMPLES = Path("reports/clusters.png")
NEIGHBOR_SAMPLES = Path("reports/neighbors.png")

# The steps that metrics.json scores, in the order of the tables, with their titles.
STEPS = {
    "kmeans_pixels": "k-means on pixels",
    "kmeans_embeddings": "k-means on embeddings",
    "cluster": "SCAN loss",
    "selflabel": "SCAN loss + self-label",
}
CANDIDATES = PLOTS / "candidates.csv"  # the heads that cluster chose from, if it clustered stored embeddings


def step_titles(candidates: list[dict[str, str]]) -> dict[str, str]:
    """``STEPS``; if there are ``candidates``, rows of ``CANDIDATES``, the baselines and the one that was kept."""
    kept = [row["method"] for row in candidates if row.get("kept") == "1"]
    if not kept:
        return STEPS
    return {name: STEPS[name] for name in ("kmeans_pixels", "kmeans_embeddings")} | {"selflabel": f"kept: {kept[0]}"}


KINDS = ("rejected", "ignored", "duplicate", "near_duplicate")  # of findings

MADE_BY = {  # folders and files → stage; a file that is not here has the name of its stage
    IMAGES: "prepare", ITEMS: "prepare", LABELS: "prepare", EMBEDDINGS: "embed", NEIGHBORS: "neighbors",
    ASSIGNMENTS / "heads.npy": "cluster", METRICS: "evaluate", HEADLINE: "evaluate", PREDICTIONS: "evaluate",
    REPORT: "evaluate", VERDICT: "evaluate", BELONGING: "evaluate",
    SAMPLES: "evaluate", NEIGHBOR_SAMPLES: "evaluate",
}  # fmt: skip


def require(path: Path) -> Path:
    """``path``, if it exists. Raises ``ScanError`` with the stage that makes it."""
    if not path.exists():
        stage = MADE_BY.get(path) or MADE_BY.get(path.parent) or path.stem
        raise ScanError(f"{path} is missing; make it with: dvc repro {stage}")
    return path


def save_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, C order, no pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: Path, dtype: str, shape: tuple[int | None, ...], mmap: bool = False) -> np.ndarray:
    """A .npy file of ``dtype`` and ``shape`` (None: any length). Raises ``ScanError`` if it has another."""
    try:
        array: np.ndarray = np.load(require(path), mmap_mode="c" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ScanError(f"{path} cannot be read as a .npy array: {error}; delete it and run dvc repro") from None
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype != np.dtype(dtype) or not fits:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ScanError(
            f"{path} is {array.dtype} {array.shape}; {dtype} {wanted} is needed: delete it and run dvc repro"
        )
    return array


def save_json(path: Path, value: Any) -> None:
    """Sorted, indented JSON. Raises ``ValueError`` for NaN and infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Raises ``ScanError`` if the file is missing or is not JSON."""
    try:
        return json.loads(require(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScanError(f"{path} is not valid JSON: {error}; delete it and run dvc repro") from None


def save_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """A CSV file with a header; floats keep 9 digits, enough for a float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = [row.get(column, "") for column in columns]
            writer.writerow([f"{v:.9g}" if isinstance(v, float) else v for v in values])


def load_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as text."""
    with require(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def replace_text(path: Path, text: str) -> None:
    """Writes a small file, all of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def save_history(path: Path, history: list[dict[str, float]]) -> None:
    """A CSV file of a training loop's records, one row per epoch."""
    columns = list(dict.fromkeys(key for record in history for key in record))
    save_csv(path, history, columns or ["epoch"])


def save_findings(path: Path, findings: Iterable[tuple[str, str, str]]) -> None:
    """A CSV file of (source, kind, reason), sorted; ``kind`` is one of ``KINDS``."""
    rows = [dict(zip(("source", "kind", "reason"), finding, strict=True)) for finding in sorted(findings)]
    save_csv(path, rows, ["source", "kind", "reason"])


def load_rows(count: int) -> dict[str, np.ndarray]:
    """Split → (N,) int64 rows of the image store, which holds ``count`` images. Raises ``ScanError``."""
    rows = {split: load_array(IMAGES / f"{split}.npy", "int64", (None,)) for split in ("pretext", "train", "val")}
    for split, index in rows.items():
        if len(index) and not 0 <= index.min() <= index.max() < count:
            raise ScanError(
                f"{IMAGES / split}.npy points at row {index.max()}; the store has {count} images: run dvc repro prepare"
            )
    return rows


def load_firsts(count: int, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split → (n,) int64: for each of its ``rows`` the position in them of the first copy of the same image.

    Mostly that is the row's own position. The image store holds ``count`` images.
    """
    copies = load_array(IMAGES / "copies.npy", "int64", (count,))
    firsts = {}
    for split in ("train", "val"):
        _, first, inverse = np.unique(copies[rows[split]], return_index=True, return_inverse=True)
        firsts[split] = first[inverse]
    return firsts


def load_first(split: str, count: int) -> np.ndarray:
    """What ``embed`` has stored of ``load_firsts`` for a ``split`` of ``count`` images."""
    return load_array(EMBEDDINGS / f"{split}_first.npy", "int64", (count,))


def load_number() -> int:
    """The number of groups: ``cluster.num_clusters``, or what ``groups`` has estimated."""
    return int(load_json(GROUPS)["number"])


def load_shards(stats: dict[str, Any]) -> list[np.ndarray]:
    """The image store's pixels (rows,size,size,channels) uint8, memory-mapped, or its JPEG tables (rows,4) int64."""
    if stats["store"] == "array":
        inner = (stats["size"], stats["size"], stats["channels"])
        return [
            load_array(IMAGES / f"pixels-{number:05d}.npy", "uint8", (count, *inner), mmap=True)
            for number, count in enumerate(stats["rows"])
        ]
    return [
        load_array(IMAGES / f"jpeg-{number:05d}.npy", "int64", (count, 4)) for number, count in enumerate(stats["rows"])
    ]


def load_neighbors(split: str, count: int) -> np.ndarray:
    """(N,K) int64 positions in ``split``, N = ``count``, the nearest first. Raises ``ScanError`` if one is outside."""
    neighbors = load_array(NEIGHBORS / f"{split}.npy", "int64", (count, None))
    if neighbors.size and not 0 <= neighbors.min() <= neighbors.max() < count:
        raise ScanError(
            f"{NEIGHBORS / split}.npy points outside the {count} images of {split}; run dvc repro neighbors"
        )
    return neighbors
