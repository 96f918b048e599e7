"""prepare: the source's images, once, in an order and in files that no label or name reaches."""

import numpy as np

from pipeline import artifacts
from pipeline.stage import Stage, command
from scan_core.data import channel_statistics, content_order, split_rows
from scan_core.sources import read_source


def prepare(stage: Stage) -> None:
    """Read the source and write data/images for training; data/items and data/labels for evaluate alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = stage.params.data
    source = read_source(settings)
    order = content_order(source.pixels)
    pixels = source.pixels[order]
    train, val = split_rows(pixels, settings.val_fraction, settings.split_seed)
    mean, std = channel_statistics(pixels[train])
    count, height, width, channels = pixels.shape

    images = stage.out(artifacts.IMAGES)
    artifacts.save_array(images / "pixels.npy", pixels)
    for split, rows in {"pretext": train, "train": train, "val": val}.items():
        artifacts.save_array(images / f"{split}.npy", rows)
    artifacts.save_json(
        images / "stats.json",
        {"count": count, "height": height, "width": width, "channels": channels, "mean": mean, "std": std},
    )

    split_of = np.full(count, "none", dtype=object)
    split_of[train], split_of[val] = "train", "val"
    items = stage.out(artifacts.ITEMS)
    items.mkdir()
    table = pa.table({
        "id": pa.array(np.arange(count)),
        "source": pa.array([source.names[row] for row in order]),
        "split": pa.array(split_of.tolist()),
    })  # fmt: skip
    pq.write_table(table, items / "items.parquet")
    artifacts.save_csv(items / "rejected.csv", [], ["source", "reason"])

    labels = stage.out(artifacts.LABELS)
    artifacts.save_array(labels / "labels.npy", source.labels[order])
    artifacts.save_json(labels / "classes.json", source.classes)
    stage.tracker.metrics({"images": count, "train": len(train), "val": len(val)})


app = command("prepare", prepare)

if __name__ == "__main__":
    app()
