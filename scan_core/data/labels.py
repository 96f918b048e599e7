"""What is known of the images besides the images: for ``evaluate`` alone, and for splits that a source has itself."""

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

from scan_core.data.chunks import Chunk
from scan_core.data.settings import Data
from scan_core.data.sources import Source, Split, class_order, resolve
from scan_core.errors import ScanError


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
    image_of = images_of(given, known.names)
    if given and not image_of:
        raise ScanError(
            f"data.labels is {settings.labels}: it names no image of the source; it has {next(iter(given))!r}, "
            f"the source {known.names[0]!r}"
        )
    label_of = {name: given[source] for source, name in image_of.items()}
    return [label_of.get(name) for name in known.names], splits


def images_of(sources: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Which of ``names`` each of a file's ``sources`` means; one that means none is left out.

    Spaces around a source, as many a file has after its commas, count only where a name has them too.
    """
    left = set(names)
    found = {source: source for source in sources if source in left}
    left -= found.keys()
    for source in sources:
        name = source.strip()
        if source not in found and name in left:
            found[source] = name
            left.remove(name)
    return found


def numbered(labels: list[str | None], source: Source) -> tuple[list[str], np.ndarray]:
    """The classes, and each image's as (N,) int64, -1 where it is not known."""
    present = {label for label in labels if label is not None}
    classes = class_order(present)
    if source.classes is not None and present <= set(source.classes):
        classes = source.classes if present else []
    number = {name: position for position, name in enumerate(classes)}
    return classes, np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)


def read_labels(path: Path) -> dict[str, str]:
    """Label of each source in a UTF-8 CSV file with columns ``source`` and ``label``; those without one are left out.

    Raises ``ScanError`` if the file or a column is missing, it is no CSV file in UTF-8, or a source has two labels.
    """
    labels: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            for name in ("source", "label"):
                if header.count(name) != 1:
                    raise ScanError(
                        f'{path} has {header.count(name)} columns named "{name}"; its columns are '
                        f"{', '.join(header) or 'none'}; one source and one label, separated by commas, are needed in "
                        "its first line"
                    )
            for line in lines:
                row = dict(zip(header, line, strict=False))
                source, label = row.get("source", ""), row.get("label", "").strip()
                if not label:
                    continue
                if not source:
                    raise ScanError(f'{path}, line {lines.line_num}: label "{label}" has no source; name its image')
                if labels.setdefault(source, label) != label:
                    raise ScanError(
                        f'{path}, line {lines.line_num}: {source} is "{label}" here and "{labels[source]}" above; '
                        "one label is allowed; remove one of the lines"
                    )
    except UnicodeDecodeError as error:
        raise ScanError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise ScanError(f"{path}, line {lines.line_num}: {error}; mend that line") from error
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; data.labels is to name a .csv file") from error
    return labels
