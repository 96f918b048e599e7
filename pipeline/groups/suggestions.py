"""Names that are suggested for groups, from the classifier that came with a frozen network."""

import hashlib
import json
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.groups.apply import Grouping
from pipeline.weights import weights_file
from scan_core.errors import ScanError

KEPT = Path(".scan/suggestions.json")  # of one model and one state of the corrections


def suggested_names(grouping: Grouping) -> dict[int, str]:
    """Group that is shown → word, for groups without a name. Empty if no network with a classifier was used.

    A person's names are never suggested again for another group.
    """
    key = hashlib.sha256(grouping.groups.model_dump_json(exclude={"names"}).encode()).hexdigest()
    found = _kept(key) if grouping.is_finished else None
    if found is None:
        found = _suggest(grouping)
        if grouping.is_finished:
            artifacts.replace_text(KEPT, json.dumps({"key": key, "words": found}))
    taken = {name.lower() for name in grouping.groups.names.values()}
    return {group: word for group, word in found.items() if not grouping.name(group) and word.lower() not in taken}


def _kept(key: str) -> dict[int, str] | None:
    try:
        kept = json.loads(KEPT.read_text())
    except (OSError, ValueError):
        return None
    return {int(group): word for group, word in kept["words"].items()} if kept.get("key") == key else None


def _suggest(grouping: Grouping) -> dict[int, str]:
    """By the images of the bank: thousands that were drawn at random, whose whole features are stored."""
    from scan_core.evaluation.verdict import NONE, unit_rows
    from scan_core.models.files import load_belonging
    from scan_core.weights.published import PUBLISHED
    from scan_core.weights.words import classifier_of, suggest_words

    try:
        names = _networks()
        named = next((place for place, name in enumerate(names) if name in PUBLISHED), None)
        if named is None or not set(names[:named]) <= set(PUBLISHED):
            return {}
        start = sum(PUBLISHED[name].features for name in names[:named])
        fitted, bank, _, lengths = load_belonging(artifacts.require(grouping.at(artifacts.BELONGING)))
        certain, nameless = np.ones((len(bank), 1)), [""] * len(bank)
        groups = grouping.apply(fitted.members[:, None], certain, nameless, _embeddings(len(bank))).group
        classifier = classifier_of(names[named])
        words = grouping.words(artifacts.load_json(grouping.at(artifacts.VERDICT)))
    except ScanError:  # a result of another program, or a package that is gone: groups are shown all the same
        return {}
    assert classifier is not None
    features = unit_rows(bank[:, start : start + PUBLISHED[names[named]].features].astype(np.float32))
    features *= lengths[:, named, None]
    found = suggest_words(features, groups, classifier)
    return {group: each.word for group, each in found.items() if words.get(group) != NONE}


def _networks() -> list[str]:
    """The names of the networks that the model of the last run sees with; "" for one that is not known by name."""
    from scan_core.models.files import is_of_frozen, load_reduction
    from scan_core.weights.published import PUBLISHED

    model = artifacts.require(artifacts.MODELS / "selflabel.safetensors")
    if not is_of_frozen(model):
        return []
    files = {name: weights_file(name, Path.cwd()) for name in PUBLISHED}
    known = {hashlib.sha256(file.read_bytes()).hexdigest(): name for name, file in files.items() if file.exists()}
    return [known.get(space.sha256, "") for space in load_reduction(model)[1]]


def _embeddings(count: int) -> np.ndarray:
    """(M,D) float32: the embeddings of the bank's images, the first ``count`` of train that are no copies."""
    train = artifacts.load_array(artifacts.EMBEDDINGS / "train.npy", "float32", (None, None), mmap=True)
    found: np.ndarray = train[np.unique(artifacts.load_first("train", len(train)))[:count]]
    return found
