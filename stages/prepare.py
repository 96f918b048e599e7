"""prepare: the source's images, once, in an order and in files that no label or name reaches."""

from collections import Counter

import numpy as np

from pipeline import artifacts
from pipeline.environment import worker_count
from pipeline.progress import CountProgress, say
from pipeline.stage import Stage, command, run
from scan_core.data.decode import target_of
from scan_core.data.ingest import check_rejected, ingest, load_chunks
from scan_core.data.labels import images_of, labels_and_splits, numbered, read_labels
from scan_core.data.sources import open_source, resolve
from scan_core.data.store import plan_store, write_store


def prepare(stage: Stage) -> None:
    """Read the source and write data/images for training; data/items and data/labels for evaluate alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = stage.params.data
    source = open_source(settings, stage.root, stage.data_home)
    given: dict[str, str] = {}
    if settings.labels.endswith(".csv"):
        given = read_labels(resolve(settings.labels, stage.root))  # a mistake in it shows before hours of decoding
    # What a decoded image depends on: a share of rejects that was set too low costs no second decoding.
    keys = ("name", "path", "subset", "extra", "size", "fit", "stored", "max_pixels", "max_unpacked")
    depends_on = {key: getattr(settings, key) for key in keys} | {"labelled": settings.labels == "folders"}
    folder = stage.scratch(depends_on)
    listed = artifacts.load_json(artifacts.SOURCE)["content"].get("source", {})
    total = source.total or (listed.get("files") if settings.name == "folder" else None)
    with CountProgress("prepare", total) as progress:
        count = ingest(source, target_of(settings), folder, worker_count(), progress.update)
    known, where = load_chunks(folder, count)
    try:
        check_rejected(known, settings, stage.data_home)
    except Exception:
        artifacts.save_findings(stage.root / artifacts.REJECTED, known.findings)
        raise
    (stage.root / artifacts.REJECTED).unlink(missing_ok=True)
    labels, splits = labels_and_splits(source, known, settings, stage.root)
    plan = plan_store(known, where, splits, settings, folder)

    images = stage.out(artifacts.IMAGES)
    artifacts.save_json(images / "stats.json", write_store(plan, known, where, settings, folder, images))
    for split, rows in plan.rows.items():
        artifacts.save_array(images / f"{split}.npy", rows)

    split_of = np.full(len(plan.order), "none", dtype=object)
    for split in ("pretext", "train") if settings.protocol == "all" else ("pretext", "train", "val"):
        split_of[plan.rows[split]] = split
    items = stage.out(artifacts.ITEMS)
    items.mkdir()
    table = pa.table({
        "id": pa.array(np.arange(len(plan.order))),
        "source": pa.array([known.names[row] for row in plan.order]),
        "split": pa.array(split_of.tolist()),
    })  # fmt: skip
    pq.write_table(table, items / "items.parquet")
    findings = [*known.findings, *plan.findings]
    artifacts.save_findings(items / "findings.csv", findings)

    classes, numbers = numbered([labels[row] for row in plan.order], source)
    folder = stage.out(artifacts.LABELS)
    artifacts.save_array(folder / "labels.npy", numbers)
    artifacts.save_json(folder / "classes.json", classes)

    kinds: Counter[str] = Counter(finding.kind for finding in findings)
    counts = {"images": len(plan.order), **{split: len(rows) for split, rows in plan.rows.items()}}
    counts |= {kind: kinds[kind] for kind in artifacts.KINDS} | {"labelled": int((numbers >= 0).sum())}
    stage.tracker.metrics({**counts, "across_splits": plan.across})
    say(
        f"prepare   {counts['images']:,} images: {counts['train']:,} train, {counts['val']:,} val; "
        + ", ".join(
            f"{kinds[kind]:,} {kind.replace('_', ' ')}{'s' * (kind.endswith('e') and kinds[kind] != 1)}"
            for kind in artifacts.KINDS
        )
        + (f"; {plan.across:,} val images are in train too, or nearly" if plan.across else "")
    )
    if lost := given.keys() - images_of(given, known.names).keys():
        say(
            f"prepare   warning: {len(lost):,} of {len(given):,} rows of {settings.labels} name no image, such as "
            f"{min(lost)!r}; the source has {known.names[0]!r}"
        )


app = command("prepare", prepare)

if __name__ == "__main__":
    run(app)
