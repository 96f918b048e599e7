"""embed: one unit vector per image."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import artifacts
from pipeline.command import command, run
from pipeline.progress import CountProgress, say
from pipeline.stage import Stage

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
        bank = bank_of([space[distinct[:BANK]] for space in features])
        artifacts.save_array(folder / "bank.npy", bank)
    cosine, nearest = nearest_in_bank(features, bank)
    artifacts.save_array(folder / f"{split}_bank.npy", nearest)
    artifacts.save_array(folder / f"{split}_bank_similarity.npy", cosine)
    return bank


def embed_frozen_spaces(stage: Stage) -> None:
    """By frozen networks, through which each image goes once, whether it is in train or in val or in both."""
    import torch

    from scan_core.compute.device import configure_compute
    from scan_core.models.files import save_reduction
    from scan_core.models.frozen import FrozenNetwork
    from scan_core.models.reduction import fit_reduction

    settings, signatures = stage.params.embed, artifacts.load_json(artifacts.SPACES)
    compute = stage.use(configure_compute("fp32", stage.device))
    images, rows, _ = stage.images(compute)
    scratch, folder = stage.scratch({"embed": settings.model_dump(mode="json")}), stage.out(artifacts.EMBEDDINGS)
    firsts = save_firsts(folder, rows)
    seen = {split: rows[split][first] for split, first in firsts.items()}
    every = torch.unique(torch.cat([seen["train"], seen["val"]]))
    features, spaces = [], []
    for number, (space, sha256) in enumerate(zip(settings.spaces, signatures["sha256"], strict=True)):
        weights = stage.weights(space.weights)
        network = FrozenNetwork(weights, compute.device, space.side, space.mirror)
        features.append(embed_rows(network, images, every, scratch / f"{number}.npy", space.weights))
        spaces.append(network.described(sha256))
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


def embed_rows(network: "FrozenNetwork", images: "Images", rows: "Tensor", file: Path, name: str) -> np.ndarray:
    """(N,D) float32 features of ``rows`` (N,), memory-mapped from ``file``, in which an earlier run may have begun."""
    from scan_core.data.npy import create_array
    from scan_core.models.frozen import embed_frozen

    note, done = file.with_suffix(".done"), 0
    if note.exists():
        features: np.ndarray = np.lib.format.open_memmap(file, "r+")
        done = int(note.read_text())
        say(f"embed     resuming {name} after {done:,} images")
    with CountProgress("embed", len(rows)) as progress:
        for batch in embed_frozen(network, images, rows[done:]):
            if not done:
                features = create_array(file, np.float32, (len(rows), batch.shape[1]))
            features[done : done + len(batch)] = batch
            done += len(batch)
            artifacts.replace_text(note, str(done))
            progress.update(done, 0)
    return features


app = command("embed", embed)

if __name__ == "__main__":
    run(app)
