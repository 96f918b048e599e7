"""What torchrun starts twice for ``test_processes``: every loop, and what each process has in the end, in a file."""

import sys
from pathlib import Path

import torch
from torch import nn

from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.compute.device import make_fabric, seed_everything
from scan_core.compute.distributed import local_generator, local_shard, rank
from scan_core.models.inference import forward_all
from scan_core.models.networks import build_backbone
from scan_core.pretext.methods import start_pretext, train_pretext
from scan_core.pretext.moco import encode_keys
from tests import tiny

FEW = torch.arange(16)  # one batch


def without_norm(module):
    """BatchNorm, whose statistics are those of a process, taken out: what is left does not depend on their number."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_norm(child)


def loop(name, fabric, plain, epochs):
    """A state and its loop: one step of all ``FEW`` images as they are without BatchNorm, or a training like others."""
    rows, images = FEW if plain else tiny.TRAIN, tiny.images()
    simclr = tiny.NO_AUGMENTATION if plain else tiny.simclr_augmentation()
    common = {"epochs": epochs, "batch_size": len(FEW), "optimizer": tiny.optimizer(name="sgd", lr=0.05)}
    if name in tiny.PRETEXTS:
        settings = tiny.pretext_settings(method=name, augmentation=simclr, **common)
        state = start_pretext(settings, tiny.BACKBONE, 3, len(rows), 0, fabric)
        progress = train_pretext(state, images, rows, settings, fabric)
    elif name.startswith("selflabel"):
        settings = tiny.selflabel_settings(**{**tiny.WAYS[name], "augmentation": simclr, "threshold": 0.35, **common})
        state = start_selflabel(settings, tiny.cluster_model(), 0, fabric)
        progress = train_selflabel(state, images, rows, tiny.VAL[:-1], settings, fabric)
    else:
        augmentation = {"augmentation": tiny.PLAIN if plain else tiny.strong_augmentation()}
        settings = tiny.cluster_settings(**{**augmentation, **tiny.WAYS[name], **common})
        state = start_scan(settings, tiny.cluster_model(), 0, fabric)
        near = tiny.neighbors(len(rows), 3)
        progress = train_scan(state, images, rows, near, tiny.VAL[:-1], tiny.neighbors(15, 2), settings, fabric)
    if plain:
        without_norm(state.module)
        for name in ("momentum_encoder", "target", "ema"):
            if getattr(state, name, None):
                without_norm(getattr(state, name))
    return state, progress


def trained(name, fabric, plain):
    """The state of a loop run to its end."""
    state, progress = loop(name, fabric, plain, epochs=1 if plain else 2)
    list(progress)
    return state.state_dict()


def resumed(name, fabric):
    """The same where a second process takes over after the first epoch."""
    state, progress = loop(name, fabric, plain=False, epochs=2)
    while not state.epoch:
        next(progress)
    saved = tiny.through_a_file(state)
    state, progress = loop(name, fabric, plain=False, epochs=2)
    state.load_state_dict(saved)
    list(progress)
    return state.state_dict()


def keys(fabric, groups):
    """MoCo's keys of sixteen images through a network with BatchNorm."""
    generator = seed_everything(0)
    backbone = build_backbone(tiny.BACKBONE, 3)
    model = nn.Sequential(nn.Identity(), backbone)
    batch = torch.rand(16, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return encode_keys(lambda part: (None, model(part)), local_shard(batch), groups, generator)


def draws():
    """What this process draws for itself, and the generator that all share, afterwards."""
    generator = seed_everything(0)
    return {"own": torch.rand(4, generator=local_generator(generator)), "shared": generator.get_state()}


def evaluated(fabric):
    """Outputs of a network whose BatchNorm has seen something else in each process."""
    model = tiny.cluster_model()
    model.backbone.norms[0].running_mean += rank()
    features, outputs = forward_all(model, tiny.images(), tiny.VAL[:-1], fabric)
    return {"features": features, "outputs": outputs, "statistics": model.backbone.norms[0].running_mean}


def everything(fabric):
    """All that is compared."""
    return {
        "draws": draws(),
        "evaluated": evaluated(fabric),
        "plain": {name: trained(name, fabric, plain=True) for name in tiny.LOOPS},
        "usual": {name: trained(name, fabric, plain=False) for name in tiny.LOOPS},
        "resumed": {name: resumed(name, fabric) for name in tiny.LOOPS},
        "keys": {groups: keys(fabric, groups) for groups in (1, 2, 4)},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = everything(make_fabric("fp32", "cpu"))
    torch.save(found, Path(sys.argv[1]) / f"{rank()}.pt")
