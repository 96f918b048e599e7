"""embed: one unit vector per image."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.progress import CountProgress, say
from pipeline.stage import Stage

KEPT = Path(".scan/features")  # of frozen networks; may be deleted at any time
BLOCK = 4_096  # rows at a time

if TYPE_CHECKING:
    from torch import Tensor

    from scan_core.images.store import Images
    from scan_core.models.frozen import FrozenNetwork


def embed(stage: Stage) -> None:
    """Embed train and val with models/pretext.safetensors or frozen networks; write data/embeddings."""
    embed_frozen_spaces(stage) if stage.params.embed.spaces else embed_pretext(stage)


def embed_pretext(stage: Stage) -> None:
    """By the network that pretext has trained."""
    from scan_core.compute.device import configure_compute
    from scan_core.models.files import load_model
    from scan_core.models.inference import embed as embed_rows

    compute = stage.use(configure_compute(stage.params.precision, stage.device))
    images, rows, _ = stage.images(compute)
    model, _ = load_model(artifacts.MODELS / "pretext.safetensors")
    projected = stage.params.embed.features == "projector"
    folder, bank = stage.out(artifacts.EMBEDDINGS), None
    for split, first in save_firsts(folder, rows).items():
        distinct, inverse = np.unique(first, return_inverse=True)
        embedded = embed_rows(model.to(compute.device), images, rows[split][distinct], projected, compute).cpu().numpy()
        every = embedded if len(distinct) == len(first) else embedded[inverse]
        artifacts.save_array(folder / f"{split}.npy", every)
        bank = save_bank_neighbors(folder, split, [every], distinct, bank)


def save_firsts(folder: Path, rows: "dict[str, Tensor]") -> dict[str, np.ndarray]:
    """Writes and returns which image of its split each image is a copy of: all of them share the first one's vector."""
    count = artifacts.load_json(artifacts.IMAGES / "stats.json")["count"]
    firsts = artifacts.load_firsts(count, {split: index.numpy() for split, index in rows.items()})
    for split, first in firsts.items():
        artifacts.save_array(folder / f"{split}_first.npy", first)
    return firsts


def save_bank_neighbors(
    folder: Path, split: str, features: list[np.ndarray], distinct: np.ndarray, bank: np.ndarray | None
) -> np.ndarray:
    """Writes how near each image of ``split`` is to those of the bank, which evaluate needs of the whole features.

    The bank is made, written and returned if there is none yet: of the ``distinct`` images of train, which comes first.
    """
    from scan_core.evaluation.belonging import BANK, bank_of, nearest_in_bank

    if bank is None:
        kept = [space[distinct[:BANK]] for space in features]
        bank = bank_of(kept)
        artifacts.save_array(folder / "bank.npy", bank)
        lengths = np.stack([np.linalg.norm(space, axis=1) for space in kept], axis=1).astype(np.float32)
        artifacts.save_array(folder / "bank_lengths.npy", lengths)
    cosine, nearest = nearest_in_bank(features, bank)
    artifacts.save_array(folder / f"{split}_bank.npy", nearest)
    artifacts.save_array(folder / f"{split}_bank_similarity.npy", cosine)
    return bank


def embed_frozen_spaces(stage: Stage) -> None:
    """By frozen networks, through which each image goes once, whether it is in train or in val or in both."""
    import torch

    from scan_core.compute.device import configure_compute
    from scan_core.models.files import adapted_from, load_preprocessing, save_reduction
    from scan_core.models.frozen import FrozenNetwork
    from scan_core.models.reduction import fit_reduction

    settings, signatures = stage.params.embed, artifacts.load_json(artifacts.SPACES)
    compute = stage.use(configure_compute("fp32", stage.device))
    images, rows, stats = stage.images(compute)
    scratch, folder = stage.scratch({"embed": settings.model_dump(mode="json")}), stage.out(artifacts.EMBEDDINGS)
    firsts = save_firsts(folder, rows)
    seen = {split: rows[split][first] for split, first in firsts.items()}
    every = torch.unique(torch.cat([seen["train"], seen["val"]]))
    features, spaces, kept, adapted = [], [], stage.root / KEPT, artifacts.MODELS / "pretext.safetensors"
    original = adapted_from(adapted)
    digests = artifacts.load_array(artifacts.IMAGES / "digests.npy", "uint8", (stats["count"], artifacts.DIGEST))
    for number, (space, sha256) in enumerate(zip(settings.spaces, signatures["sha256"], strict=True)):
        weights = stage.weights(space.weights)
        if original == (sha256, space.side or load_preprocessing(weights).side):
            weights, sha256 = adapted, hashlib.sha256(adapted.read_bytes()).hexdigest()
        network = FrozenNetwork(weights, compute.device, space.side, space.mirror, stage.root / artifacts.ENGINES)
        described = network.described(sha256)
        seen_as = f"{described.side}{'-mirror' * space.mirror}-{compute.device.type}"
        known = KnownFeatures(kept, f"{sha256[:16]}-{seen_as}", digests)
        features.append(embed_rows(network, images, every, scratch / f"{number}.npy", known))
        known.keep(every.numpy(), scratch / f"{number}.npy")
        spaces.append(described)
        copy = folder / "networks" / f"{sha256[:16]}.safetensors"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, copy)
    of_split = {split: torch.searchsorted(every, each).numpy() for split, each in seen.items()}
    distinct = np.unique(firsts["train"])
    reduction = fit_reduction([space[of_split["train"][distinct]] for space in features], settings.dimensions)
    bank = None
    for split, positions in of_split.items():
        of_images = [space[positions] for space in features]
        artifacts.save_array(folder / f"{split}.npy", reduction(of_images))
        bank = save_bank_neighbors(folder, split, of_images, distinct, bank)
    save_reduction(folder / "reduction.safetensors", reduction, spaces)


def embed_rows(
    network: "FrozenNetwork", images: "Images", rows: "Tensor", file: Path, known: "KnownFeatures"
) -> np.ndarray:
    """(N,D) float32 features of ``rows`` (N,), memory-mapped from ``file``, in which an earlier run may have begun.

    Only images of which no earlier run has the features go through the network.
    """
    from scan_core.data.npy import create_array
    from scan_core.models.frozen import embed_frozen

    places = known.places(rows.numpy())
    there, missing = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
    note, done, plan = file.with_suffix(".done"), 0, hashlib.sha256(missing.tobytes()).hexdigest()
    begun = note.read_text().split() if note.exists() and file.exists() else []
    if begun[1:] == [plan]:
        features: np.ndarray = np.lib.format.open_memmap(file, "r+")
        done = int(begun[0])
        say(f"embed     resuming after {len(rows) - len(missing) + done:,} images")
    elif len(there):
        features = create_array(file, np.float32, (len(rows), known.features.shape[1]))
        for part in np.split(there, range(BLOCK, len(there), BLOCK)):
            features[part] = known.features[places[part]]
        say(f"embed     {len(there):,} of {len(rows):,} images were embedded by an earlier run")
    with CountProgress("embed", len(missing)) as progress:
        for batch in embed_frozen(network, images, rows[missing[done:]]):
            if not done and not len(there):
                features = create_array(file, np.float32, (len(rows), batch.shape[1]))
            features[missing[done : done + len(batch)]] = batch
            done += len(batch)
            artifacts.replace_text(note, f"{done} {plan}")
            progress.update(done, 0)
    return features


class KnownFeatures:
    """The features that a network has given for images of the last run, by the images' digests.

    They are kept beside the results, because to make them takes most of the time of a run. Bytes do not depend on them:
    the features of an image are the same whatever images are looked at with it.
    """

    def __init__(self, folder: Path, name: str, digests: np.ndarray) -> None:
        """``digests`` (N,16) are those of the image store, ``name`` says which network at how many pixels."""
        self.keys, self.file, self.digests = folder / f"{name}.keys.npy", folder / f"{name}.npy", digests
        self.known, self.features = dict[bytes, int](), np.empty((0, 0), np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        self._alone = FileLock(folder / "lock")
        try:
            with self._alone:
                keys = np.load(self.keys, allow_pickle=False)
                features = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # there are none, or they were cut off
            return
        if len(keys) == len(features):
            self.known, self.features = {key.tobytes(): row for row, key in enumerate(keys)}, features

    def places(self, rows: np.ndarray) -> np.ndarray:
        """(N,) int64: where the features of each of ``rows`` (N,) are, or -1."""
        return np.array([self.known.get(digest.tobytes(), -1) for digest in self.digests[rows]], np.int64)

    def keep(self, rows: np.ndarray, file: Path) -> None:
        """Takes over the whole ``file`` of features of ``rows`` (N,)."""
        with self._alone:
            self.keys.unlink(missing_ok=True)  # the keys come last: they are of the features that are there
            file.replace(self.file)
            partial = self.keys.with_suffix(".partial")
            with partial.open("wb") as opened:
                np.save(opened, self.digests[rows])
            partial.replace(self.keys)


app = command("embed", embed)

if __name__ == "__main__":
    run(app)
