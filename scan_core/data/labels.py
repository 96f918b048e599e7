"""Labels, which only ``evaluate`` reads, and the splits of the source itself."""

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from scan_core.data.chunks import Chunk
from scan_core.data.csv_rows import csv_rows
from scan_core.data.folder import class_of
from scan_core.data.settings import Data
from scan_core.data.types import Source, Split, class_order, image_name, printable
from scan_core.errors import ScanError


def labels_and_splits(
    source: Source, catalog: Chunk, settings: Data, csv_labels: dict[str, str]
) -> tuple[list[str | None], list[Split | None]]:
    """Each decoded image's class, from where ``data.labels`` says, and its split in the source.

    ``csv_labels`` is what ``read_labels`` returned if ``data.labels`` is a file, else it is not used. Raises
    ``ScanError`` if it names none of the images.
    """
    labels, splits = source.layout(catalog.names) if source.layout else (catalog.labels, catalog.splits)
    if settings.labels == "folders":
        return labels, splits
    if settings.labels == "none":
        return [None] * len(labels), splits
    image_of = images_of(csv_labels, names_to_label(catalog.names, settings))
    if csv_labels and not image_of:
        raise ScanError(
            f"data.labels is {settings.labels}, which names no image of the source; it has {next(iter(csv_labels))!r}, "
            f"the source has {catalog.names[0]!r}; write the names as the source has them"
        )
    label_of = {name: csv_labels[source] for source, name in image_of.items()}
    if settings.boxes:  # a part without a label of its own has its image's
        return [label_of.get(name, label_of.get(image_name(name))) for name in catalog.names], splits
    return [label_of.get(name) for name in catalog.names], splits


def names_to_label(names: Sequence[str], settings: Data) -> set[str]:
    """What a CSV file may give a label: the images ``names``; or if these are parts of images, the images, too."""
    return {*names, *map(image_name, names)} if settings.boxes else set(names)


def images_of(sources: Collection[str], names: Collection[str]) -> dict[str, str]:
    """The one of the images' ``names`` that each of a CSV file's ``sources`` means. Those that mean none are left out.

    Spaces around a source, backslashes, a ``./`` before it and the way in which Unicode writes an accent count only if
    without them several names are the same.
    """
    unused = set(names)
    image_of = {source: source for source in sources if source in unused}
    unused -= image_of.keys()
    alike: dict[str, list[str]] = {}
    for name in unused:
        alike.setdefault(plain_name(name), []).append(name)
    for source in sources:
        if source not in image_of and len(meant := alike.get(plain_name(source), [])) == 1:
            image_of[source] = meant.pop()
    return image_of


def plain_name(name: str) -> str:
    """``name`` as most programs would write it."""
    text = unicodedata.normalize("NFC", printable(name.strip())).replace("\\", "/")
    return text.removeprefix("./")


def numbered(labels: list[str | None], source: Source) -> tuple[list[str], np.ndarray]:
    """The classes, and each image's class number, (N,) int64: -1 if it has no label."""
    present = {label for label in labels if label is not None}
    classes = class_order(present)
    if source.classes is not None and present <= set(source.classes):
        classes = source.classes if present else []
    number = {name: position for position, name in enumerate(classes)}
    return classes, np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)


def read_labels(path: Path) -> dict[str, str]:
    """The label of each source in a UTF-8 CSV file with columns ``source`` and ``label``. Empty labels are left out.

    Raises ``ScanError`` if the file or a column is missing, if it is not CSV in UTF-8, or if a source has two labels.
    """
    labels: dict[str, str] = {}
    for line, row in csv_rows(path, ("source", "label"), "data.labels"):
        source, label = row.get("source", ""), class_of(row.get("label", "").strip())
        if not label:
            continue
        if not source:
            raise ScanError(f'{path}, line {line}: the label "{label}" has no source; name its image')
        if labels.setdefault(source, label) != label:
            raise ScanError(
                f'{path}, line {line}: {source} is "{label}" here and "{labels[source]}" above; '
                "a source can have one label; remove one of the lines"
            )
    return labels
