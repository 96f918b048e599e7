"""prepare: decodes the source once, into an order and files that no label or name reaches."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.environment import worker_count
from pipeline.progress import CountProgress, say
from pipeline.stage import Stage
from scan_core.data.chunks import Chunk
from scan_core.data.decode import EMPTY, UNKNOWN, target_of
from scan_core.data.depth import Range, common_range
from scan_core.data.ingest import check_rejected, ingest, load_chunks
from scan_core.data.labels import images_of, labels_and_splits, names_to_label, numbered, read_labels
from scan_core.data.open import open_source, resolve
from scan_core.data.settings import Data
from scan_core.data.splits import official
from scan_core.data.store import Plan, plan_store, write_store
from scan_core.data.types import Finding, Source
from scan_core.errors import ScanError

# A decoded image depends on these settings. The others can change without decoding again.
DECODING = ("name", "path", "boxes", "subset", "extra", "size", "fit", "stored", "max_pixels", "range", "max_unpacked")


def prepare(stage: Stage) -> None:
    """Read the source and write data/images for training; data/items and data/labels for evaluate alone."""
    settings = stage.params.data
    source = open_source(settings, stage.root, stage.data_home)
    # The labels are read first, so that a mistake in them shows before hours of decoding.
    csv_labels = read_labels(resolve(settings.labels, stage.root)) if settings.labels.endswith(".csv") else {}
    catalog, locations, chunks = decode(stage, source)
    labels, splits = labels_and_splits(source, catalog, settings, csv_labels)
    plan = plan_store(catalog, locations, splits, settings, chunks)

    images = stage.out(artifacts.IMAGES)
    artifacts.save_json(images / "stats.json", write_store(plan, catalog, locations, settings, chunks, images))
    for split, rows in plan.rows.items():
        artifacts.save_array(images / f"{split}.npy", rows)
    artifacts.save_array(images / "copies.npy", plan.copies)
    artifacts.save_array(images / "digests.npy", catalog.digests[plan.order, : artifacts.DIGEST])

    findings = [*catalog.findings, *plan.findings]
    save_items(stage.out(artifacts.ITEMS), plan, catalog, findings, settings)

    classes, numbers = numbered([labels[row] for row in plan.order], source)
    labels_folder = stage.out(artifacts.LABELS)
    artifacts.save_array(labels_folder / "labels.npy", numbers)
    artifacts.save_json(labels_folder / "classes.json", classes)

    kinds: Counter[str] = Counter(finding.kind for finding in findings)
    counts = {"images": len(plan.order), **{split: len(rows) for split, rows in plan.rows.items()}}
    counts |= {kind: kinds[kind] for kind in artifacts.KINDS}
    counts |= {"labelled": int((numbers >= 0).sum()), "across_splits": plan.across}
    stage.tracker.metrics({**counts})
    say(f"prepare   {summary(counts)}")
    for line in understood(source, catalog, settings, classes, counts["labelled"], official(splits)):
        say(f"prepare   {line}")
    if paged := int(catalog.paged.sum()):
        first = catalog.names[int(catalog.paged.argmax())]
        say(f"prepare   the first page or frame is taken of {paged:,} files with several, such as {first}")
    if unmatched := csv_labels.keys() - images_of(csv_labels, names_to_label(catalog.names, settings)).keys():
        say(
            f"prepare   warning: {len(unmatched):,} of {len(csv_labels):,} rows of {settings.labels} name no image, "
            f"such as {min(unmatched)!r}; the source has {catalog.names[0]!r}"
        )


def decode(stage: Stage, source: Source) -> tuple[Chunk, np.ndarray, Path]:
    """``load_chunks``'s catalog and locations, and the folder of the chunks, from which an interrupted run resumes."""
    settings = stage.params.data
    depends_on = {key: getattr(settings, key) for key in DECODING} | {"labelled": settings.labels == "folders"}
    chunks = stage.scratch(depends_on)
    source_listing = artifacts.load_json(artifacts.SOURCE)["content"].get("source", {})
    total = source.total or (source_listing.get("files") if settings.name == "folder" else None)
    target = target_of(settings)
    with CountProgress("prepare", total) as progress:
        count = ingest(source, target, chunks, worker_count(), progress.update)
    catalog, locations = load_chunks(chunks, count)
    if target.range is None and (measured := common_range(catalog.extents)):
        say(f"prepare   {words_of(measured, catalog)}")
        with CountProgress("prepare", total) as progress:  # the chunks that hold such images are decoded again
            ingest(source, replace(target, range=measured), chunks, worker_count(), progress.update)
        catalog, locations = load_chunks(chunks, count)
    rejected = stage.root / artifacts.REJECTED
    try:
        check_rejected(catalog, settings, stage.data_home)
    except ScanError as error:
        artifacts.save_findings(rejected, catalog.findings)
        raise ScanError(f"{error}; {artifacts.REJECTED} lists them") from None
    rejected.unlink(missing_ok=True)
    return catalog, locations, chunks


def understood(
    source: Source, catalog: Chunk, settings: Data, classes: list[str], labeled: int, own_split: bool
) -> list[str]:
    """What the source's classes, split and other files are taken for."""
    split = "the split is the source's (data.split)" if own_split else "the split is drawn (data.val_fraction)"
    if settings.protocol == "all":
        split = "no image is held out (data.protocol)"
    have = f"{labeled:,} images with a label (data.labels {settings.labels}), classes: {len(classes)}"
    have = have if classes else "no labels"
    lines = [
        f"{have}; {split}",
        *(what + (f": {count:,} images" if count else "") for what, count in source.notes.items()),
    ]
    ignored: Counter[str] = Counter()
    for name, kind, reason in catalog.findings:
        if kind == "ignored":
            ignored[Path(name).suffix.lower() or "without a suffix" if reason in (UNKNOWN, EMPTY) else reason] += 1
    if ignored:
        lines.append("ignored: " + ", ".join(f"{count:,} {what}" for what, count in ignored.most_common()))
    return lines


def words_of(measured: Range, catalog: Chunk) -> str:
    """What is done to images of more than 8 bits."""
    deep = int(np.isfinite(catalog.extents[:, 0]).sum())
    return f"{deep:,} images of more than 8 bits: {measured[0]:,g} becomes black, {measured[1]:,g} white (data.range)"


def save_items(folder: Path, plan: Plan, catalog: Chunk, findings: list[Finding], settings: Data) -> None:
    """Writes items.parquet, which has each image's name, split and content (hexadecimal), and findings.csv."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    split_of = np.full(len(plan.order), "none", dtype=object)
    for split in ("pretext", "train") if settings.protocol == "all" else ("pretext", "train", "val"):
        split_of[plan.rows[split]] = split
    folder.mkdir()
    table = pa.table({
        "id": pa.array(np.arange(len(plan.order))),
        "source": pa.array([catalog.names[row] for row in plan.order]),
        "split": pa.array(split_of.tolist()),
        "content": pa.array([catalog.contents[row].tobytes().hex() for row in plan.order]),
    })  # fmt: skip
    pq.write_table(table, folder / "items.parquet")
    artifacts.save_findings(folder / "findings.csv", findings)


def summary(counts: dict[str, int]) -> str:
    """One line for the terminal."""
    text = (
        "{images:,} images: {train:,} train, {val:,} val; {rejected:,} rejected, {ignored:,} ignored, "
        "{duplicate:,} exact and {near_duplicate:,} near duplicates"
    )
    if counts["across_splits"]:
        text += "; {across_splits:,} of val with a copy or near copy in train"
    return text.format(**counts)


app = command("prepare", prepare)

if __name__ == "__main__":
    run(app)
