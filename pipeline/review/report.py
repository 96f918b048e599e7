"""reports/report.html: the page as one file, with the data of a run and pictures of a sample of its images.

It asks nothing of any other place, and holds no time, host or random id: the same run gives the same bytes.
"""

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import PREDICTIONS
from pipeline.groups.apply import Grouping, Where
from pipeline.groups.file import Groups
from pipeline.groups.numbering import groups_of_run
from pipeline.params import Params
from pipeline.progress import say
from pipeline.review.contents import Contents
from pipeline.review.images import THUMB, StoredImages
from pipeline.review.more import more
from scan_core.errors import ScanError

STATIC = Path(__file__).with_name("static")
LARGEST = 20_000_000  # bytes of the file
COLUMNS = 12_000_000  # of what is said of each image
FILES = 2_000  # that are no images, and are listed
PICTURES = 3_000
FEW, SMALL = 1_000, 112  # up to so many images have pictures of their full size, more of so many pixels
FIRST = 60  # sets of copies, and odd images of a kind, that are shown first
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><div id="app"></div>{left_out}<script type="application/json" id="data">{data}</script><script>{script}</script>
<!--
{licenses}
--></body></html>
"""


def write_report(path: Path, params: Params, at: Where) -> None:
    """Writes the page of the run whose files are ``at``, at most ``LARGEST`` bytes.

    Numbers, names and corrections of groups are those of groups.yaml, as it is, as far as the groups are found again.
    """
    images = StoredImages(at)
    data = {"mode": "report", "project": _project(params), "version": 1, **_contents(images, params, at).everything()}
    del data["check"]
    data["promise"] = None  # nobody has checked a run that has not ended
    if not params.evaluate.pictures:
        data["images"]["source"], data["rejected"] = images.contents, []  # scan edit takes contents, too
    data, numbers, left_out = shortened(data)
    page = as_html(data, left_out)
    if params.evaluate.pictures:
        side = THUMB if len(images) <= FEW else SMALL
        data["thumbs"], room = {}, LARGEST - len(page.encode()) - 100
        for image in shown_first(data)[:PICTURES]:
            picture = f"data:image/webp;base64,{base64.b64encode(images.thumb(numbers[image], side)).decode()}"
            room -= len(picture) + len(f'"{image}":"",')
            if room < 0:
                break
            data["thumbs"][str(image)] = picture
        page = as_html(data, left_out)
    path.write_text(page, encoding="utf-8")


def _contents(images: StoredImages, params: Params, at: Where) -> Contents:
    """By groups.yaml; if that is damaged, by nobody's corrections, for no run fails because of it."""
    try:
        grouping = Grouping(groups_of_run(at(PREDICTIONS)), at)
        return Contents(images, more(images, params, grouping.groups.clusters), grouping)
    except ScanError as error:
        say(f"evaluate: warning: the report has groups without names and corrections ({error})")
    grouping = Grouping(groups_of_run(at(PREDICTIONS), Groups()), at)
    return Contents(images, more(images, params, grouping.groups.clusters), grouping)


def _project(params: Params) -> str:
    """What the images are called: not the name of a folder of this computer in which the project lies."""
    data = params.data
    return Path(data.path).name if data.path and params.evaluate.pictures else data.name


def shortened(data: dict[str, Any]) -> tuple[dict[str, Any], list[int], str]:
    """``data`` with as many images as there is room for, their numbers in ``data``, and what is left out, in words.

    Images that are shown first stay; of the others a sample does.
    """
    count, files, said = len(data["images"]["group"]), data["rejected"], []
    size = len(_json(data["images"]).encode())
    numbers = list(range(count))
    if size > COLUMNS:
        kept = shown_first(data)[: count * COLUMNS // size]
        numbers = sorted(kept)
        said.append(f"{len(numbers):,} of {count:,} images")
        data = data | _renumbered(data, {old: new for new, old in enumerate(numbers)})
        data["images"] = {
            name: [column[image] for image in numbers] if column else column for name, column in data["images"].items()
        }
    if len(files) > FILES:
        data = data | {"rejected": files[:FILES]}
        said.append(f"{FILES:,} of {len(files):,} files that were left out")
    return data, numbers, f"This file lists {' and '.join(said)}; scan review shows all." if said else ""


def _renumbered(data: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """The keys that name images, without those that are not in ``new``."""

    def those(images: list[int]) -> list[int]:
        return [new[image] for image in images if image in new]

    listed = ("prototypes", "least_sure", "random")
    return {
        "groups": [group | {name: those(group[name]) for name in listed} for group in data["groups"]],
        "questions": [
            each | {"image": new[each["image"]], "own": those(each["own"]), "other": those(each["other"])}
            for each in data["questions"]
            if each["image"] in new
        ],
        "copies": [kept for copies in data["copies"] if len(kept := those(copies)) > 1],
        "odd": {name: those(images) for name, images in data["odd"].items()},
    }


def shown_first(data: dict[str, Any]) -> list[int]:
    """All images: those that cards, questions and lists show, then the others in a random order."""
    groups, questions = data["groups"], data["questions"]
    first = [
        *(image for name in ("prototypes", "least_sure", "random") for group in groups for image in group[name]),
        *(image for each in questions for image in (each["image"], *each["own"], *each["other"])),
        *(image for copies in data["copies"][:FIRST] for image in copies),
        *(image for images in data["odd"].values() for image in images[:FIRST]),
    ]
    others = np.random.default_rng(0).permutation(len(data["images"]["group"])).tolist()
    return list(dict.fromkeys([*first, *others]))


def as_html(data: dict[str, Any], left_out: str = "") -> str:
    """The page with its data, script and style inside; no text of the data ends a script, or is read as HTML."""
    script = (STATIC / "page.js").read_text(encoding="utf-8").replace("</script", "<\\/script")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    licenses = (STATIC / "LICENSES.txt").read_text(encoding="utf-8").strip().replace("--", "- -")
    return HTML.format(
        policy=f"{POLICY}; script-src 'sha256-{known}'",  # of no other script than the page's own
        title=html.escape(f"{data['project']}: {data['verdict']['word']}"),
        style=(STATIC / "page.css").read_text(encoding="utf-8").replace("</style", "<\\/style"),
        left_out=f'<p class="sample">{html.escape(left_out)}</p>' if left_out else "",
        data=_json(data).replace("<", "\\u003c"),
        script=script,
        licenses=licenses,
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
