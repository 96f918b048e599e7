"""Names that are suggested for groups, by the text tower or the classifier that came with a frozen network."""

import hashlib
import json
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.groups.apply import Grouping
from pipeline.weights import FOLDER, weights_file
from scan_core.errors import ScanError
from scan_core.weights.published import ON_HUB, PUBLISHED

KEPT = Path(".scan/suggestions.json")  # of one model and one state of the corrections


def suggested_names(grouping: Grouping) -> dict[int, str]:
    """Group that is shown → word, for groups without a name. Empty if no network was used that has any.

    A person's names are never suggested again for another group.
    """
    corrections = grouping.groups.model_dump_json(exclude={"names"})
    towers = sorted(path.name for path in FOLDER.glob("*.text.safetensors"))  # one may have come since
    key = hashlib.sha256(json.dumps([corrections, towers]).encode()).hexdigest()
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


@dataclass(frozen=True)
class Network:
    """A frozen network that the model of the last run sees with."""

    name: str = ""  # of scan weights list, if it is known by that
    features: int = 0  # F, if known
    text: Path | None = None  # the file of its text tower


def _suggest(grouping: Grouping) -> dict[int, str]:
    """By the images of the bank: thousands that were drawn at random, whose whole features are stored."""
    from scan_core.evaluation.verdict import NONE, unit_rows
    from scan_core.models.files import load_belonging

    try:
        networks = list(takewhile(lambda each: each.features, _networks()))
        speaking = [each for each in networks if each.text] or [each for each in networks if each.name in PUBLISHED]
        if not speaking:
            return {}
        place = networks.index(speaking[0])
        start = sum(each.features for each in networks[:place])
        fitted, bank, _, lengths = load_belonging(artifacts.require(grouping.at(artifacts.BELONGING)))
        certain, nameless = np.ones((len(bank), 1)), [""] * len(bank)
        groups = grouping.apply(fitted.members[:, None], certain, nameless, _embeddings(len(bank))).group
        verdict = grouping.words(artifacts.load_json(grouping.at(artifacts.VERDICT)))
        features = unit_rows(bank[:, start : start + speaking[0].features].astype(np.float32))
        found = _words(speaking[0], features * lengths[:, place, None], groups)
    except ScanError:  # a result of another program, or a package that is gone: groups are shown all the same
        return {}
    return {group: word for group, word in found.items() if verdict.get(group) != NONE}


def _words(network: Network, features: np.ndarray, groups: np.ndarray) -> dict[int, str]:
    """Group → word, by the text tower of a network if it has one, else by its classifier."""
    from scan_core.weights import words

    if network.text is not None:
        from scan_core.weights.text import load_words

        projection, vectors = (each.numpy() for each in load_words(network.text))
        return words.match_words(features @ projection, groups, vectors, words.vocabulary())
    classifier = words.classifier_of(network.name)
    assert classifier is not None
    return {group: each.word for group, each in words.suggest_words(features, groups, classifier).items()}


def _networks() -> list[Network]:
    """The networks of the model, in the order of their features in the bank."""
    from scan_core.models.files import is_of_frozen, load_reduction
    from scan_core.weights.text import text_towers

    model = artifacts.require(artifacts.MODELS / "selflabel.safetensors")
    if not is_of_frozen(model):
        return []
    known = {image: Network("", features, file) for image, (features, file) in text_towers(FOLDER).items()}
    for name, each in {**PUBLISHED, **ON_HUB}.items():
        path = weights_file(name, Path.cwd())
        if path.exists():
            with path.open("rb") as file:
                known.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), Network(name, each.features))
    return [known.get(space.sha256, Network()) for space in load_reduction(model)[1]]


def _embeddings(count: int) -> np.ndarray:
    """(M,D) float32: the embeddings of the bank's images, the first ``count`` of train that are no copies."""
    train = artifacts.load_array(artifacts.EMBEDDINGS / "train.npy", "float32", (None, None), mmap=True)
    found: np.ndarray = train[np.unique(artifacts.load_first("train", len(train)))[:count]]
    return found
