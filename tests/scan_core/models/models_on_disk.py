"""Finished models in a folder, as a run leaves them, of networks that have learned nothing."""

import numpy as np
import torch

from scan_core.evaluation.belonging import Belonging, bank_of
from scan_core.images.store import ArrayImages
from scan_core.models.files import Preprocessing, save_backbone, save_belonging, save_model, save_reduction
from scan_core.models.frozen import FrozenNetwork, embed_frozen
from scan_core.models.networks import ClusterHeads, Model, Projector, architecture, build_backbone, feature_size
from scan_core.models.predictor import ModelFiles
from scan_core.models.reduction import fit_reduction
from tests.tiny import BACKBONE, CPU, pixels

CLUSTERS, BANK = 3, 40


def stats(size=20, view=None, channels=3):
    mean, std = [0.45, 0.4, 0.5][:channels], [0.25, 0.2, 0.3][:channels]
    return {"size": size, "view": view or size, "channels": channels, "mean": mean, "std": std, "fit": "crop"}


def images_of(about, count=70, seed=0):
    """Images of a store with these stats, and their pixels (count,size,size,channels) uint8."""
    shown = pixels(count, about["channels"], seed, about["size"])
    return ArrayImages(CPU, [shown], about["mean"], about["std"], about["view"]), shown


def weights_of(path, seed=0, settings=BACKBONE, side=16):
    """A frozen network's file. Its BatchNorms are not those of a new network, which change nothing."""
    torch.manual_seed(seed)
    network = build_backbone(settings, 3)
    _unlike_new(network)
    origin = {"network": architecture(settings)}
    save_backbone(path, network.state_dict(), origin, settings, Preprocessing(side, (0.2, 0.4, 0.6), (0.3, 0.2, 0.1)))
    return path


def _unlike_new(network):
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def _head(features):
    """A head by which the images with ``features`` (N,D) are in several clusters."""
    torch.manual_seed(5)
    head = ClusterHeads(features.shape[1], CLUSTERS, 1)
    with torch.no_grad():
        head.linear.weight.div_(features.std(dim=0).clamp(min=1e-3))
        head.linear.bias.copy_(-head.linear.weight @ features.mean(dim=0))
    return head


def _belonging(path, features, projected=False):
    """As ``evaluate`` writes it for images that are in three groups, of which the last is not to be trusted."""
    members = np.arange(BANK) % CLUSTERS
    fitted = Belonging(members, np.array([-1, 0.9, -1], np.float32), np.array([True, True, False]))
    lengths = np.ones((BANK, len(features)), np.float32)
    save_belonging(path, fitted, bank_of([space[:BANK] for space in features]), lengths, projected)


def frozen_model(folder, about, sides=((16, False), (12, True)), settings=BACKBONE):
    """The files of a model of frozen networks, and the parts that it is made of."""
    (folder / "networks").mkdir(parents=True)
    digests = [f"{number}" * 64 for number in range(len(sides))]
    networks = [
        FrozenNetwork(weights_of(folder / "networks" / f"{each[:16]}.safetensors", seed, settings), CPU, *side)
        for seed, (each, side) in enumerate(zip(digests, sides, strict=True))
    ]
    images, _ = images_of(about)
    features = [np.concatenate(list(embed_frozen(each, images, torch.arange(70)))) for each in networks]
    reduction = fit_reduction(features, 6)
    head = _head(torch.from_numpy(reduction(features)))
    described = [each.described(digest) for each, digest in zip(networks, digests, strict=True)]
    save_reduction(folder / "model.safetensors", reduction, described, head)
    _belonging(folder / "belonging.safetensors", features)
    files = ModelFiles(folder / "model.safetensors", folder / "belonging.safetensors", networks=folder / "networks")
    return files, networks, reduction, head


def trained_model(folder, about, projected=False):
    """The files of a model that was trained, and its two networks."""
    folder.mkdir(parents=True, exist_ok=True)
    views = images_of(about)[0].plain_view(torch.arange(70))
    networks = []
    for seed, name in enumerate(("model", "pretext")):
        torch.manual_seed(seed)
        backbone = build_backbone(BACKBONE, about["channels"]).eval()
        _unlike_new(backbone)
        with torch.no_grad():
            head = Projector(feature_size(backbone), 8) if name == "pretext" else _head(backbone(views))
        networks.append(Model(backbone, head).eval())
        save_model(folder / f"{name}.safetensors", networks[-1], BACKBONE, about)
    with torch.no_grad():
        features = networks[1](views)[int(projected)]
    _belonging(folder / "belonging.safetensors", [features.numpy()], projected)
    files = ModelFiles(folder / "model.safetensors", folder / "belonging.safetensors", folder / "pretext.safetensors")
    return files, *networks
