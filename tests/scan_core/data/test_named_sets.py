"""Named sets, written here as tiny files in their true formats: what is read from them, and what is refused."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets import imagenet

from pipeline.presets import read_preset
from scan_core.data import download as fetch
from scan_core.data import named_sets as named
from scan_core.data.imagenet import imagenet_listing
from scan_core.data.named_sets import open_named
from scan_core.data.sources import Finding, printable
from scan_core.errors import ScanError
from tests.tiny import change

PRESET = Path(__file__).parents[2] / "presets" / "digits.yaml"
DIGITS = read_preset(PRESET).data
STL10_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_FINE = [f"fine {number}" for number in range(100)]
CIFAR100_COARSE = [f"coarse {number}" for number in range(20)]
FAMILIES = ["mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_20", "stl10"]  # what can be downloaded


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The whole network: addresses and what is there, at first nothing. Counts what is asked for."""
    return Network(monkeypatch)


class Network:
    def __init__(self, monkeypatch):
        self.content, self.asked = {}, []
        monkeypatch.setattr("urllib.request.urlopen", self.urlopen)

    def urlopen(self, request, *_, **__):
        self.asked.append(request.full_url)
        content = self.content.get(request.full_url, URLError("no\nnetwork"))
        if isinstance(content, Exception):
            raise content
        return Response(request.full_url, content)


class Response(io.BytesIO):
    def __init__(self, url, content):
        super().__init__(content)
        self.url, self.length = url, len(content)


def open_(name, home, **values):
    return open_named(change(DIGITS, name=name, **values), home)


def read(source):
    return list(source.read())


def random_images(count, *shape, seed=0):
    """No row, column, channel or image is like another."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_gz(files):
    """The bytes of a .tar.gz of ``files`` by name, after an entry for their folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        folder = tarfile.TarInfo(next(iter(files)).split("/")[0])
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def assert_items(items, name, expected):
    """``expected``: (official split, our split, images, labels) in order."""
    rows = [
        (f"{name}/{official}/{row:05d}", split, image, label)
        for official, split, images, labels in expected
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    assert [(item.name, item.split, item.label) for item in items] == [(row[0], row[1], row[3]) for row in rows]
    for item, row in zip(items, rows, strict=True):
        assert type(item.data) is np.ndarray
        assert item.data.dtype == np.uint8
        assert np.array_equal(item.data, row[2]), item.name


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


# --- the sets, in their true formats. Each writer returns the files that can be downloaded: path in home -> content


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def mnist_files(monkeypatch, name):
    kind = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    raw = {
        "train-images-idx3-ubyte": idx(random_images(4, 28, 28)),
        "train-labels-idx1-ubyte": idx(np.array([3, 0, 9, 3], np.uint8)),
        "t10k-images-idx3-ubyte": idx(random_images(3, 28, 28, seed=1)),
        "t10k-labels-idx1-ubyte": idx(np.array([1, 7, 2], np.uint8)),
    }
    packed = {f"{filename}.gz": gzip.compress(content, mtime=0) for filename, content in raw.items()}
    monkeypatch.setattr(kind, "resources", [(filename, md5(content)) for filename, content in packed.items()])
    return {f"{kind.__name__}/raw/{filename}": content for filename, content in packed.items()}


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
    return np.stack([np.concatenate([image[:, :, channel].ravel() for channel in range(3)]) for image in images])


CIFAR10_TRAIN = [[6, 9], [4, 1], [2, 7], [8, 3], [5, 6]]  # labels of each batch
CIFAR10_TEST = [3, 0, 8]
CIFAR100_LABELS = {"train": ([49, 0, 99, 33], [19, 11, 3, 7]), "test": ([68, 56, 33], [9, 17, 7])}


def cifar10_images():
    return random_images(10, 32, 32, 3), random_images(3, 32, 32, 3, seed=1)


def cifar100_images():
    return random_images(4, 32, 32, 3, seed=2), random_images(3, 32, 32, 3, seed=3)


def cifar_files(monkeypatch, name):
    if name == "cifar10":
        kind = datasets.CIFAR10
        train, test = cifar10_images()
        parts = [train[2 * batch : 2 * batch + 2] for batch in range(5)]
        batches = [
            (f"data_batch_{batch + 1}", *each) for batch, each in enumerate(zip(parts, CIFAR10_TRAIN, strict=True))
        ]
        contents = {
            filename: {
                b"batch_label": b"a batch", b"labels": labels, b"data": cifar_rows(images),
                b"filenames": [b"x.png"] * len(labels),
            }
            for filename, images, labels in [*batches, ("test_batch", test, CIFAR10_TEST)]
        }  # fmt: skip
        names = [label.encode() for label in CIFAR10_NAMES]
        contents["batches.meta"] = {b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072}
    else:
        kind = datasets.CIFAR100
        contents = {
            filename: {
                b"filenames": [b"x.png"] * len(images), b"batch_label": b"a batch", b"data": cifar_rows(images),
                b"fine_labels": CIFAR100_LABELS[filename][0], b"coarse_labels": CIFAR100_LABELS[filename][1],
            }
            for filename, images in zip(("train", "test"), cifar100_images(), strict=True)
        }  # fmt: skip
        fine, coarse = ([label.encode() for label in names] for names in (CIFAR100_FINE, CIFAR100_COARSE))
        contents["meta"] = {b"fine_label_names": fine, b"coarse_label_names": coarse}
    files = {filename: python2_pickle(content) for filename, content in contents.items()}
    set_cifar_checksums(monkeypatch, kind, files)
    archive = tar_gz({f"{kind.base_folder}/{filename}": content for filename, content in files.items()})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    return {kind.filename: archive}


def set_cifar_checksums(monkeypatch, kind, files):
    for attribute in ("train_list", "test_list"):
        checksums = [[filename, md5(files[filename])] for filename, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, checksums)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})


def stl10_images():
    return (random_images(n, 96, 96, 3, seed=n) for n in (4, 3, 2))  # train, test, unlabelled


def stl10_files(monkeypatch, name="stl10"):
    kind = datasets.STL10
    files = {}
    for split, images in zip(("train", "test", "unlabeled"), stl10_images(), strict=True):
        # Channel by channel, in each column by column, top to bottom.
        columns = [image[:, x, channel] for image in images for channel in range(3) for x in range(96)]
        files[f"{split}_X.bin"] = b"".join(column.tobytes() for column in columns)
    files["train_y.bin"], files["test_y.bin"] = bytes([10, 1, 4, 10]), bytes([2, 7, 1])
    for attribute in ("train_list", "test_list"):
        checksums = [[filename, md5(files[filename])] for filename, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, checksums)
    files["class_names.txt"] = "".join(f"{label}\n" for label in STL10_NAMES).encode()
    files["fold_indices.txt"] = b"0 1 \n"
    archive = tar_gz({f"stl10_binary/{filename}": content for filename, content in files.items()})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    return {kind.filename: archive}


def set_files(monkeypatch, name):
    writer = mnist_files if "mnist" in name else stl10_files if name == "stl10" else cifar_files
    return writer(monkeypatch, name)


def put(home, files):
    for path, content in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)


def unpack(home, files):
    """What torchvision leaves, less the archives."""
    put(home, files)
    for path in files:
        if path.endswith(".tar.gz"):
            with tarfile.open(home / path) as tar:
                tar.extractall(home, filter="data")
        else:
            (home / path).with_suffix("").write_bytes(gzip.decompress(files[path]))
        (home / path).unlink()


def expected_of(name):
    """The set's classes and what ``assert_items`` compares with."""
    if "mnist" in name:
        classes = [str(digit) for digit in range(10)] if name == "mnist" else datasets.FashionMNIST.classes
        train, test = random_images(4, 28, 28), random_images(3, 28, 28, seed=1)
        numbers = [3, 0, 9, 3], [1, 7, 2]
    elif name == "cifar10":
        classes = CIFAR10_NAMES
        train, test = cifar10_images()
        numbers = [label for batch in CIFAR10_TRAIN for label in batch], CIFAR10_TEST
    elif name == "stl10":
        classes = STL10_NAMES
        train, test, _ = stl10_images()
        numbers = [9, 0, 3, 9], [1, 6, 0]
    else:
        classes = CIFAR100_FINE if name == "cifar100" else CIFAR100_COARSE
        train, test = cifar100_images()
        numbers = [CIFAR100_LABELS[split][name == "cifar100_20"] for split in ("train", "test")]
    labels = [[classes[number] for number in each] for each in numbers]
    return classes, [("train", "train", train, labels[0]), ("test", "val", test, labels[1])]


def assert_set(source, name):
    classes, expected = expected_of(name)
    if name == "stl10":
        unlabelled = list(stl10_images())[2]
        expected.append(("unlabeled", "extra", unlabelled, [None] * len(unlabelled)))
    items = read(source)
    assert_items(items, name, expected)
    assert source.classes == classes
    # CIFAR's count is a constant: its true files hold 60,000, whatever these do.
    assert source.total == (60_000 if "cifar" in name else len(items))


# --- what is read


def test_digits_are_1797_gray_images_of_ten_classes(tmp_path):
    source = open_("digits", tmp_path)
    items, digits = read(source), load_digits()
    assert [item.name for item in items] == [f"digits/{row:04d}" for row in range(1797)]
    assert [item.label for item in items] == [str(label) for label in digits.target]
    assert {item.split for item in items} == {None}
    assert source.classes == [str(digit) for digit in range(10)]
    assert source.total == 1797
    pixels = np.stack([item.data for item in items])
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.round(digits.images / 16 * 255))
    assert pixels.max() == 255
    assert list(tmp_path.iterdir()) == []


def test_digits_need_no_torchvision():
    code = (
        "import sys, pathlib; from pipeline.presets import read_preset; from scan_core.data.named_sets import open_named; "
        f"data = read_preset(pathlib.Path({str(PRESET)!r})).data; list(open_named(data, pathlib.Path('.')).read()); "
        "assert not [name for name in sys.modules if name.startswith('torch')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PRESET.parent.parent)


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
    assert not [path for path in tmp_path.rglob(".*")]  # no scratch folder
    network.content.clear()
    assert_set(open_(name, tmp_path), name)  # what the first call left


def addresses(name, files):
    """Where torchvision looks for each file. Of MNIST's two mirrors only the second answers."""
    if name == "mnist":
        return {datasets.MNIST.mirrors[1] + path.rsplit("/")[-1]: content for path, content in files.items()}
    if name == "fashion_mnist":
        return {datasets.FashionMNIST.mirrors[0] + path.rsplit("/")[-1]: content for path, content in files.items()}
    kind = {"cifar10": datasets.CIFAR10, "stl10": datasets.STL10}.get(name, datasets.CIFAR100)
    return {kind.url: files[kind.filename]}


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_reads_the_same_from_what_is_left(tmp_path, monkeypatch, name):
    put(tmp_path, set_files(monkeypatch, name))
    items = read(open_(name, tmp_path, extra="none"))
    kind = {
        "mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10,
    }.get(name, datasets.CIFAR100)  # fmt: skip
    if name == "stl10":
        open_(name, tmp_path)  # torchvision wants the unlabelled images too
        theirs = [*datasets.STL10(tmp_path, "train"), *datasets.STL10(tmp_path, "test")]
    else:
        theirs = [*kind(tmp_path, train=True), *kind(tmp_path, train=False)]
    assert len(items) == len(theirs)
    for item, (image, _) in zip(items, theirs, strict=True):
        assert np.array_equal(item.data, np.asarray(image))


@pytest.mark.parametrize("name", ["digits", *FAMILIES])
def test_every_read_gives_the_same_in_the_same_order(tmp_path, monkeypatch, name):
    if name != "digits":
        put(tmp_path, set_files(monkeypatch, name))
    source = open_(name, tmp_path)
    first, second = read(source), read(source)
    assert [(item.name, item.label, item.split) for item in first] == [(i.name, i.label, i.split) for i in second]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(first, second, strict=True))


def test_stl10_without_extra_needs_and_yields_no_unlabelled_images(tmp_path, monkeypatch):
    unpack(tmp_path, stl10_files(monkeypatch))
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    source = open_("stl10", tmp_path, extra="none")
    classes, expected = expected_of("stl10")
    assert_items(read(source), "stl10", expected)
    assert (source.classes, source.total) == (classes, 7)
    with pytest.raises(ScanError, match="stl10_binary"):
        open_("stl10", tmp_path, extra="pretext")


def test_stl10_without_extra_unpacks_only_what_is_needed(tmp_path, monkeypatch):
    put(tmp_path, stl10_files(monkeypatch))
    open_("stl10", tmp_path, extra="none")
    assert not (tmp_path / "stl10_binary" / "unlabeled_X.bin").exists()
    assert_set(open_("stl10", tmp_path, extra="train"), "stl10")


# --- what is refused


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_files_are_named_with_where_they_belong(tmp_path, monkeypatch, name):
    files = set_files(monkeypatch, name)
    with pytest.raises(ScanError) as error:
        open_(name, tmp_path)
    folder = tmp_path / next(iter(files))
    filenames = [path.rsplit("/")[-1] for path in files]
    assert_one_line(error, f"data.name is {name};", tmp_path, folder.parent, "no network", "SCAN_DATA", *filenames)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_relative_home_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScanError) as error:
        open_("cifar10", Path("sets"))
    assert_one_line(error, f"{tmp_path / 'sets'} lacks")


def test_only_missing_files_of_mnist_are_asked_for(tmp_path, monkeypatch):
    files = mnist_files(monkeypatch, "mnist")
    missing = "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    put(tmp_path, {path: content for path, content in files.items() if path != missing})
    with pytest.raises(ScanError) as error:
        open_("mnist", tmp_path)
    assert_one_line(error, "t10k-labels-idx1-ubyte.gz and the download failed")
    assert "train" not in str(error.value)


@pytest.mark.parametrize("failure", [TimeoutError("timed out"), OSError("reset"), IncompleteRead(b"x")])
def test_a_download_may_fail_in_many_ways(tmp_path, monkeypatch, network, failure):
    cifar_files(monkeypatch, "cifar10")
    network.content = dict.fromkeys(["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"], failure)
    with pytest.raises(ScanError) as error:
        open_("cifar10", tmp_path)
    assert_one_line(error, "cifar-10-python.tar.gz", "the download failed")


@pytest.mark.parametrize("name", FAMILIES)
def test_half_a_download_is_not_left_behind(tmp_path, monkeypatch, network, name):
    files = set_files(monkeypatch, name)
    network.content = {url: content[: len(content) // 2] for url, content in addresses(name, files).items()}
    with pytest.raises(ScanError) as error:
        open_(name, tmp_path)
    assert_one_line(error, "the download failed", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    network.content = addresses(name, files)
    assert_set(open_(name, tmp_path), name)


def test_a_download_that_is_interrupted_leaves_no_file(tmp_path, monkeypatch, network):
    files = cifar_files(monkeypatch, "cifar10")
    network.content = addresses("cifar10", files)
    monkeypatch.setattr(Response, "read", interrupted_after(1000), raising=True)
    with pytest.raises(KeyboardInterrupt):
        open_("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def interrupted_after(count):
    calls = iter([bytes(count)])

    def read(self, size=-1):
        try:
            return next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None

    return read


def test_a_download_waits_no_longer_than_the_timeout(tmp_path, monkeypatch, network):
    files = cifar_files(monkeypatch, "cifar10")
    network.content = addresses("cifar10", files)
    seen = []

    def urlopen(request, *_, **__):
        seen.append(socket.getdefaulttimeout())
        return network.urlopen(request)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    socket.setdefaulttimeout(7)
    try:
        open_("cifar10", tmp_path)
        assert set(seen) == {fetch.TIMEOUT}
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_archive_with_a_wrong_checksum_is_refused_and_kept(tmp_path, monkeypatch, network, name, half):
    files = set_files(monkeypatch, name)
    network.content = addresses(name, files)
    path, content = next(iter(files.items()))
    broken = content[: len(content) // 2] if half else content[:-1] + bytes([content[-1] ^ 1])
    put(tmp_path, {**files, path: broken})
    with pytest.raises(ScanError) as error:
        open_(name, tmp_path)
    assert_one_line(error, tmp_path / path, "checksum", md5(broken), md5(content), "delete it and download it again")
    assert (tmp_path / path).read_bytes() == broken
    assert network.asked == []
    assert not (tmp_path / path).with_suffix("").exists()
    (tmp_path / path).unlink()
    assert_set(open_(name, tmp_path), name)  # following the advice helps


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *(("cifar10", f"cifar-10-batches-py/{part}") for part in ("data_batch_1", "data_batch_5", "test_batch")),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        *(("cifar100", f"cifar-100-python/{part}") for part in ("train", "test", "meta")),
        ("cifar100_20", "cifar-100-python/meta"),
        *(("stl10", f"stl10_binary/{part}_X.bin") for part in ("train", "test", "unlabeled")),
        *(("stl10", f"stl10_binary/{part}_y.bin") for part in ("train", "test")),
    ],
)
def test_an_unpacked_file_with_a_wrong_checksum_is_refused(tmp_path, monkeypatch, network, name, path):
    files = set_files(monkeypatch, name)
    unpack(tmp_path, files)
    put(tmp_path, files)  # the archive, too, lies there
    content = (tmp_path / path).read_bytes()
    broken = content[:-1] + bytes([content[-1] ^ 1])
    (tmp_path / path).write_bytes(broken)
    with pytest.raises(ScanError) as error:
        open_(name, tmp_path)
    assert_one_line(error, tmp_path / path, "checksum", md5(broken), md5(content), "delete it and download it again")
    (tmp_path / path).unlink()
    assert_set(open_(name, tmp_path), name)
    assert network.asked == []


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
@pytest.mark.parametrize("filename", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_idx_file_that_is_cut_short_is_refused(tmp_path, monkeypatch, filename, cut):
    unpack(tmp_path, mnist_files(monkeypatch, "mnist"))
    path = tmp_path / "MNIST" / "raw" / filename
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ScanError) as error:
        open_("mnist", tmp_path)
    assert_one_line(error, path, "no whole IDX file", "delete it")


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path, monkeypatch):
    unpack(tmp_path, mnist_files(monkeypatch, "mnist"))
    raw = tmp_path / "MNIST" / "raw"
    shutil.copy(raw / "t10k-labels-idx1-ubyte", raw / "train-labels-idx1-ubyte")
    with pytest.raises(ScanError) as error:
        open_("mnist", tmp_path)
    assert_one_line(error, raw / "train-labels-idx1-ubyte", "differ in how many")


def test_an_idx_label_beyond_the_classes_is_refused(tmp_path, monkeypatch):
    unpack(tmp_path, mnist_files(monkeypatch, "mnist"))
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.array([3, 0, 10, 3], np.uint8)))
    with pytest.raises(ScanError) as error:
        open_("mnist", tmp_path)
    assert_one_line(error, path, "10")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10"])
def test_a_whole_archive_that_cannot_be_unpacked_is_refused(tmp_path, monkeypatch, name):
    """Its checksum is right, as where torchvision's were of another file: what is missing must not look whole."""
    files = set_files(monkeypatch, name)
    path, content = next(iter(files.items()))
    half = content[: len(content) // 2]
    if name == "mnist":
        resources = [(f, md5(half) if path.endswith(f) else checksum) for f, checksum in datasets.MNIST.resources]
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
    else:
        kind = {"cifar10": datasets.CIFAR10, "stl10": datasets.STL10}[name]
        monkeypatch.setattr(kind, "tgz_md5", md5(half))
    put(tmp_path, {**files, path: half})
    with pytest.raises(ScanError) as error:
        open_(name, tmp_path)
    assert_one_line(error, tmp_path / path, "cannot be unpacked")
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == set(files)


def test_an_archive_without_a_member_is_refused(tmp_path, monkeypatch):
    archive = tar_gz({"cifar-10-batches-py/other": b"x"})
    cifar_files(monkeypatch, "cifar10")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    put(tmp_path, {datasets.CIFAR10.filename: archive})
    with pytest.raises(ScanError) as error:
        open_("cifar10", tmp_path)
    assert_one_line(error, datasets.CIFAR10.filename, "lacks cifar-10-batches-py/batches.meta")


def test_only_the_files_of_the_set_leave_an_archive(tmp_path, monkeypatch):
    home = tmp_path / "home"
    content = cifar_files(monkeypatch, "cifar10")[datasets.CIFAR10.filename]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    archive = tar_gz({**members, "../escaped": b"x", "cifar-10-batches-py/more": b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    put(home, {datasets.CIFAR10.filename: archive})
    assert_set(open_("cifar10", home), "cifar10")
    assert not (tmp_path / "escaped").exists()
    assert not (home / "cifar-10-batches-py" / "more").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("filename", ["batches.meta", "data_batch_1", "test_batch"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_pickle_is_loaded_before_its_checksum_is_right(tmp_path, monkeypatch, filename, packed):
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    home = tmp_path / "home"
    files = cifar_files(monkeypatch, "cifar10")
    unpack(home, files)
    folder = home / "cifar-10-batches-py"
    (folder / filename).write_bytes(content)
    if packed:
        archive = tar_gz({f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())})
        shutil.rmtree(folder)
        put(home, {datasets.CIFAR10.filename: archive})
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))  # so that only the file's own can stop it
    with pytest.raises(ScanError, match="checksum"):
        open_("cifar10", home)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_pickle_that_was_changed_after_opening_is_not_loaded(tmp_path, monkeypatch):
    unpack(tmp_path, cifar_files(monkeypatch, "cifar10"))
    source = open_("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ScanError, match=r"data_batch_2: .*checksum"):
        read(source)
    assert not (tmp_path / "sprung").exists()


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
        read(source)


def test_a_home_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    unpack(tmp_path, mnist_files(monkeypatch, "mnist"))
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    with pytest.raises(ScanError) as error:
        open_("mnist", tmp_path)
    assert_one_line(error, "data.name is mnist;", tmp_path)


# --- imagenet


WNIDS = ["n01440764", "n01443537", "n02119789"]


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(random_images(1, 6, 9, 3, seed=seed)[0]).save(buffer, "JPEG")
    return buffer.getvalue()


def tree(home, files):
    put(home / "imagenet", {path: jpeg(number) for number, path in enumerate(files)})


def listing(source):
    """Items as (name, label, split), findings as (name, kind)."""
    return [
        (thing.name, thing.kind) if isinstance(thing, Finding) else (thing.name, thing.label, thing.split)
        for thing in source.read()
    ]


def test_imagenet_is_read_sorted_by_bytes(tmp_path):
    train = ["n02119789/n02119789_10.JPEG", "n02119789/n02119789_9.JPEG", "n01440764/b.jpg", "n01440764/B.png"]
    tree(tmp_path, [*(f"train/{path}" for path in train), "train/n01440764/ä.jpeg", "val/n02119789/1.JPEG"])
    put(tmp_path / "imagenet", {"train/n01440764/notes.txt": b"", "train/readme": b"", "train/stray.JPEG": b""})
    put(tmp_path / "imagenet", {"val/n01440764/0.JPEG": b"", "train/thumbnails/a.JPEG": b"", "meta.bin": b""})
    put(tmp_path / "imagenet", {"train/n01440764/old/a.JPEG": b""})
    source = open_("imagenet", tmp_path)
    assert listing(source) == listing(source) == [
        ("imagenet/train/n01440764/B.png", "n01440764", "train"),
        ("imagenet/train/n01440764/b.jpg", "n01440764", "train"),
        ("imagenet/train/n01440764/notes.txt", "ignored"),
        ("imagenet/train/n01440764/old", "ignored"),
        ("imagenet/train/n01440764/ä.jpeg", "n01440764", "train"),
        ("imagenet/train/n02119789/n02119789_10.JPEG", "n02119789", "train"),
        ("imagenet/train/n02119789/n02119789_9.JPEG", "n02119789", "train"),
        ("imagenet/train/readme", "ignored"),
        ("imagenet/train/stray.JPEG", "ignored"),
        ("imagenet/train/thumbnails", "ignored"),
        ("imagenet/val/n01440764/0.JPEG", "n01440764", "val"),
        ("imagenet/val/n02119789/1.JPEG", "n02119789", "val"),
    ]  # fmt: skip
    assert source.classes == ["n01440764", "n02119789"]
    assert source.total == 7
    for thing in source.read():
        if not isinstance(thing, Finding):
            assert thing.data == str(tmp_path / thing.name)


def test_imagenet_is_sorted_whatever_the_folder_s_order(tmp_path, monkeypatch):
    tree(tmp_path, [f"{split}/{wnid}/{n}.JPEG" for split in ("train", "val") for wnid in WNIDS for n in range(5)])
    expected = listing(open_("imagenet", tmp_path))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert listing(open_("imagenet", tmp_path)) == expected
    assert [name for name, *_ in expected] == sorted(name for name, *_ in expected)


def test_imagenet_s_folders_may_be_links_and_a_link_to_nothing_is_no_less_an_image(tmp_path):
    tree(tmp_path / "elsewhere", ["train/n01440764/1.JPEG", "val/n01440764/2.JPEG"])
    home = tmp_path / "home" / "imagenet"
    (home / "val").mkdir(parents=True)
    (home / "train").symlink_to(tmp_path / "elsewhere" / "imagenet" / "train")
    (home / "val" / "n01440764").symlink_to(tmp_path / "elsewhere" / "imagenet" / "val" / "n01440764")
    (home / "train" / "n01440764" / "0.JPEG").symlink_to(tmp_path / "nothing")
    assert listing(open_("imagenet", tmp_path / "home")) == [
        ("imagenet/train/n01440764/0.JPEG", "n01440764", "train"),
        ("imagenet/train/n01440764/1.JPEG", "n01440764", "train"),
        ("imagenet/val/n01440764/2.JPEG", "n01440764", "val"),
    ]


def test_names_that_are_no_utf8_are_read(tmp_path):
    tree(tmp_path, ["train/n01440764/a.JPEG", "val/n01440764/a.JPEG"])
    folder = os.fsencode(tmp_path / "imagenet" / "train" / "n01440764")
    with open(folder + b"/\xe4.JPEG", "wb"):
        pass
    items = read(open_("imagenet", tmp_path))
    assert items[1].name == "imagenet/train/n01440764/" + printable(os.fsdecode(b"\xe4.JPEG"))
    assert items[1].name.isprintable()
    assert Path(items[1].data).read_bytes() == b""


def test_a_flat_val_folder_has_no_labels(tmp_path):
    tree(tmp_path, ["train/n01440764/1.JPEG", "val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000001.JPEG"])
    put(tmp_path / "imagenet", {"val/notes.txt": b""})
    source = open_("imagenet", tmp_path)
    assert listing(source)[1:] == [
        ("imagenet/val/ILSVRC2012_val_00000001.JPEG", None, "val"),
        ("imagenet/val/ILSVRC2012_val_00000002.JPEG", None, "val"),
        ("imagenet/val/notes.txt", "ignored"),
    ]
    assert (source.classes, source.total) == (["n01440764"], 3)


# --- imagenet's subsets


def paper_subset(classes):
    return (Path(named.__file__).parent / "imagenet_subsets" / f"{classes}.txt").read_text().split()


@pytest.mark.parametrize(("classes", "first"), [(50, "n01601694"), (100, "n01558993"), (200, "n01443537")])
def test_subsets_are_the_papers(classes, first):
    wnids = paper_subset(classes)
    assert len(set(wnids)) == len(wnids) == classes
    assert wnids == sorted(wnids)
    assert wnids[0] == first
    assert set(wnids) <= set(paper_subset(200))


@pytest.mark.parametrize("extra", ["pretext", "train", "none"])
@pytest.mark.parametrize("classes", [50, 100, 200])
def test_a_subset_is_clustered_and_the_rest_is_extra_without_labels(tmp_path, classes, extra):
    subset = paper_subset(classes)
    others = ["n01440764", "n15075141"]  # tench and toilet paper sort before and after
    assert not set(others) & set(subset)
    wnids = [*subset, *others]
    paths = [f"{split}/{wnid}/{wnid}.JPEG" for split in ("train", "val") for wnid in wnids]
    put(tmp_path / "imagenet", dict.fromkeys(paths, b""))
    source = open_("imagenet", tmp_path, subset=classes, extra=extra)
    train = [(wnid, wnid, "train") for wnid in subset]
    if extra != "none":
        train = [(others[0], None, "extra"), *train, (others[1], None, "extra")]
    expected = [(f"imagenet/train/{wnid}/{wnid}.JPEG", label, split) for wnid, label, split in train]
    expected += [(f"imagenet/val/{wnid}/{wnid}.JPEG", wnid, "val") for wnid in subset]
    assert listing(source) == expected
    assert source.classes == subset
    assert source.total == len(expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_the_subset_that_is_missing_is_named(tmp_path, split):
    put(tmp_path / "imagenet", {f"{s}/{w}/1.JPEG": b"" for s in ("train", "val") for w in paper_subset(50)})
    missing = paper_subset(50)[7]
    shutil.rmtree(tmp_path / "imagenet" / split / missing)
    open_("imagenet", tmp_path)  # without a subset nothing is missing
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path, subset=50)
    assert_one_line(error, "data.subset is 50", f"{tmp_path / 'imagenet' / split} lacks {missing};")


def test_a_subset_cannot_be_chosen_from_a_flat_val_folder(tmp_path):
    put(tmp_path / "imagenet", {**{f"train/{w}/1.JPEG": b"" for w in paper_subset(50)}, "val/1.JPEG": b""})
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path, subset=50)
    assert_one_line(error, "data.subset is 50", tmp_path / "imagenet" / "val", "no class folders")


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_of_imagenet_without_images_is_refused(tmp_path, empty):
    tree(tmp_path, ["train/n01440764/1.JPEG", "val/n01440764/1.JPEG"])
    (tmp_path / "imagenet" / empty / "n01440764" / "1.JPEG").unlink()
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path)
    assert_one_line(error, tmp_path / "imagenet" / empty, "no images")


# --- imagenet's original archives


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def imagenet_archives(monkeypatch):
    """The three archives, of three classes whose ILSVRC numbers are in another order than their wnids."""
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
    ]
    kinds += [(name, object) for name in ("children", "wordnet_height", "num_train_images")]
    synsets = np.zeros((4, 1), dtype=kinds)
    numbered = [WNIDS[2], WNIDS[0], WNIDS[1], "n00001740"]  # numbers 1 to 4; the last has children: it is no class
    for number, wnid in enumerate(numbered):
        children = 3 if number == 3 else 0
        values = (number + 1, wnid, f"{wnid}, a word", "gloss", children, np.zeros((1, children)), 0, 1300)
        synsets[number, 0] = tuple(np.array(v) if not isinstance(v, str) else v for v in values)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "2\n1\n3\n2\n"
    data = "ILSVRC2012_devkit_t12/data"
    devkit = tar_gz(
        {f"{data}/meta.mat": meta.getvalue(), f"{data}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    )
    inner = {
        f"{wnid}.tar": tar({f"{wnid}_{n}.JPEG": jpeg(10 * k + n) for n in (12, 5)}) for k, wnid in enumerate(WNIDS)
    }
    val = tar({f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + n) for n in (3, 1, 4, 2)})
    files = {
        "ILSVRC2012_img_train.tar": tar(inner),
        "ILSVRC2012_img_val.tar": val,
        "ILSVRC2012_devkit_t12.tar.gz": devkit,
    }
    parts = dict(zip(("train", "val", "devkit"), files.items(), strict=True))
    monkeypatch.setattr(
        imagenet, "ARCHIVE_META", {part: (name, md5(content)) for part, (name, content) in parts.items()}
    )
    return files


def assert_imagenet(source):
    train = [(f"imagenet/train/{w}/{w}_{n}.JPEG", w, "train") for w in WNIDS for n in (12, 5)]
    val = [(WNIDS[0], 1), (WNIDS[0], 4), (WNIDS[1], 3), (WNIDS[2], 2)]
    assert listing(source) == train + [(f"imagenet/val/{w}/ILSVRC2012_val_{n:08d}.JPEG", w, "val") for w, n in val]
    content = [jpeg(10 * k + n) for k in range(3) for n in (12, 5)] + [jpeg(100 + n) for _, n in val]
    assert [Path(item.data).read_bytes() for item in source.read()] == content
    assert source.classes == WNIDS
    assert source.total == 10


def test_imagenet_s_original_archives_are_unpacked(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    put(tmp_path / "imagenet", files)
    (tmp_path / "imagenet" / ".train.part" / "n01440764").mkdir(parents=True)  # of a run that was killed
    assert_imagenet(open_("imagenet", tmp_path))
    made = {path.name for path in (tmp_path / "imagenet").iterdir()} - {*files}
    assert made == {"train", "val", "meta.bin", ".unpack.lock"}
    for filename in files:
        (tmp_path / "imagenet" / filename).unlink()
    assert_imagenet(open_("imagenet", tmp_path))


def test_only_the_missing_split_of_imagenet_is_unpacked(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    put(tmp_path / "imagenet", files)
    open_("imagenet", tmp_path)
    for left in ("train", "val"):
        other = "val" if left == "train" else "train"
        for filename in files:
            (tmp_path / "imagenet" / filename).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "imagenet" / other)
        put(tmp_path / "imagenet", {name: files[name] for name in files if f"_{left}." not in name})
        assert_imagenet(open_("imagenet", tmp_path))


@pytest.mark.parametrize("there", [False, True])
def test_missing_imagenet_is_named_with_where_it_belongs(tmp_path, monkeypatch, there):
    files = imagenet_archives(monkeypatch)
    if there:
        put(tmp_path / "imagenet", {name: content for name, content in files.items() if "devkit" not in name})
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path)
    missing = ["ILSVRC2012_devkit_t12.tar.gz"] if there else files
    assert_one_line(error, "data.name is imagenet;", tmp_path / "imagenet", "SCAN_DATA", "image-net.org", *missing)
    assert ("ILSVRC2012_img_train.tar" in str(error.value)) != there
    assert not (tmp_path / "imagenet" / "train").exists()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_an_archive_of_imagenet_with_a_wrong_checksum_is_refused(tmp_path, monkeypatch, number, half):
    files = imagenet_archives(monkeypatch)
    filename = list(files)[number]
    content = files[filename]
    broken = content[: len(content) // 2] if half else content[:-1] + bytes([content[-1] ^ 1])
    put(tmp_path / "imagenet", {**files, filename: broken})
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path)
    path = tmp_path / "imagenet" / filename
    assert_one_line(error, path, "checksum", md5(broken), md5(content), "delete it and download it again")
    path.write_bytes(content)
    assert_imagenet(open_("imagenet", tmp_path))


@pytest.mark.parametrize("part", ["train", "val"])
def test_imagenet_half_unpacked_never_looks_whole(tmp_path, monkeypatch, part):
    files = imagenet_archives(monkeypatch)
    put(tmp_path / "imagenet", files)
    with monkeypatch.context() as patch:
        extract = imagenet.extract_archive

        def interrupted(path, *args, **kwargs):
            extract(path, *args, **kwargs)
            if f"img_{part}" in str(path):
                raise KeyboardInterrupt

        patch.setattr(imagenet, "extract_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_("imagenet", tmp_path)
    assert not (tmp_path / "imagenet" / part).exists()
    assert [path.name for path in (tmp_path / "imagenet").glob(".*")] == [".unpack.lock"]
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


def test_having_unpacked_imagenet_is_no_change_but_what_is_done_to_it_then_is(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    put(tmp_path / "imagenet", files)
    before = imagenet_listing(tmp_path)
    open_("imagenet", tmp_path)
    assert imagenet_listing(tmp_path) == before
    for filename in files:
        (tmp_path / "imagenet" / filename).unlink()
    assert imagenet_listing(tmp_path) == before
    seen = [before]
    put(tmp_path / "imagenet", {f"train/{WNIDS[0]}/new.JPEG": b""})
    seen.append(imagenet_listing(tmp_path))
    shutil.rmtree(tmp_path / "imagenet" / "val" / WNIDS[0])
    seen.append(imagenet_listing(tmp_path))
    for key in before:
        assert len({each[key] for each in seen}) == 3


def test_a_whole_archive_of_imagenet_that_cannot_be_unpacked_is_refused(tmp_path, monkeypatch):
    files = imagenet_archives(monkeypatch)
    filename = "ILSVRC2012_img_train.tar"
    content = files[filename][: len(files[filename]) // 2 + 7]
    monkeypatch.setitem(imagenet.ARCHIVE_META, "train", (filename, md5(content)))
    put(tmp_path / "imagenet", {**files, filename: content})
    with pytest.raises(ScanError) as error:
        open_("imagenet", tmp_path)
    assert_one_line(error, filename, "cannot be unpacked")
    assert not (tmp_path / "imagenet" / "train").exists()
