"""Named sets, written here as tiny files in their true formats: what is read from them, and what is refused."""

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from http.client import IncompleteRead
from operator import attrgetter
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets import imagenet

from scan_core.data import download as fetch
from scan_core.data import named_sets as named
from scan_core.data.named_sets import open_named
from scan_core.data.signature import signature
from scan_core.data.types import Finding, printable
from tests.project import ROOT
from tests.scan_core.data.little_files import Trap, put, settings, tar_bytes, write
from tests.tiny import refused

# Python 3.14 does so by itself, early versions of 3.11 do not know it.
FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
STL10_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_FINE = [f"fine {number}" for number in range(100)]
CIFAR100_COARSE = [f"coarse {number}" for number in range(20)]
DATASETS = {
    "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100, "cifar100_20": datasets.CIFAR100, "stl10": datasets.STL10,
}  # fmt: skip
FAMILIES = list(DATASETS)  # what can be downloaded


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The whole network: what is at its addresses, at first nothing, and which addresses were asked for."""
    return Network(monkeypatch)


class Network:
    def __init__(self, monkeypatch):
        self.content, self.failure, self.asked, self.timeouts = {}, URLError("no\nnetwork"), [], set()
        monkeypatch.setattr("urllib.request.urlopen", self.urlopen)

    def urlopen(self, request, *_, **__):
        self.asked.append(request.full_url)
        self.timeouts.add(socket.getdefaulttimeout())
        if request.full_url not in self.content:
            raise self.failure
        return Response(request.full_url, self.content[request.full_url])


class Response(io.BytesIO):
    def __init__(self, url, content):
        super().__init__(content)
        self.url, self.length = url, len(content)


def open_(name, home, **values):
    return open_named(settings(name, **values), home)


def random_images(count, *shape, seed=0):
    """No row, column, channel or image is like another."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_gz(files):
    """A .tar.gz of ``files`` by name, after an entry for their folder."""
    folder = tarfile.TarInfo(next(iter(files)).split("/")[0])
    folder.type = tarfile.DIRTYPE
    return tar_bytes([(folder, None), *files.items()], "gz")


def damaged(content, half):
    return content[: len(content) // 2] if half else content[:-1] + bytes([content[-1] ^ 1])


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- the sets, in their true formats. Each writer returns the files that can be downloaded: path in home -> content


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


MNIST_LABELS = [3, 0, 9, 3], [1, 7, 2]


def mnist_files(monkeypatch, name):
    dataset, raw = DATASETS[name], {}
    for number, (part, labels) in enumerate(zip(("train", "t10k"), MNIST_LABELS, strict=True)):
        raw[f"{part}-images-idx3-ubyte.gz"] = idx(random_images(len(labels), 28, 28, seed=number))
        raw[f"{part}-labels-idx1-ubyte.gz"] = idx(np.array(labels, np.uint8))
    packed = {filename: gzip.compress(content, mtime=0) for filename, content in raw.items()}
    monkeypatch.setattr(dataset, "resources", [(filename, md5(content)) for filename, content in packed.items()])
    return {f"{dataset.__name__}/raw/{filename}": content for filename, content in packed.items()}


def python2_pickle(value):
    """``value`` as Python 2 pickled it, as CIFAR's authors did: protocol 2, its str as byte strings."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value):
    if isinstance(value, bytes):
        return b"T" + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(each) for key, each in value.items()) + b"u"
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _python2(0) + b"\x85" + _python2(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + _python2(b"u1") + _python2(0) + _python2(1) + b"\x87R("
    dtype += _python2(3) + _python2(b"|") + b"NNN" + _python2(-1) + _python2(-1) + _python2(0) + b"tb"
    shape = b"".join(map(_python2, value.shape)) + b"\x86"
    return empty + b"(" + _python2(1) + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


def cifar_rows(images):
    """(N,3072): the red plane row by row, then the green, then the blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


CIFAR10_LABELS = [6, 9, 4, 1, 2, 7, 8, 3, 5, 6], [3, 0, 8]  # the first in five batches of two
CIFAR100_LABELS = {"train": ([49, 0, 99, 33], [19, 11, 3, 7]), "test": ([68, 56, 33], [9, 17, 7])}  # fine, coarse


def cifar_images(name):
    counts = (10, 3) if name == "cifar10" else (4, 3)
    return [random_images(count, 32, 32, 3, seed=number) for number, count in enumerate(counts)]


def cifar_files(monkeypatch, name):
    dataset, (train, test) = DATASETS[name], cifar_images(name)
    if name == "cifar10":
        batches = {
            f"data_batch_{n // 2 + 1}": (train[n : n + 2], CIFAR10_LABELS[0][n : n + 2]) for n in range(0, 10, 2)
        }
        batches["test_batch"] = test, CIFAR10_LABELS[1]
        batches = {file: (images, {b"labels": labels}) for file, (images, labels) in batches.items()}
        meta = {b"num_cases_per_batch": 10000, b"label_names": [label.encode() for label in CIFAR10_NAMES]}
    else:
        keys, images = (b"fine_labels", b"coarse_labels"), {"train": train, "test": test}
        batches = {file: (images[file], dict(zip(keys, CIFAR100_LABELS[file], strict=True))) for file in images}
        fine, coarse = ([label.encode() for label in names] for names in (CIFAR100_FINE, CIFAR100_COARSE))
        meta = {b"fine_label_names": fine, b"coarse_label_names": coarse}
    files = {
        file: python2_pickle({b"batch_label": b"a", **labels, b"data": cifar_rows(images)})
        for file, (images, labels) in batches.items()
    }
    files[dataset.meta["filename"]] = python2_pickle(meta)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(files[dataset.meta["filename"]])})
    return packed_set(monkeypatch, dataset, files)


def packed_set(monkeypatch, dataset, files):
    """The archive of ``files``, and torchvision's checksums set to theirs."""
    for attribute in ("train_list", "test_list"):
        checksums = [[filename, md5(files[filename])] for filename, _ in getattr(dataset, attribute)]
        monkeypatch.setattr(dataset, attribute, checksums)
    archive = tar_gz({f"{dataset.base_folder}/{filename}": content for filename, content in files.items()})
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    return {dataset.filename: archive}


STL10_LABELS = [9, 0, 3, 9], [1, 6, 0]


def stl10_images():
    return [random_images(count, 96, 96, 3, seed=count) for count in (4, 3, 2)]  # train, test, unlabeled


def stl10_files(monkeypatch):
    files = {"class_names.txt": "".join(f"{label}\n" for label in STL10_NAMES).encode(), "fold_indices.txt": b"0 1 \n"}
    for split, images in zip(("train", "test", "unlabeled"), stl10_images(), strict=True):
        files[f"{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()  # channel by channel, column by column
    for split, labels in zip(("train", "test"), STL10_LABELS, strict=True):
        files[f"{split}_y.bin"] = bytes(label + 1 for label in labels)
    return packed_set(monkeypatch, datasets.STL10, files)


def set_files(monkeypatch, name):
    if name == "stl10":
        return stl10_files(monkeypatch)
    return (mnist_files if "mnist" in name else cifar_files)(monkeypatch, name)


def unpack(home, files):
    """What torchvision leaves, without the archives."""
    for path, content in files.items():
        if path.endswith(".tar.gz"):
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(home, **FILTER)
        else:
            put(home, {path.removesuffix(".gz"): gzip.decompress(content)})
    return home


def addresses(name, files):
    """Where torchvision looks for each file. Of MNIST's two mirrors only the second answers."""
    if "mnist" not in name:
        return {DATASETS[name].url: files[DATASETS[name].filename]}
    return {DATASETS[name].mirrors[-1] + path.rsplit("/")[-1]: content for path, content in files.items()}


def expected_of(name):
    """The set's classes, and its images and class numbers of train and test."""
    if "mnist" in name:
        classes = [str(digit) for digit in range(10)] if name == "mnist" else datasets.FashionMNIST.classes
        return classes, [random_images(4, 28, 28), random_images(3, 28, 28, seed=1)], MNIST_LABELS
    if name == "stl10":
        return STL10_NAMES, stl10_images()[:2], STL10_LABELS
    if name == "cifar10":
        return CIFAR10_NAMES, cifar_images(name), CIFAR10_LABELS
    coarse = name == "cifar100_20"
    numbers = [CIFAR100_LABELS[split][coarse] for split in ("train", "test")]
    return CIFAR100_COARSE if coarse else CIFAR100_FINE, cifar_images(name), numbers


def assert_set(source, name, unlabeled=True):
    """The set is yielded exactly, and at a second reading again."""
    classes, images, numbers = expected_of(name)
    expected = [
        (f"{name}/{official}/{row:05d}", split, classes[number], image)
        for official, split, part, labels in zip(("train", "test"), ("train", "val"), images, numbers, strict=True)
        for row, (image, number) in enumerate(zip(part, labels, strict=True))
    ]
    if name == "stl10" and unlabeled:
        expected += [(f"stl10/unlabeled/{n:05d}", "extra", None, image) for n, image in enumerate(stl10_images()[2])]
    for items in (list(source.read()), list(source.read())):
        assert [(item.name, item.split, item.label) for item in items] == [row[:3] for row in expected]
        for item, row in zip(items, expected, strict=True):
            assert type(item.data) is np.ndarray and item.data.dtype == np.uint8
            assert np.array_equal(item.data, row[3]), item.name
    assert source.classes == classes
    # CIFAR's count is a constant: its true files hold 60,000, whatever these do.
    assert source.total == (60_000 if "cifar" in name else len(expected))


def test_digits_are_1797_gray_images_of_ten_classes(tmp_path):
    source, digits = open_("digits", tmp_path), load_digits()
    items = list(source.read())
    assert [(item.name, item.label, item.split) for item in items] == [
        (f"digits/{row:04d}", str(label), None) for row, label in enumerate(digits.target)
    ]
    assert (source.classes, source.total, len(items)) == ([str(digit) for digit in range(10)], 1797, 1797)
    pixels = np.stack([item.data for item in items])
    assert pixels.dtype == np.uint8 and pixels.max() == 255
    assert np.array_equal(pixels, np.round(digits.images / 16 * 255))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_digits_need_no_torchvision():
    code = (
        "import sys; from pathlib import Path; from scan_core.data.named_sets import open_named; "
        "from pipeline.presets import read_preset; data = read_preset(Path('presets/digits.yaml')).data; "
        "list(open_named(data, Path('.')).read()); assert not any(name[:5] == 'torch' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("way", ["unpacked", "archive", "download"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_set_is_read_exactly(tmp_path, monkeypatch, network, name, way):
    files = set_files(monkeypatch, name)
    if way == "download":
        network.content = addresses(name, files)
    else:
        {"unpacked": unpack, "archive": put}[way](tmp_path, files)
    assert_set(open_(name, tmp_path), name)
    assert (network.asked == []) == (way != "download")
    assert not list(tmp_path.rglob(".*"))  # no scratch folder
    network.content.clear()
    assert_set(open_(name, tmp_path), name)  # what the first call left


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_reads_the_same_from_what_is_left(tmp_path, monkeypatch, name):
    put(tmp_path, set_files(monkeypatch, name))
    items = [item for item in open_(name, tmp_path).read() if item.split != "extra"]
    splits = ({"split": "train"}, {"split": "test"}) if name == "stl10" else ({"train": True}, {"train": False})
    theirs = [pair for split in splits for pair in DATASETS[name](tmp_path, **split)]
    for item, (image, _) in zip(items, theirs, strict=True):
        assert np.array_equal(item.data, np.asarray(image))


def test_stl10_without_extra_needs_unpacks_and_yields_no_unlabeled_images(tmp_path, monkeypatch):
    put(tmp_path, stl10_files(monkeypatch))
    assert_set(open_("stl10", tmp_path, extra="none"), "stl10", unlabeled=False)
    assert not (tmp_path / "stl10_binary" / "unlabeled_X.bin").exists()
    assert_set(open_("stl10", tmp_path, extra="train"), "stl10")


@pytest.mark.parametrize("name", FAMILIES)
def test_opening_reads_no_pixels(tmp_path, monkeypatch, name):
    unpack(tmp_path, set_files(monkeypatch, name))
    pixels = {"data_batch_1", "test_batch", "train", "test", "train_X.bin", "train-images-idx3-ubyte"}
    for module, function in ((np, "fromfile"), (np, "memmap"), (named, "_unpickle")):
        original = getattr(module, function)

        def checked(path, *args, _original=original, **kwargs):
            assert Path(path).name not in pixels
            return _original(path, *args, **kwargs)

        monkeypatch.setattr(module, function, checked)
    source = open_(name, tmp_path)
    with pytest.raises(AssertionError):
        list(source.read())


# --- downloads


FAILURES = URLError("no\nnetwork"), TimeoutError("timed out"), OSError("reset"), IncompleteRead(b"x")


@pytest.mark.parametrize(("name", "failure"), [
    *((name, FAILURES[0]) for name in FAMILIES), *(("cifar10", failure) for failure in FAILURES[1:]),
])  # fmt: skip
def test_missing_files_are_named_with_where_they_belong(tmp_path, monkeypatch, network, name, failure):
    files, network.failure = set_files(monkeypatch, name), failure
    folder = (tmp_path / next(iter(files))).parent
    filenames = ", ".join(path.rsplit("/")[-1] for path in files)
    said = f"data.name is {name}; {folder} lacks {filenames} and the download failed", f"than {tmp_path}"
    refused(lambda: open_(name, tmp_path), *said, *(["no network"] if failure is FAILURES[0] else []))
    assert not files_in(tmp_path) and not list(tmp_path.rglob(".*"))
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_(name, Path("sets")), f"than {tmp_path / 'sets'}")  # a relative home is named in full


def test_only_missing_files_of_mnist_are_asked_for(tmp_path, monkeypatch):
    files = mnist_files(monkeypatch, "mnist")
    del files["MNIST/raw/t10k-labels-idx1-ubyte.gz"]
    refused(lambda: open_("mnist", put(tmp_path, files)), "raw lacks t10k-labels-idx1-ubyte.gz and the download failed")


@pytest.mark.parametrize("name", FAMILIES)
def test_half_a_download_is_not_left_behind(tmp_path, monkeypatch, network, name):
    files = set_files(monkeypatch, name)
    network.content = {url: content[: len(content) // 2] for url, content in addresses(name, files).items()}
    refused(lambda: open_(name, tmp_path), "the download failed", tmp_path)
    assert not files_in(tmp_path)
    network.content = addresses(name, files)
    assert_set(open_(name, tmp_path), name)


def test_a_download_that_is_interrupted_leaves_no_file(tmp_path, monkeypatch, network):
    network.content = addresses("cifar10", cifar_files(monkeypatch, "cifar10"))
    monkeypatch.setattr(Response, "read", mock.Mock(side_effect=[bytes(1000), KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):
        open_("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_waits_no_longer_than_the_timeout(tmp_path, monkeypatch, network):
    network.content = addresses("cifar10", cifar_files(monkeypatch, "cifar10"))
    socket.setdefaulttimeout(7)
    try:
        open_("cifar10", tmp_path)
        assert (network.timeouts, socket.getdefaulttimeout()) == ({fetch.TIMEOUT}, 7)
    finally:
        socket.setdefaulttimeout(None)


# --- what is damaged


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_archive_with_a_wrong_checksum_is_refused_and_kept(tmp_path, monkeypatch, network, name, half):
    files = set_files(monkeypatch, name)
    network.content = addresses(name, files)
    path, content = next(iter(files.items()))
    broken = damaged(content, half)
    put(tmp_path, {**files, path: broken})
    said = f"{tmp_path / path}: its MD5 checksum is {md5(broken)}, not {md5(content)}; delete it and download it again"
    refused(lambda: open_(name, tmp_path), said)
    assert files_in(tmp_path) == set(files) and (tmp_path / path).read_bytes() == broken
    assert network.asked == []
    (tmp_path / path).unlink()
    assert_set(open_(name, tmp_path), name)  # following the advice helps


@pytest.mark.parametrize(("name", "path"), [
    *(("cifar10", f"cifar-10-batches-py/{part}") for part in ("data_batch_1", "data_batch_5", "test_batch")),
    ("cifar10", "cifar-10-batches-py/batches.meta"),
    *(("cifar100", f"cifar-100-python/{part}") for part in ("train", "test", "meta")),
    ("cifar100_20", "cifar-100-python/meta"),
    *(("stl10", f"stl10_binary/{part}_X.bin") for part in ("train", "test", "unlabeled")),
    *(("stl10", f"stl10_binary/{part}_y.bin") for part in ("train", "test")),
])  # fmt: skip
def test_an_unpacked_file_with_a_wrong_checksum_is_refused(tmp_path, monkeypatch, network, name, path):
    files = set_files(monkeypatch, name)
    put(unpack(tmp_path, files), files)  # the archive is there, too
    content = (tmp_path / path).read_bytes()
    broken = damaged(content, half=False)
    (tmp_path / path).write_bytes(broken)
    said = f"{tmp_path / path}: its MD5 checksum is {md5(broken)}, not {md5(content)}; delete it and download it again"
    refused(lambda: open_(name, tmp_path), said)
    (tmp_path / path).unlink()
    assert_set(open_(name, tmp_path), name)
    assert network.asked == []


@pytest.mark.parametrize(("filename", "break_it", "said"), [
    *((name, lambda content, cut=cut: content[:cut], "not a whole IDX file")
      for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte") for cut in (0, 3, 10, -1)),
    ("train-labels-idx1-ubyte", lambda _: idx(np.array([1, 7, 2], np.uint8)), "differ in their number of images"),
    ("train-labels-idx1-ubyte", lambda _: idx(np.array([3, 0, 10, 3], np.uint8)), "holds class number 10"),
])  # fmt: skip
def test_a_damaged_idx_file_is_refused(tmp_path, monkeypatch, filename, break_it, said):
    path = unpack(tmp_path, mnist_files(monkeypatch, "mnist")) / "MNIST" / "raw" / filename
    path.write_bytes(break_it(path.read_bytes()))
    refused(lambda: open_("mnist", tmp_path), path, said, "delete")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10"])
def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path, monkeypatch, name):
    files = set_files(monkeypatch, name)
    monkeypatch.setattr(fetch, "check_md5", mock.Mock())
    path, content = next(iter(files.items()))
    put(tmp_path, {**files, path: damaged(content, half=True)})
    refused(lambda: open_(name, tmp_path), tmp_path / path, "cannot be unpacked")
    assert files_in(tmp_path) == set(files)  # what is missing must not look whole


def test_only_the_files_of_the_set_leave_an_archive_and_all_must_be_in_it(tmp_path, monkeypatch):
    home = tmp_path / "home"
    ((path, content),) = cifar_files(monkeypatch, "cifar10").items()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    more = tar_gz({**members, "../escaped": b"x", "cifar-10-batches-py/more": b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(more))
    assert_set(open_("cifar10", put(home, {path: more})), "cifar10")
    assert not (tmp_path / "escaped").exists() and not (home / "cifar-10-batches-py" / "more").exists()
    shutil.rmtree(home / "cifar-10-batches-py")
    less = tar_gz({"cifar-10-batches-py/other": b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(less))
    refused(lambda: open_("cifar10", put(home, {path: less})), path, "lacks cifar-10-batches-py/batches.meta")


@pytest.mark.parametrize("filename", ["batches.meta", "data_batch_1", "test_batch"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_pickle_is_loaded_before_its_checksum_is_right(tmp_path, monkeypatch, filename, packed):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    home = unpack(tmp_path / "home", cifar_files(monkeypatch, "cifar10"))
    folder = home / "cifar-10-batches-py"
    (folder / filename).write_bytes(trap)
    if packed:
        archive = tar_gz({f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())})
        shutil.rmtree(folder)
        put(home, {datasets.CIFAR10.filename: archive})
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    refused(lambda: open_("cifar10", home), "checksum")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_pickle_that_was_changed_after_opening_is_not_loaded(tmp_path, monkeypatch):
    source = open_("cifar10", unpack(tmp_path, cifar_files(monkeypatch, "cifar10")))
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(lambda: list(source.read()), "data_batch_2: its MD5 checksum")
    assert not (tmp_path / "sprung").exists()


def test_a_home_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    path = unpack(tmp_path, mnist_files(monkeypatch, "mnist")) / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    refused(lambda: open_("mnist", tmp_path), "data.name is mnist;", tmp_path)


# --- imagenet


WNIDS = ["n01440764", "n01443537", "n02119789"]


def tree(home, *paths):
    write(home / "imagenet", *paths)
    return home


def listing(source):
    """Items as (name, label, split), findings as (name, kind)."""
    return [
        (thing.name, thing.kind) if isinstance(thing, Finding) else (thing.name, thing.label, thing.split)
        for thing in source.read()
    ]


def test_imagenet_is_read_sorted_by_bytes(tmp_path, monkeypatch):
    listed = {
        "train/n01440764/B.png": "n01440764", "train/n01440764/b.jpg": "n01440764", "train/n01440764/notes.txt": None,
        "train/n01440764/old/a.JPEG": None, "train/n01440764/ä.jpeg": "n01440764",
        "train/n02119789/n02119789_10.JPEG": "n02119789", "train/n02119789/n02119789_9.JPEG": "n02119789",
        "train/readme": None, "train/stray.JPEG": None, "train/thumbnails/a.JPEG": None,
        "val/n01440764/0.JPEG": "n01440764", "val/n02119789/1.JPEG": "n02119789",
    }  # fmt: skip
    expected = [
        (f"imagenet/{path}", label, path.split("/")[0]) if label
        else (f"imagenet/{path}".removesuffix("/a.JPEG"), "ignored")
        for path, label in listed.items()
    ]  # fmt: skip
    source = open_("imagenet", tree(tmp_path, *reversed(listed), "meta.bin"))
    assert listing(source) == expected
    assert (source.classes, source.total) == (["n01440764", "n02119789"], 7)
    items = [thing for thing in source.read() if not isinstance(thing, Finding)]
    assert [item.data for item in items] == [str(tmp_path / item.name) for item in items]
    scandir, name_of = os.scandir, attrgetter("name")
    monkeypatch.setattr(os, "scandir", lambda path: nullcontext(sorted(scandir(path), key=name_of, reverse=True)))
    assert listing(open_("imagenet", tmp_path)) == expected  # whatever the file system's order


def test_imagenets_folders_may_be_links_and_a_dangling_link_is_still_an_image(tmp_path):
    there = tree(tmp_path, "train/n01440764/1.JPEG", "val/n01440764/2.JPEG") / "imagenet"
    home = tmp_path / "home" / "imagenet"
    (home / "val").mkdir(parents=True)
    links = {"train": there / "train", "val/n01440764": there / "val/n01440764", "train/n01440764/0.JPEG": "nothing"}
    for name, target in links.items():
        (home / name).symlink_to(target)
    names = ["train/n01440764/0.JPEG", "train/n01440764/1.JPEG", "val/n01440764/2.JPEG"]
    expected = [(f"imagenet/{name}", "n01440764", name.split("/")[0]) for name in names]
    assert listing(open_("imagenet", tmp_path / "home")) == expected


def test_names_that_are_not_utf8_are_read(tmp_path):
    name = os.fsdecode(b"\xe4.JPEG")
    tree(tmp_path, "train/n01440764/a.JPEG", f"train/n01440764/{name}", "val/n01440764/a.JPEG")
    item = list(open_("imagenet", tmp_path).read())[1]
    assert item.name == f"imagenet/train/n01440764/{printable(name)}" and item.name.isprintable()
    assert Path(item.data).read_bytes() == b"train/n01440764/\xe4.JPEG"


def test_a_flat_val_folder_has_no_labels(tmp_path):
    names = ["val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG"]
    source = open_("imagenet", tree(tmp_path, "train/n01440764/1.JPEG", *names, "val/notes.txt"))
    expected = [*((f"imagenet/{name}", None, "val") for name in names), ("imagenet/val/notes.txt", "ignored")]
    assert listing(source)[1:] == expected
    assert (source.classes, source.total) == (["n01440764"], 3)
    refused(lambda: open_("imagenet", tmp_path, subset=50), "data.subset is 50", "val has no class folders")


def paper_subset(classes):
    return (Path(named.__file__).parent / "imagenet_subsets" / f"{classes}.txt").read_text().split()


@pytest.mark.parametrize(("classes", "first"), [(50, "n01601694"), (100, "n01558993"), (200, "n01443537")])
def test_subsets_are_the_papers(classes, first):
    wnids = paper_subset(classes)
    assert len(set(wnids)) == len(wnids) == classes
    assert wnids == sorted(wnids) and wnids[0] == first
    assert set(wnids) <= set(paper_subset(200))


@pytest.mark.parametrize("extra", ["pretext", "train", "none"])
@pytest.mark.parametrize("classes", [50, 100, 200])
def test_a_subset_is_clustered_and_the_rest_is_extra_without_labels(tmp_path, classes, extra):
    subset = paper_subset(classes)
    others = ["n01440764", "n15075141"]  # tench and toilet paper sort before and after
    assert not set(others) & set(subset)
    tree(tmp_path, *(f"{split}/{wnid}/{wnid}.JPEG" for split in ("train", "val") for wnid in [*subset, *others]))
    source = open_("imagenet", tmp_path, subset=classes, extra=extra)
    train = [(wnid, wnid, "train") for wnid in subset]
    if extra != "none":
        train = [(others[0], None, "extra"), *train, (others[1], None, "extra")]
    expected = [(f"imagenet/train/{wnid}/{wnid}.JPEG", label, split) for wnid, label, split in train]
    expected += [(f"imagenet/val/{wnid}/{wnid}.JPEG", wnid, "val") for wnid in subset]
    assert listing(source) == expected
    assert (source.classes, source.total) == (subset, len(expected))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_class_of_the_subset_and_an_empty_split_are_named(tmp_path, split):
    tree(tmp_path, *(f"{part}/{wnid}/1.JPEG" for part in ("train", "val") for wnid in paper_subset(50)))
    folder, missing = tmp_path / "imagenet" / split, paper_subset(50)[7]
    shutil.rmtree(folder / missing)
    open_("imagenet", tmp_path)  # without a subset nothing is missing
    refused(lambda: open_("imagenet", tmp_path, subset=50), "data.subset is 50", f"{folder} lacks {missing};")
    for image in folder.glob("*/*"):
        image.unlink()
    refused(lambda: open_("imagenet", tmp_path), f"{folder} has no images")


# --- imagenet's original archives


def image(number):
    return random_images(1, 9, seed=number).tobytes()  # the content of a file, which is not decoded here


def imagenet_archives(monkeypatch):
    """The three archives, of three classes whose ILSVRC numbers are in another order than their wnids."""
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    synsets = np.zeros((4, 1), dtype=[(field, object) for field in fields.split()])
    # Numbers 1 to 4. The last has children, so it is not a class.
    for number, wnid in enumerate([WNIDS[2], WNIDS[0], WNIDS[1], "n00001740"]):
        children = 3 if number == 3 else 0
        values = (number + 1, wnid, f"{wnid}, a word", "gloss", children, np.zeros((1, children)), 0, 1300)
        synsets[number, 0] = tuple(value if isinstance(value, str) else np.array(value) for value in values)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    devkit, truth = "ILSVRC2012_devkit_t12/data", "ILSVRC2012_validation_ground_truth.txt"
    numbers = b"2\n1\n3\n2\n"
    classes = {
        wnid: tar_bytes([(f"{wnid}_{number}.JPEG", image(10 * place + number)) for number in (12, 5)])
        for place, wnid in enumerate(WNIDS)
    }
    files = {
        "ILSVRC2012_img_train.tar": tar_bytes([(f"{wnid}.tar", content) for wnid, content in classes.items()]),
        "ILSVRC2012_img_val.tar": tar_bytes([(f"ILSVRC2012_val_{n:08d}.JPEG", image(100 + n)) for n in (3, 1, 4, 2)]),
        "ILSVRC2012_devkit_t12.tar.gz": tar_gz({f"{devkit}/meta.mat": meta.getvalue(), f"{devkit}/{truth}": numbers}),
    }
    parts = zip(("train", "val", "devkit"), files.items(), strict=True)
    monkeypatch.setattr(imagenet, "ARCHIVE_META", {part: (name, md5(content)) for part, (name, content) in parts})
    return files


def assert_imagenet(source):
    expected = {
        f"imagenet/train/{wnid}/{wnid}_{number}.JPEG": (wnid, "train", image(10 * place + number))
        for place, wnid in enumerate(WNIDS) for number in (12, 5)
    }  # fmt: skip
    for wnid, number in ((WNIDS[0], 1), (WNIDS[0], 4), (WNIDS[1], 3), (WNIDS[2], 2)):
        expected[f"imagenet/val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG"] = (wnid, "val", image(100 + number))
    items = {item.name: (item.label, item.split, Path(item.data).read_bytes()) for item in source.read()}
    assert list(items.items()) == list(expected.items())
    assert (source.classes, source.total) == (WNIDS, 10)


def test_imagenets_original_archives_are_unpacked_and_what_is_missing_again(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    folder = put(tmp_path / "imagenet", files)
    (folder / ".train.part" / "n01440764").mkdir(parents=True)  # left by a killed run
    assert_imagenet(open_("imagenet", tmp_path))
    assert {path.name for path in folder.iterdir()} - {*files} == {"train", "val", "meta.bin", ".unpack.lock"}
    for part, needed in {"": "nothing", "train": "img_train", "val": "img_val|devkit"}.items():
        for filename in files:
            (folder / filename).unlink(missing_ok=True)
        if part:
            shutil.rmtree(folder / part)
        put(folder, {name: content for name, content in files.items() if re.search(needed, name)})
        assert_imagenet(open_("imagenet", tmp_path))


@pytest.mark.parametrize("partly", [False, True])
def test_missing_imagenet_is_named_with_where_it_belongs(tmp_path, monkeypatch, partly):
    files = imagenet_archives(monkeypatch)
    if partly:
        put(tmp_path / "imagenet", {name: content for name, content in files.items() if "devkit" not in name})
    missing = "ILSVRC2012_devkit_t12.tar.gz" + ("" if partly else ", ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar")
    said = "data.name is imagenet;", tmp_path / "imagenet", f"or else {missing} from image-net.org", f"than {tmp_path}"
    refused(lambda: open_("imagenet", tmp_path), *said)
    assert not (tmp_path / "imagenet" / "train").exists()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_an_archive_of_imagenet_with_a_wrong_checksum_is_refused(tmp_path, monkeypatch, number, half):
    files = imagenet_archives(monkeypatch)
    filename, content = list(files.items())[number]
    broken = damaged(content, half)
    path = put(tmp_path / "imagenet", {**files, filename: broken}) / filename
    said = f"{path}: its MD5 checksum is {md5(broken)}, not {md5(content)}; delete it and download it again"
    refused(lambda: open_("imagenet", tmp_path), said)
    path.write_bytes(content)
    assert_imagenet(open_("imagenet", tmp_path))


def test_an_archive_of_imagenet_that_cannot_be_unpacked_is_refused(tmp_path, monkeypatch):
    files, filename = imagenet_archives(monkeypatch), "ILSVRC2012_img_train.tar"
    content = files[filename][: len(files[filename]) // 2 + 7]
    monkeypatch.setitem(imagenet.ARCHIVE_META, "train", (filename, md5(content)))
    put(tmp_path / "imagenet", {**files, filename: content})
    refused(lambda: open_("imagenet", tmp_path), filename, "cannot be unpacked")
    assert not (tmp_path / "imagenet" / "train").exists()


@pytest.mark.parametrize("part", ["train", "val"])
def test_imagenet_half_unpacked_never_looks_whole(tmp_path, monkeypatch, part):
    folder, extract = put(tmp_path / "imagenet", imagenet_archives(monkeypatch)), imagenet.extract_archive

    def interrupted(path, *args, **kwargs):
        extract(path, *args, **kwargs)
        if f"img_{part}" in str(path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_("imagenet", tmp_path)
    assert not (folder / part).exists()
    assert [path.name for path in folder.glob(".*")] == [".unpack.lock"]
    assert_imagenet(open_("imagenet", tmp_path))


def test_a_second_run_waits_while_imagenet_is_unpacked(tmp_path, monkeypatch):
    """It would delete what the first has unpacked so far."""
    put(tmp_path / "imagenet", imagenet_archives(monkeypatch))
    extract, second = imagenet.extract_archive, []

    def met_by_a_second(path, *args, **kwargs):
        extract(path, *args, **kwargs)
        if ".train.part" in str(path) and not second:  # the first class, of three
            second.append(pool.submit(open_, "imagenet", tmp_path))
            assert not wait(second, timeout=1).done

    monkeypatch.setattr(imagenet, "extract_archive", met_by_a_second)
    with ThreadPoolExecutor() as pool:
        assert_imagenet(open_("imagenet", tmp_path))
        assert_imagenet(second[0].result())


def test_unpacking_imagenet_is_not_a_change(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    folder = put(tmp_path / "imagenet", files)
    before = signature(settings("imagenet"), ROOT, tmp_path)
    open_("imagenet", tmp_path)
    assert signature(settings("imagenet"), ROOT, tmp_path) == before
    for filename in files:
        (folder / filename).unlink()
    assert signature(settings("imagenet"), ROOT, tmp_path) == before
