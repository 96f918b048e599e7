"""The named sets, in torchvision's layout: digits, MNIST, Fashion-MNIST, CIFAR, STL-10 and ImageNet.

Files are checked before they are used, and missing ones are unpacked or downloaded. An interrupted run leaves no
partial file or folder under a real name.
"""

import hashlib
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scan_core.data.download import fetch, gunzip, one_line, provide, wrong_md5
from scan_core.data.settings import Data
from scan_core.data.types import Item, Source, Split
from scan_core.errors import ScanError

OFFICIAL: tuple[tuple[str, Split], ...] = (("train", "train"), ("test", "val"))  # the set's word for a split, and ours
UNLABELED: tuple[str, Split] = ("unlabeled", "extra")
CIFAR_IMAGES = 60_000  # a constant, because CIFAR's files hold labels and pixels together: counting would be reading
STL10_SHAPE = (3, 96, 96)  # channels, columns, rows


def open_named(settings: Data, home: Path) -> Source:
    """The set ``settings.name`` in ``home``: checked, and if necessary unpacked or downloaded, but not read.

    Items hold uint8 pixels, (height,width) or (height,width,3), or for imagenet the path of a file. The set's own
    training images are "train", its test images "val", and images that are not to be clustered "extra". With
    ``settings.extra`` none, extra images are neither needed nor yielded.
    Raises ``ScanError`` if files are missing and cannot be downloaded, if a checksum is wrong, or if classes of
    ``settings.subset`` are missing.
    """
    from scan_core.data.imagenet import open_imagenet

    openers: dict[str, Callable[[Data, Path], Source]] = {
        "digits": _open_digits,
        "mnist": _open_mnist,
        "fashion_mnist": _open_mnist,
        "cifar10": _open_cifar,
        "cifar100": _open_cifar,
        "cifar100_20": _open_cifar,
        "stl10": _open_stl10,
        "imagenet": open_imagenet,
    }
    home = home.absolute()
    try:
        return openers[settings.name](settings, home)
    except OSError as error:  # no permission, a full disk
        raise ScanError(
            f"data.name is {settings.name}; it cannot be used in {home} ({one_line(error)}); "
            "repair that, or use another folder of data sets"
        ) from error


# --- digits


def _open_digits(settings: Data, home: Path) -> Source:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 images, 8x8, 17 gray levels, ten classes."""

    def read() -> Iterator[Item]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797,8,8)
        for row, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            yield Item(f"digits/{row:04d}", image, str(label))

    return Source(read, [str(digit) for digit in range(10)], 1797)


# --- MNIST and Fashion-MNIST


def _open_mnist(settings: Data, home: Path) -> Source:
    from torchvision.datasets import MNIST, FashionMNIST

    name = settings.name
    dataset = {"mnist": MNIST, "fashion_mnist": FashionMNIST}[name]
    classes = [str(digit) for digit in range(10)] if name == "mnist" else list(dataset.classes)
    folder = home / dataset.__name__ / "raw"
    packed = {
        filename: (md5, [mirror + filename for mirror in dataset.mirrors])
        for filename, md5 in dataset.resources
        if not (folder / filename).with_suffix("").exists()
    }
    fetch(name, home, folder, packed)
    for filename in packed:
        gunzip(folder / filename)
    files: list[tuple[str, Split, Path, Path, tuple[int, ...]]] = []
    for (official, split), stem in zip(OFFICIAL, ("train", "t10k"), strict=True):
        images, labels = folder / f"{stem}-images-idx3-ubyte", folder / f"{stem}-labels-idx1-ubyte"
        shape = _idx_shape(images, 3)
        if _idx_shape(labels, 1) != shape[:1]:
            raise ScanError(f"{labels} and {images} differ in their number of images; delete both and run again")
        _check_labels(np.fromfile(labels, np.uint8, offset=8), classes, labels)
        files.append((official, split, images, labels, shape))

    def read() -> Iterator[Item]:
        for official, split, images, labels, shape in files:
            pixels = np.fromfile(images, np.uint8, offset=16).reshape(shape)  # (N,28,28)
            for row, (image, label) in enumerate(zip(pixels, np.fromfile(labels, np.uint8, offset=8), strict=True)):
                yield Item(f"{name}/{official}/{row:05d}", image, classes[label], split)

    return Source(read, classes, sum(shape[0] for *_, shape in files))


def _idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape in the header of an IDX file of bytes. It is the only check, because the file has no checksum."""
    with path.open("rb") as file:
        header = file.read(4 + 4 * dimensions)
    size = path.stat().st_size
    if len(header) == 4 + 4 * dimensions and header[:4] == bytes([0, 0, 8, dimensions]):
        shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
        if size == len(header) + int(np.prod(shape, dtype=np.int64)):
            return shape
    raise ScanError(
        f"{path}: its {size} bytes are not a whole IDX file of {dimensions} dimensions; delete it and run again"
    )


def _check_labels(numbers: np.ndarray, classes: list[str], path: Path) -> None:
    if (wrong := numbers[numbers >= len(classes)]).size:
        raise ScanError(
            f"{path} holds class number {wrong[0]}; there are {len(classes)}, from 0; delete it and run again"
        )


# --- CIFAR


def _open_cifar(settings: Data, home: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    name = settings.name
    dataset, key = {
        "cifar10": (CIFAR10, b"label"),
        "cifar100": (CIFAR100, b"fine_label"),
        "cifar100_20": (CIFAR100, b"coarse_label"),
    }[name]
    meta, meta_md5 = dataset.meta["filename"], dataset.meta["md5"]
    batches = {"train": dict(dataset.train_list), "test": dict(dataset.test_list)}
    folder = provide(dataset, name, home, {**batches["train"], **batches["test"], meta: meta_md5})
    classes = [label.decode() for label in _unpickle(folder / meta, meta_md5)[key + b"_names"]]

    def read() -> Iterator[Item]:
        for official, split in OFFICIAL:
            row = 0
            for filename, md5 in batches[official].items():
                for image, label in _batch(folder / filename, md5, key + b"s"):
                    yield Item(f"{name}/{official}/{row:05d}", image, classes[label], split)
                    row += 1

    return Source(read, classes, CIFAR_IMAGES)


def _batch(path: Path, md5: str, key: bytes) -> Iterator[tuple[np.ndarray, int]]:
    """Images (32,32,3) and class numbers of one file."""
    batch = _unpickle(path, md5)
    pixels = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for image, label in zip(pixels, batch[key], strict=True):
        yield np.ascontiguousarray(image), label


def _unpickle(path: Path, md5: str) -> dict[bytes, Any]:
    """The content of ``path``, with Python 2's strings as bytes.

    Unpickling runs code, so the checksum is taken of the very bytes that are unpickled: the file may have changed
    since it was checked.
    """
    content = path.read_bytes()
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise wrong_md5(path, actual, md5)
    values: dict[bytes, Any] = pickle.loads(content, encoding="bytes")
    return values


# --- STL-10


def _open_stl10(settings: Data, home: Path) -> Source:
    from torchvision.datasets import STL10

    splits = OFFICIAL if settings.extra == "none" else (*OFFICIAL, UNLABELED)
    checksums: dict[str, str | None] = {STL10.class_names_file: None}  # torchvision has no checksum of it
    for filename, md5 in [*STL10.train_list, *STL10.test_list]:
        if settings.extra != "none" or not filename.startswith("unlabeled"):
            checksums[filename] = md5
    folder = provide(STL10, "stl10", home, checksums)
    classes = (folder / STL10.class_names_file).read_text().splitlines()
    numbers: dict[str, np.ndarray] = {}
    total = 0
    for official, _ in splits:
        total += (folder / f"{official}_X.bin").stat().st_size // int(np.prod(STL10_SHAPE))
        if official != "unlabeled":
            path = folder / f"{official}_y.bin"
            numbers[official] = np.fromfile(path, np.uint8) - np.uint8(1)  # the file counts from 1
            _check_labels(numbers[official], classes, path)

    def read() -> Iterator[Item]:
        for official, split in splits:
            images = np.memmap(folder / f"{official}_X.bin", np.uint8, "r").reshape(-1, *STL10_SHAPE)
            labels: Iterable[str | None] = [None] * len(images)
            if official in numbers:
                labels = [classes[number] for number in numbers[official]]
            for row, (image, label) in enumerate(zip(images, labels, strict=True)):
                pixels = np.ascontiguousarray(image.transpose(2, 1, 0))  # (rows,columns,channels)
                yield Item(f"stl10/{official}/{row:05d}", pixels, label, split)

    return Source(read, classes, total)
