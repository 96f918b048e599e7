"""Parts of images: each box of the file ``data.boxes`` becomes an item of its own, in place of its image.

The file is one of these:

- CSV with the columns ``source,left,top,width,height``, in pixels of the upright image as the source has it;
- MegaDetector's JSON (https://lila.science/megadetector-output-format), of which animals with a confidence of at least
  ``CONFIDENCE`` count. People, vehicles and frames of videos are left out.

MegaDetector's boxes are shares of the width and height of the upright image: it turns images by EXIF before it looks
(``open_image`` in its visualization_utils.py). It leaves mirrored ones as they are, which no camera trap writes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from scan_core.data.csv_rows import csv_rows
from scan_core.data.labels import images_of
from scan_core.data.types import Box, Finding, Item, Source, part_name
from scan_core.errors import ScanError

COLUMNS = ("source", "left", "top", "width", "height")
ANIMAL = "animal"  # the name of MegaDetector's category
CONFIDENCE = 0.2  # MegaDetector 5's own typical_detection_threshold

Boxes = dict[str, list[tuple[Box, str]]]  # by source: each with its place in the file, for errors


def parts_of(source: Source, boxes: Boxes, path: Path) -> Source:
    """``source`` with one item per box, named by ``part_name``, in place of its images.

    ``path`` is the file that ``boxes`` are from. An image without a box becomes a finding of the kind ``ignored``,
    because most of a camera trap's pictures are empty, and ``data.max_rejected`` must not count them. The source is
    read through once, so that a wrong name shows before hours of decoding: raises ``ScanError`` if the source does not
    have one of the boxes' images, or if it has a file with the name of a part.
    """
    names: set[str] = set()
    files = 0
    for each in source.read():
        files += 1
        if isinstance(each, Item):
            names.add(each.name)
    image_of = images_of(boxes, names)
    boxes_of: dict[str, list[Box]] = {}
    for name, placed in boxes.items():
        if name not in image_of:
            raise ScanError(
                f"{path}, {placed[0][1]}: {name} is not in the source, which has "
                f"{min(names) if names else 'no image'}; write the names as the source has them"
            )
        boxes_of[image_of[name]] = [box for box, _ in placed]
        for number in range(1, len(placed) + 1):
            if part_name(image_of[name], number) in names:
                raise ScanError(
                    f"{part_name(image_of[name], number)} is a file of the source, and box {number} of "
                    f"{image_of[name]} needs this name; rename the file"
                )

    def read() -> Iterator[Item | Finding]:
        for each in source.read():
            if isinstance(each, Finding):
                yield each
            elif each.name not in boxes_of:
                yield Finding(each.name, "ignored", f"no box in {path.name}")
            else:
                for number, box in enumerate(boxes_of[each.name], 1):
                    yield each._replace(name=part_name(each.name, number), box=box, is_declared_image=True)

    parts = sum(map(len, boxes_of.values()))
    return replace(source, read=read, total=files - len(boxes_of) + parts)


def read_boxes(path: Path) -> Boxes:
    """The boxes in a .csv or .json file, in its order. Raises ``ScanError`` naming the place of the first mistake."""
    boxes = _read_csv(path) if path.suffix == ".csv" else _read_megadetector(path)
    if not boxes:
        least = "" if path.suffix == ".csv" else f" of an animal with a confidence of at least {CONFIDENCE}"
        raise ScanError(f"{path} has no box{least}; at least one is needed")
    return boxes


def _read_csv(path: Path) -> Boxes:
    boxes: Boxes = {}
    for line, row in csv_rows(path, COLUMNS, "data.boxes"):
        if not any(row.values()):
            continue
        source = row.get("source", "")
        if not source:
            raise ScanError(f"{path}, line {line}: the box has no source; name its image")
        left, top, width, height = (_pixels(path, line, name, row.get(name, "").strip()) for name in COLUMNS[1:])
        boxes.setdefault(source, []).append((Box(left, top, width, height), f"line {line}"))
    return boxes


def _pixels(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_length = name in ("width", "height")
    if not math.isfinite(value) or (is_length and value < 0):
        allowed = "a number of pixels of at least 0" if is_length else "a number of pixels"
        raise ScanError(f'{path}, line {line}: {name} is "{text}"; {allowed} is allowed')
    return value


_Share = Annotated[float, Field(allow_inf_nan=False)]
_Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Detection(BaseModel):
    category: str
    conf: float
    bbox: tuple[_Share, _Share, _Length, _Length]  # left, top, width, height
    frame_number: float | None = None  # of a video


class _Image(BaseModel):
    file: str
    detections: list[_Detection] | None = None  # none: MegaDetector could not read the file


class _Output(BaseModel):
    images: list[_Image]
    detection_categories: dict[str, str]


def _read_megadetector(path: Path) -> Boxes:
    try:
        output = _Output.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; data.boxes must name a .json file") from error
    except ValidationError as error:
        raise ScanError(f"{path} is not MegaDetector's output: {_explain(error)}") from None
    if ANIMAL not in output.detection_categories.values():
        raise ScanError(
            f"{path}: detection_categories are {', '.join(output.detection_categories.values()) or 'none'}; "
            f"one of them must be {ANIMAL}"
        )
    boxes: Boxes = {}
    for number, image in enumerate(output.images):
        for found in image.detections or []:
            animal = output.detection_categories.get(found.category) == ANIMAL
            if animal and found.conf >= CONFIDENCE and found.frame_number is None:
                name = image.file.replace("\\", "/")  # MegaDetector's on Windows
                boxes.setdefault(name, []).append((Box(*found.bbox, relative=True), f"images[{number}]"))
    return boxes


def _explain(error: ValidationError) -> str:
    """The first mistake in one line: its place, such as images[3].file, and what is wrong."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    return f"{place}: {first['msg']}".removeprefix(": ")
