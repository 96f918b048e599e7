"""In which folders each photo belongs, by what the last run and a person say of it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.groups.apply import Grouping
from pipeline.sorting.names import folder_name
from scan_core.data.types import image_name
from scan_core.evaluation.belonging import CHECK, NOWHERE, SURE

if TYPE_CHECKING:
    import pyarrow as pa

WIDTH = 2  # digits of a group's number at least, so that few groups keep their folders if there are more
STATES = (SURE, CHECK, NOWHERE)


@dataclass(frozen=True)
class Place:
    """A folder for a photo."""

    folder: str  # below DIR, with /
    state: str
    group: int | None  # None: the photo fits nowhere
    keywords: tuple[str, ...]


@dataclass
class Places:
    """All photos of the last run."""

    of: dict[str, list[Place]] = field(default_factory=dict)  # photo → its places, without those that are left out
    grouped: set[str] = field(default_factory=set)  # all photos that have a group
    ignored: int = 0  # photos of groups that are left out
    findings: Counter[str] = field(default_factory=Counter)  # files without a group, by their kind

    def count(self, state: str) -> int:
        """How many photos have a place as ``state``."""
        return sum(any(place.state == state for place in places) for places in self.of.values())

    @property
    def groups(self) -> int:
        """How many groups have a photo."""
        return len({place.group for places in self.of.values() for place in places} - {None})


def places_of(table: "pa.Table", grouping: Grouping, boxes: bool) -> Places:
    """The places of the photos in ``table``, which is ``read_predictions``'s.

    With ``boxes``, its rows are parts of photos: a photo belongs in the group of each of its parts, and nowhere if no
    part fits anywhere.
    """
    shown, ignored = grouping.groups.shown, set(grouping.groups.ignore)
    width = max(WIDTH, len(str(max(shown, default=0))))
    places, states = Places(), _states(table, boxes)
    places.findings.update(table.filter(table["group"].is_null())["split"].to_pylist())
    places.grouped = set(states)
    for photo in sorted(states):
        found = []
        kept = {group: state for group, state in states[photo].items() if group not in ignored}
        for group, state in sorted(kept.items()):
            if state == NOWHERE:
                continue
            folder = folder_name(group, width, grouping.name(group))
            word = grouping.name(group) or f"group {group}"
            if state == SURE:
                found.append(Place(folder, state, group, (word,)))
            else:
                found.append(Place(f"{CHECK}/{folder}", state, group, (word, CHECK)))
        if kept and not found:
            found = [Place(NOWHERE, NOWHERE, None, (NOWHERE,))]
        if found:
            places.of[photo] = found
        else:
            places.ignored += 1
    return places


def _states(table: "pa.Table", boxes: bool) -> dict[str, dict[int, str]]:
    """Photo → group → the best state of its parts in that group."""
    found: dict[str, dict[int, str]] = {}
    columns = (table[name].to_pylist() for name in ("source", "group", "state"))
    for source, group, state in zip(*columns, strict=True):
        if group is not None:
            of_photo = found.setdefault(image_name(source) if boxes else source, {})
            of_photo[group] = min(state, of_photo.get(group, NOWHERE), key=STATES.index)
    return found
