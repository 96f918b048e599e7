"""What is known of the images besides the images: for ``evaluate`` alone, and for splits that a source has itself."""

from pathlib import Path

import numpy as np

from scan_core.chunks import Chunk
from scan_core.errors import ScanError
from scan_core.settings import Data
from scan_core.sources import Source, Split, class_order, resolve
from scan_core.tables import read_labels


def labels_and_splits(
    source: Source, known: Chunk, settings: Data, root: Path
) -> tuple[list[str | None], list[Split | None]]:
    """Each ingested image's class, as ``data.labels`` has it, and the split it has at its source.

    Raises ``ScanError`` where a file of labels names none of the images.
    """
    labels, splits = source.layout(known.names) if source.layout else (known.labels, known.splits)
    if settings.labels == "folders":
        return labels, splits
    if settings.labels == "none":
        return [None] * len(labels), splits
    given = read_labels(resolve(settings.labels, root))
    if given and given.keys().isdisjoint(known.names):
        raise ScanError(
            f"data.labels is {settings.labels}: it names no image of the source; it has {next(iter(given))!r}, "
            f"the source {known.names[0]!r}"
        )
    return [given.get(name) for name in known.names], splits


def numbered(labels: list[str | None], source: Source) -> tuple[list[str], np.ndarray]:
    """The classes, and each image's as (N,) int64, -1 where it is not known."""
    present = {label for label in labels if label is not None}
    classes = class_order(present)
    if source.classes is not None and present <= set(source.classes):
        classes = source.classes if present else []
    number = {name: position for position, name in enumerate(classes)}
    return classes, np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)
