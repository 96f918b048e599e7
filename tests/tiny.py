"""The smallest images, settings and networks on which every loop still does all it does."""

import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from scan_core.clustering.scan import start_scan, train_scan
from scan_core.clustering.selflabel import start_selflabel, train_selflabel
from scan_core.clustering.settings import FrozenCluster, ScanCluster, Selflabel
from scan_core.data.settings import Data
from scan_core.errors import ScanError
from scan_core.images.store import ArrayImages, JpegImages
from scan_core.models.files import Preprocessing, save_backbone
from scan_core.models.networks import ClusterHeads, Model, architecture, build_backbone, feature_size
from scan_core.models.settings import Backbone
from scan_core.pretext.methods import METHODS, start_pretext, train_pretext
from scan_core.pretext.settings import Pretext
from scan_core.settings import variants
from scan_core.training.settings import Optimizer
from scan_core.views.settings import NoAugmentation, SimclrAugmentation, StrongAugmentation

SIZE = 8  # pixels
TRAIN, VAL = torch.arange(32), torch.arange(32, 48)


def backbone_settings(**values):
    base = {"name": "convnet", "width": 4, "stem": "small", "model": None, "weights": None}
    return Backbone(**{**base, **values})


BACKBONE = backbone_settings()
CPU = torch.device("cpu")
TINYNET = backbone_settings(name="timm", model="tinynet_e")  # the smallest that is built as an EfficientNet
TINYNET_SIDE = 32


def save_tinynet(path):
    """Writes random weights of ``TINYNET`` as ``scan weights`` would, and returns ``path``."""
    torch.manual_seed(0)
    network = build_backbone(TINYNET, 3)
    for each in network.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.momentum = 1.0
    network.train()(torch.randn(64, 3, TINYNET_SIDE, TINYNET_SIDE))  # else all that it gives is as good as zero
    images = Preprocessing(TINYNET_SIDE, (0.5,) * 3, (0.25,) * 3)
    save_backbone(path, network.state_dict(), {"network": architecture(TINYNET)}, TINYNET, images)
    return path


def change(settings, **values):
    """A validated copy of ``settings`` with some values replaced."""
    return type(settings)(**{**dict(settings), **values})


def data_settings(**values):
    """The digits preset's ``data``."""
    base = {"name": "digits", "path": None, "labels": "folders", "subset": None, "extra": "pretext", "size": 16}
    base |= {"view": None, "fit": "crop", "store": "auto", "shard_rows": 100_000, "duplicates": "keep"}
    base |= {"boxes": None, "mean": None, "std": None}
    base |= {"protocol": "split", "val_fraction": 0.2, "split_seed": 0, "max_rejected": 0.05, "max_pixels": 200_000_000}
    return Data(**{**base, "range": None, "split": "source", "max_unpacked": 200.0, **values})


def optimizer(**values):
    base = {"name": "adam", "lr": 1e-2, "weight_decay": 1e-4, "momentum": 0.9, "schedule": "constant"}
    return Optimizer(**{**base, "warmup_epochs": 0, "final_lr": 0.0, **values})


SGD = optimizer(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)  # plain gradient descent


def simclr_augmentation(**values):
    base = {"crop_size": None, "crop_scale": (0.5, 1.0), "crop_ratio": (0.75, 1.333), "rotate": 15.0, "shear": 10.0}
    base |= {"flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    base |= {"grayscale": 0.2, "blur": 0.0, "blur_sigma": (0.1, 2.0)}
    return SimclrAugmentation(kind="simclr", **{**base, **values})


def strong_augmentation(**values):
    return StrongAugmentation(**{"kind": "strong", "flip": 0.5, "operations": 2, "cutout": 2, **values})


# Crops of the whole image and nothing else: a random view is the plain view.
NO_AUGMENTATION = simclr_augmentation(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), rotate=0.0, shear=0.0, flip=0.0, jitter=0.0, grayscale=0.0
)
PLAIN = NoAugmentation(kind="none")  # the same, by its name: nothing is drawn, and features may be kept


def pretext_settings(**values):
    """Those of the method; values that it does not have are left out."""
    base = {"method": "simclr", "epochs": 2, "batch_size": 8, "temperature": 0.2, "projection": 8, "hidden": None}
    base |= {"projector_norm": False, "encoder_momentum": 0.9, "queue": 24, "key_groups": 2, "negatives": 6}
    base |= {"memory_momentum": 0.5, "proximal": 30.0}
    base |= {"weights": "a", "judge": "b", "side": None, "images": 40, "dimensions": 8, "neighbors": 5}
    base |= {"groups": frozen_settings()}
    base |= {"trusted": 0.5, "threshold": 0.9, "steps": 5, "views": 2}
    base |= {"optimizer": optimizer(), "augmentation": simclr_augmentation(), **values}
    kind = variants(Pretext)[base["method"]]
    return kind(**{key: value for key, value in base.items() if key in kind.model_fields})


def cluster_settings(**values):
    base = {"num_clusters": 3, "heads": 2, "neighbors": 3, "val_neighbors": 2, "entropy_weight": 5.0, "train": "all"}
    base |= {"entropy_of": "anchors", "prior": None}
    base |= {"epochs": 2, "batch_size": 8, "optimizer": optimizer(), "augmentation": strong_augmentation()}
    return ScanCluster(method="scan", **{**base, **values})


def frozen_settings(**values):
    base = {"num_clusters": 3, "heads": 3, "neighbors": 3, "val_neighbors": 2, "entropy_weight": 2.0, "steps": 60}
    base |= {"methods": ("kmeans", "graph", "scan")}
    return FrozenCluster(method="frozen", **{**base, "batch_size": 16, "lr": 1e-2, **values})


def selflabel_settings(**values):
    base = {"threshold": 0.4, "class_weights": True, "ema": 0.0, "train": "all", "epochs": 2, "batch_size": 8}
    return Selflabel(**{**base, "optimizer": optimizer(), "augmentation": strong_augmentation(), **values})


def pixels(count=48, channels=3, seed=0, size=SIZE):
    """(count,size,size,channels) uint8: three kinds of images, each with its own color gradient, and noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, size)
    kinds = np.stack([
        np.broadcast_to(ramp[:, None], (size, size)), np.broadcast_to(ramp[None], (size, size)),
        np.broadcast_to(ramp[::-1, None], (size, size)),
    ])  # fmt: skip
    base = kinds[np.arange(count) % 3][..., None] * np.linspace(1, 0.5, channels)
    return np.clip(base + rng.normal(0, 15, (count, size, size, channels)), 0, 255).astype(np.uint8)


def images(count=48, channels=3, seed=0, size=SIZE):
    return ArrayImages(CPU, [pixels(count, channels, seed, size)], [0.45] * channels, [0.25] * channels)


def pack(folder, images, number=0, quality=90):
    """The path of a file of JPEGs and its table (rows,4) of start, end, height, width, as prepare writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    path, table, end = folder / f"jpeg-{number:05}.bin", [], 0
    with path.open("wb") as file:
        for image in images:
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
            table.append((end, file.tell(), *image.shape[:2]))
            end = file.tell()
    return path, np.array(table, dtype=np.int64)


def jpeg_store(folder, images, side, shards=1):
    """Images of arrays (height,width,channels) uint8 of any shapes, in JPEG files."""
    parts = [images[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(images)), shards)]
    blobs, tables = zip(*[pack(folder, part, number) for number, part in enumerate(parts)], strict=True)
    channels = images[0].shape[2]
    return JpegImages(CPU, list(blobs), list(tables), [0.45] * channels, [0.25] * channels, side)


def neighbors(count, k):
    """(count,k) positions of other images of the same kind as ``pixels`` makes them."""
    rows = torch.arange(count)[:, None] + 3 * torch.arange(1, k + 1)
    return rows % (count - count % 3)


def cluster_model(clusters=3, heads=1, seed=0, channels=3):
    torch.manual_seed(seed)
    backbone = build_backbone(BACKBONE, channels)
    return Model(backbone, ClusterHeads(feature_size(backbone), clusters, heads))


# Every training loop, and the ways in which the loops of clustering differ.
PRETEXTS = tuple(name for name in METHODS if name != "none")
WAYS = {
    "scan": {},
    "scan of a frozen backbone": {"train": "head"},
    "scan of cached features": {"train": "head", "augmentation": PLAIN},
    "selflabel": {},
    "selflabel of a frozen backbone": {"train": "head", "threshold": 0.34},
    "selflabel with an average": {"ema": 0.9},
}
LOOPS = (*PRETEXTS, *WAYS)


def start_loop(name, fabric, seed=0, **values):
    """A new state and the settings of one of ``LOOPS``."""
    if name in METHODS:
        settings = pretext_settings(method=name, **values)
        return start_pretext(settings, BACKBONE, 3, len(TRAIN), seed, fabric), settings
    make, start = (cluster_settings, start_scan) if name.startswith("scan") else (selflabel_settings, start_selflabel)
    settings = make(**{**WAYS[name], **values})
    return start(settings, cluster_model(), seed, fabric), settings


def run_loop(name, state, settings, fabric, rows=TRAIN):
    """The steps and epochs of one of ``LOOPS``, over the tiny images."""
    if name in METHODS:
        return train_pretext(state, images(), rows, settings, fabric)
    if name.startswith("scan"):
        mined = neighbors(len(rows), 5), VAL, neighbors(len(VAL), 4)
        return train_scan(state, images(), rows, *mined, settings, fabric)
    return train_selflabel(state, images(), rows, VAL, settings, fabric)


def through_a_file(state):
    """What a resume reads: the state written by torch.save and read without unpickling code."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def epochs_of(progress):
    """The values of each epoch of a loop, run to its end."""
    return [done.values for done in progress if hasattr(done, "values")]


# Of tensors, numbers, and dicts and lists of them.
assert_equal = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


def assert_descended(network, before, rate=0.1):
    """Parameters have gone down ``before``'s gradients, if those are there, and buffers are ``before``'s."""
    wanted = {
        name: value if value.grad is None else value.detach() - rate * value.grad
        for name, value in before.named_parameters()
    }
    torch.testing.assert_close(network.state_dict(), {**before.state_dict(), **wanted})


def spied(monkeypatch, module, name):
    """The arguments of each call of a module's function from now on, as they were, and what each has returned."""
    given, made, original = [], [], getattr(module, name)

    def spy(*arguments, **named):
        given.append([each.clone() if isinstance(each, torch.Tensor) else each for each in arguments])
        made.append(original(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(module, name, spy)
    return given, made


def assert_same_state(first, second):
    """Two training states are equal to the bit, whatever they hold."""
    _assert_same(first.state_dict(), second.state_dict(), "state")


def assert_same_tensors(first, second):
    """Two mappings of names to tensors are equal to the bit."""
    _assert_same(dict(first), dict(second), "tensors")


def _assert_same(first, second, where):
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            _assert_same(one, other, f"{where}[{number}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def refused(call, *parts):
    """``call`` raises one line that holds each of ``parts``."""
    with pytest.raises(ScanError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert str(part) in str(error.value)


class Reads(TorchDispatchMode):
    """The operations by which a host waits for its device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        waits = func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2)
        mask = func.overloadpacket in (aten.index, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if waits or mask:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def as_on_a_gpu(monkeypatch, pays):
    """Networks are compiled as on a GPU, whole and with its kernels left out, for ``pays`` steps; what has been."""
    made, compiler = [], torch.compile
    torch.compiler.reset()

    def compile_whole(module, dynamic):
        made.append(module)
        return compiler(module, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    monkeypatch.setattr("scan_core.training.step.pays_to_compile", lambda fabric, steps: steps >= pays)
    monkeypatch.setattr(torch, "compile", compile_whole)
    return made
