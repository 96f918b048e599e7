"""Folders and archives: every file is yielded or listed with its reason, in one order, and nothing is written."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.presets import read_preset
from scan_core.data import archive as archives
from scan_core.data.archive import open_archive
from scan_core.data.folder import open_folder, signature, tree_layout
from scan_core.data.sources import Finding, Item, open_source
from scan_core.errors import ScanError
from tests.project import ROOT
from tests.tiny import change

DIGITS = read_preset(ROOT / "presets" / "digits.yaml").data
HOME = ROOT / "datasets"


def data(path, name="folder", **values):
    return change(DIGITS, name=name, path=str(path), **values)


def folder(path):
    return list(open_folder(path, data(path)).read())


def archive(path, **values):
    return list(open_archive(path, data(path, "archive", **values)).read())


def names(found):
    return [each.name for each in found if isinstance(each, Item)]


def reasons(found):
    return {each.name: (each.kind, each.reason) for each in found if isinstance(each, Finding)}


def write(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode("utf-8", "surrogateescape"))
    return root


def error_of(call):
    with pytest.raises(ScanError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# Folders.

NAMES = [
    "a.jpg", "B.jpg", "Z/1.png", "a/1.png", "a/10.png", "a/2.png", "a-b/1.png", "a.b/1.png", "äöü/ß.png", "кот/1.png",
    "猫/一.png", "🐈/😀.png", "עברית/א.png", "new\nline,comma;\t\"q\".png", " lead and trail .png",
    "deep/er/and/er/x.png",
]  # fmt: skip


def test_all_files_come_in_the_order_of_their_bytes(tmp_path):
    write(tmp_path, *NAMES)
    found = folder(tmp_path)
    assert names(found) == sorted(NAMES, key=str.encode)
    assert not reasons(found)
    for item in found:
        assert (item.data, item.label, item.split) == (str(tmp_path / item.name), None, None)


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    write(tmp_path, *NAMES)
    before, scan = names(folder(tmp_path)), os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    for seed in range(5):

        def shuffled(path, seed=seed):
            entries = list(scan(path))
            random.Random(seed).shuffle(entries)
            return Shuffled(entries)

        monkeypatch.setattr(os, "scandir", shuffled)
        assert names(folder(tmp_path)) == before
        assert signature(data(tmp_path), ROOT, HOME) == signature(data(tmp_path), ROOT, HOME)


def test_bytes_that_are_no_text_are_written_out(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    try:
        write(tmp_path, f"a/{name}")
    except OSError:
        pytest.skip("this file system allows text alone")
    (found,) = folder(tmp_path)
    assert found.name == "a/\\udcff.jpg"
    found.name.encode()
    with open(found.data, "rb") as file:
        assert file.read() == b"a/\xff.jpg"
    assert signature(data(tmp_path), ROOT, HOME)["source"]["files"] == 1


def test_hidden_and_system_files_are_listed_but_ignored(tmp_path):
    junk = [
        ".DS_Store",
        "a/._1.png",
        ".git/config",
        "__MACOSX/a/1.png",
        "a/Thumbs.db",
        "desktop.ini",
        "a/.hidden/1.png",
    ]
    write(tmp_path, *junk, "a/1.png", "my__MACOSX/1.png", "a.b/..c/1.png", "a/x.thumbs.db.png")
    found = folder(tmp_path)
    assert names(found) == ["a/1.png", "a/x.thumbs.db.png", "my__MACOSX/1.png"]
    assert reasons(found) == {name: ("ignored", "hidden or system file") for name in [*junk, "a.b/..c/1.png"]}


def test_a_root_that_is_hidden_itself_is_read(tmp_path):
    assert names(folder(write(tmp_path / ".cache" / "x", "a.png"))) == ["a.png"]


def test_links_are_followed_inside_the_folder_alone(tmp_path):
    write(tmp_path, "out/secret.png", "in/a/1.png", "in/b/2.png", "inside/3.png")
    root = tmp_path / "in"
    links = {
        "a/file.png": "1.png", "absolute.png": root / "b/2.png", "folder": "a", "out.png": "../out/secret.png",
        "out": "../out", "etc": "/etc", "loop": ".", "b/up": "..", "self.png": "self.png", "x.png": "y.png",
        "y.png": "x.png", "gone.png": "nothing", "far.png": "../nothing", "sibling.png": "../inside/3.png",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "chain.png").symlink_to("out.png")
    found = folder(root)
    assert names(found) == ["a/1.png", "a/file.png", "absolute.png", "b/2.png"]
    inside = {item.name: item.data for item in found if isinstance(item, Item)}
    assert inside["a/file.png"] == str(root / "a/1.png")
    out, nothing = ("rejected", "a link that leads out of the folder"), ("rejected", "a link to nothing")
    there = ("ignored", "a link to a folder, whose files are read where they lie")
    assert reasons(found) == {
        "out.png": out, "out": out, "etc": out, "far.png": out, "chain.png": out, "sibling.png": out, "folder": there,
        "loop": there, "b/up": there, "self.png": nothing, "x.png": nothing, "y.png": nothing, "gone.png": nothing,
    }  # fmt: skip


def test_the_root_may_be_a_link(tmp_path):
    write(tmp_path, "real/a/1.png")
    (tmp_path / "real/2.png").symlink_to("a/1.png")
    (tmp_path / "link").symlink_to("real")
    found = folder(tmp_path / "link")
    assert names(found) == ["2.png", "a/1.png"]
    assert not reasons(found)


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to-pipe.png").symlink_to("pipe.png")
    expected = {"pipe.png": "not a regular file", "to-pipe.png": "a link to nothing"}
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        expected["socket.png"] = "not a regular file"
        try:
            os.mknod("null.png", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            expected["null.png"] = "not a regular file"
        except OSError:
            pass  # not allowed here
        found = folder(tmp_path)
    assert reasons(found) == {name: ("rejected", reason) for name, reason in expected.items()}
    assert not names(found)
    assert signature(data(tmp_path), ROOT, HOME)["source"]["files"] == len(expected)


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    write(tmp_path, "a/1.png", "b/2.png", ".c/3.png", "d/4.png")
    scan = os.scandir

    def denied(path):
        if os.path.basename(path) in ("b", ".c"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = folder(tmp_path)
    assert names(found) == ["a/1.png", "d/4.png"]
    assert reasons(found) == {
        "b": ("rejected", "cannot be read: Permission denied"), ".c": ("ignored", "hidden or system file")
    }  # fmt: skip
    signature(data(tmp_path), ROOT, HOME)
    monkeypatch.setattr(os, "scandir", lambda path: denied("b"))
    assert reasons(folder(tmp_path)) == {".": ("rejected", "cannot be read: Permission denied")}


def test_folders_may_lie_deeper_than_pythons_stack(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            os.mkdir("a")
            os.chdir("a")
        with open("x.png", "wb"):
            pass
    finally:
        os.chdir(here)
    try:
        assert names(folder(tmp_path)) == ["a/" * 1500 + "x.png"]
        assert signature(data(tmp_path), ROOT, HOME)["source"]["files"] == 1
    finally:  # pytest could not remove them
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)


def test_a_file_is_no_folder(tmp_path):
    path = write(tmp_path, "a.zip") / "a.zip"
    assert error_of(lambda: folder(path)) == (
        f"data.path is {path}, which is no folder; for a zip or tar set data.name: archive"
    )


def test_an_empty_folder_yields_nothing(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert folder(tmp_path) == []


# What the folders mean.


@pytest.mark.parametrize(
    ("paths", "labels", "splits"),
    [
        (["1.png", "2.png"], [None, None], None),
        (["a/1.png", "b/2.png"], ["a", "b"], None),
        (["a/1.png", "a/2.png"], [None, None], None),
        (["all/of/a/1.png", "all/of/b/2.png"], ["a", "b"], None),
        (["a/x/1.png", "b/y/2.png"], ["a", "b"], None),
        (["a/1.png", "2.png"], ["a", None], None),
        (["a/1.png", "ab/2.png", "abc/3.png"], ["a", "ab", "abc"], None),
        (["a/1.png", "unlabelled/2.png", "Unlabeled/3.png"], ["a", None, None], None),
        (["train/a/1.png", "val/a/2.png"], ["a", "a"], "tv"),
        (["set/train/a/1.png", "set/test/b/2.png"], ["a", "b"], "tv"),
        (["train/a/1.png", "valid/a/2.png", "validation/b/3.png", "test/b/4.png"], ["a", "a", "b", "b"], "tvvv"),
        (["Train/a/1.png", "VAL/A/2.png"], ["a", "A"], "tv"),
        (["train/a/1.png", "val/a/2.png", "unlabelled/3.png", "unlabelled/a/4.png"], ["a", "a", None, None], "tvee"),
        (["train/a/1.png", "val/a/2.png", "3.png"], ["a", "a", None], "tvt"),
        (["train/a/1.png", "val/a/2.png", "c/3.png"], ["a", "a", "c"], "tvt"),
        (["train/1.png", "val/2.png", "train/unlabelled/3.png"], [None, None, None], "tvt"),
        (["train/a/1.png", "train/b/2.png"], ["a", "b"], None),
        (["train/a/1.png", "b/2.png"], ["train", "b"], None),
        (["val/a/1.png", "test/b/2.png"], ["val", "test"], None),
        (["train", "val"], [None, None], None),
        ([], [], None),
    ],
)
def test_folders_are_labels_and_splits(paths, labels, splits):
    kinds = {"t": "train", "v": "val", "e": "extra"}
    expected = [kinds[letter] for letter in splits] if splits else [None] * len(paths)
    assert tree_layout(paths) == (labels, expected)


@given(
    st.lists(st.sampled_from(["train", "val", "Test", "a", "b", "unlabelled", "x"]), max_size=3).map("/".join).flatmap(
        lambda parts: st.integers(0, 9).map(lambda number: f"{parts}/{number}.png".lstrip("/"))
    ) | st.nothing(),
    st.randoms(use_true_random=False),
    st.data(),
)  # fmt: skip
@hypothesis_settings(max_examples=60)
def test_the_layout_does_not_depend_on_the_order(first, rng, drawn):
    tops = st.lists(st.sampled_from(["train", "val", "a", "b", "unlabelled"]), max_size=3)
    paths = [
        first,
        *("/".join([*parts, f"{at}.png"]) for at, parts in enumerate(drawn.draw(st.lists(tops, max_size=8)))),
    ]
    known = dict(zip(paths, zip(*tree_layout(paths), strict=True), strict=True))
    shuffled = list(paths)
    rng.shuffle(shuffled)
    assert dict(zip(shuffled, zip(*tree_layout(shuffled), strict=True), strict=True)) == known


# Archives.

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
PACKED = ["tar", "tar.gz", "tar.bz2", "tar.xz"]
CONTENT = random.Random(0).randbytes(3000) + bytes(3000)


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = method
            file.writestr(info, content)
    return path


def tarred(path, members, **options):
    """``members`` are names with their contents, or TarInfo with contents."""
    mode = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode, **options) as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is not None:
                info.size = len(content)
            file.addfile(info, None if content is None else io.BytesIO(content))
    return path


def pack(path, members):
    return zipped(path, members) if path.suffix == ".zip" else tarred(path, members)


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_of_any_method_is_read(tmp_path, method):
    members = [("a/1.png", CONTENT), ("b/2.png", b""), ("ß/猫.png", b"x" * 100000)]
    assert archive(zipped(tmp_path / "a.zip", members, method)) == [Item(*member) for member in members]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("ending", PACKED)
def test_a_tar_of_any_packing_is_read(tmp_path, ending, form):
    long = "long/" * 60 + "name.png"
    members = [("a/1.png", CONTENT), ("b/2.png", b""), ("ß/猫.png", b"x" * 100000), (long, b"long")]
    found = archive(tarred(tmp_path / f"a.{ending}", members, format=form))
    assert found == [Item(*member) for member in members]


@pytest.mark.parametrize("ending", ["zip", *PACKED])
def test_the_ending_of_the_archive_means_nothing(tmp_path, ending):
    pack(tmp_path / f"a.{ending}", [("a.png", b"x")]).rename(tmp_path / "images")
    assert archive(tmp_path / "images") == [Item("a.png", b"x")]


def test_packing_in_several_streams_is_read_to_the_end(tmp_path):
    plain = tarred(tmp_path / "a.tar", [("a.png", CONTENT), ("b.png", CONTENT)]).read_bytes()
    for compress in (gzip.compress, bz2.compress, lzma.compress):  # as pigz, pbzip2 and pixz do
        path = tmp_path / "several"
        path.write_bytes(compress(plain[:4000]) + compress(plain[4000:]))
        assert names(archive(path)) == ["a.png", "b.png"]


def test_folder_and_archives_of_one_tree_are_the_same(tmp_path):
    paths = ["train/a/1.png", "train/b/2.png", "val/a/3.png", ".hidden", "val/notes.txt", "unlabelled/4.png"]
    root = write(tmp_path / "root", *paths)
    expected = folder(root)
    read = {}
    for item in expected:
        if isinstance(item, Item):
            with open(item.data, "rb") as file:
                read[item.name] = file.read()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root))
    for ending in PACKED[:1] + PACKED[3:]:
        with tarfile.open(tmp_path / f"a.{ending}", f"w:{ending[4:]}") as file:
            file.add(root, ".")
    for ending in ("zip", "tar", "tar.xz"):
        found = archive(tmp_path / f"a.{ending}")
        assert {item.name: item.data for item in found if isinstance(item, Item)} == read
        assert reasons(found) == reasons(expected)
        known = tree_layout(names(found))
        assert dict(zip(names(found), zip(*known, strict=True), strict=True)) == dict(
            zip(names(expected), zip(*tree_layout(names(expected)), strict=True), strict=True)
        )


BAD_PATHS = [
    "../x.jpg",
    "/abs.jpg",
    "C:\\x.jpg",
    "C:/x.jpg",
    "a\\..\\..\\b.jpg",
    "a/../../b.jpg",
    "\\\\host\\x.jpg",
    "..",
]


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_path_that_leads_out_is_refused(tmp_path, ending):
    members = [("first.png", b"1"), *((name, b"x") for name in BAD_PATHS), ("last.png", b"2")]
    found = archive(pack(tmp_path / f"a.{ending}", members))
    assert names(found) == ["first.png", "last.png"]
    assert reasons(found) == {name: ("rejected", "a path that leads out of the archive") for name in BAD_PATHS}


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_path_that_only_looks_odd_is_read(tmp_path, ending):
    odd = {
        "./a.png": "a.png", "././b.png": "b.png", "c/./d.png": "c/d.png", "e//f.png": "e/f.png",
        "note:/g.png": "note:/g.png", "h..i.png": "h..i.png", "new\nline,.png": "new\nline,.png",
        "1:2.png": "1:2.png", "a\\b.png": "a\\b.png",
    }  # fmt: skip
    found = archive(pack(tmp_path / f"a.{ending}", [(name, b"x") for name in odd]))
    assert names(found) == list(odd.values())
    assert not reasons(found)


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_duplicate_names_folders_and_junk(tmp_path, ending):
    folders = [(tarfile.TarInfo("a"), None) if ending == "tar" else ("a/", b"")]
    if ending == "tar":
        folders[0][0].type = tarfile.DIRTYPE
    members = [*folders, ("a/1.png", b"1"), ("a/1.png", b"2"), ("a/.DS_Store", b"x"), ("__MACOSX/._1.png", b"x")]
    found = archive(pack(tmp_path / f"a.{ending}", members))
    assert found[:2] == [Item("a/1.png", b"1"), Item("a/1.png", b"2")]
    assert {kind for kind, _ in reasons(found).values()} == {"ignored"}
    assert len(found) == 4


def test_names_that_are_no_text_are_written_out(tmp_path):
    path = tarred(tmp_path / "a.tar", [(os.fsdecode(b"\xff.png"), b"x")], format=tarfile.GNU_FORMAT)
    assert archive(path) == [Item("\\udcff.png", b"x")]


def test_links_and_devices_in_a_tar_are_refused(tmp_path):
    members = [("a.png", b"1")]
    kinds = {
        "sym.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE, "char.png": tarfile.CHRTYPE,
        "block.png": tarfile.BLKTYPE, "pipe.png": tarfile.FIFOTYPE, "other.png": b"Z",
    }  # fmt: skip
    for name, kind in kinds.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, None))
    found = archive(tarred(tmp_path / "a.tar", [*members, ("b.png", b"2")]))
    assert found[0] == Item("a.png", b"1")
    assert found[-1] == Item("b.png", b"2")
    link, other = "a link; in an archive only files are read", "not a regular file; in an archive only files are read"
    assert {name: reason for name, (_, reason) in reasons(found).items()} == {
        name: link if name in ("sym.png", "hard.png") else other for name in kinds
    }


def test_links_and_encryption_in_a_zip_are_refused(tmp_path):
    link, device = zipfile.ZipInfo("link.png"), zipfile.ZipInfo("device.png")
    link.external_attr, device.external_attr = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFCHR | 0o600) << 16
    path = zipped(tmp_path / "a.zip", [(link, b"/etc/passwd"), (device, b""), ("secret.png", b"x"), ("a.png", b"1")])
    content = bytearray(path.read_bytes())
    for at in (content.index(b"secret.png") - 30 + 6, content.rindex(b"secret.png") - 46 + 8):
        content[at] |= 1
    path.write_bytes(content)
    found = archive(path)
    assert names(found) == ["a.png"]
    reason = ("rejected", "a link or device; in an archive only files are read")
    assert reasons(found) == {"link.png": reason, "device.png": reason, "secret.png": ("rejected", "encrypted")}


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_of_a_zip_is_listed_and_the_rest_is_read(tmp_path, method):
    path = zipped(tmp_path / "a.zip", [("a.png", b"1"), ("b.png", CONTENT), ("c.png", b"2")], method)
    content = bytearray(path.read_bytes())
    content[content.index(b"b.png") + 1000] ^= 0xFF
    path.write_bytes(content)
    found = archive(path)
    assert names(found) == ["a.png", "c.png"]
    ((kind, reason),) = reasons(found).values()
    assert kind == "rejected"
    assert reason.startswith("damaged in the archive: ")


def test_a_method_that_is_not_known_is_listed(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.png", b"1"), ("b.png", b"2")])
    content = bytearray(path.read_bytes())
    for at in (content.index(b"b.png") - 30 + 8, content.rindex(b"b.png") - 46 + 10):
        content[at] = 9  # Deflate64, which Windows writes
    path.write_bytes(content)
    found = archive(path)
    assert names(found) == ["a.png"]
    assert "compression" in reasons(found)["b.png"][1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("said", [10, 10**9])
def test_a_size_that_is_a_lie_neither_fills_the_memory_nor_gets_through(tmp_path, method, said):
    size = {zipfile.ZIP_STORED: 100_000, zipfile.ZIP_LZMA: 100_000_000}.get(method, 40_000_000)
    path = zipped(tmp_path / "a.zip", [("a.png", bytes(size)), ("b.png", b"2")], method)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", said)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found = []
        for each in open_archive(path, data(path, "archive")).read():
            found.append(each.name if isinstance(each, Item) else each.kind)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[-1] == "b.png"
    if said == 10:
        assert found[0] == "rejected"
        assert peak < 0.7 * 40_000_000 * (2.5 if method == zipfile.ZIP_LZMA else 1)


def test_what_is_beyond_the_limit_stops_the_reading(tmp_path):
    members = [(f"{at}.png", bytes(300_000)) for at in range(8)]
    for ending in ("zip", *PACKED):
        path = pack(tmp_path / f"a.{ending}", members)
        assert len(archive(path, max_unpacked=2.5e6 / 2**30)) == 8
        source = open_archive(path, data(path, "archive", max_unpacked=1e6 / 2**30)).read()
        assert len(list(itertools.islice(source, 3))) == 3
        assert error_of(lambda source=source: list(source)).startswith(
            "data.max_unpacked is 0.000931323 GiB, and the ar"
        )


def test_a_member_beyond_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    for ending in ("zip", "tar"):
        found = archive(
            pack(tmp_path / f"a.{ending}", [("a.png", b"1"), ("b.png", bytes(1001)), ("c.png", bytes(1000))])
        )
        assert names(found) == ["a.png", "c.png"]
        assert reasons(found)["b.png"][0] == "rejected"


def test_an_archive_that_grows_a_millionfold_fills_no_memory(tmp_path):
    path = tmp_path / "a.tar.bz2"
    head = tarfile.TarInfo("a.png")
    head.size = 300_000_000
    packer = bz2.BZ2Compressor()
    with path.open("wb") as file:
        file.write(packer.compress(head.tobuf()))
        for _ in range(30):
            file.write(packer.compress(bytes(10_000_000)))
        file.write(packer.flush())
    assert path.stat().st_size < 1000
    tracemalloc.start()
    try:
        error_of(lambda: archive(path, max_unpacked=0.1))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_damage(tmp_path, kind):
    info = tarfile.TarInfo("a.png")
    info.type, info.size = kind, 2**32
    path = tmp_path / "a.tar"
    first = tarfile.TarInfo("0.png").tobuf()
    path.write_bytes(first + info.tobuf() + bytes(10240))
    assert "damaged after 1 files (a header of 4,294,967,296 bytes)" in error_of(lambda: archive(path))


def test_headers_upon_headers_are_damage(tmp_path):
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    path = tmp_path / "a.tar"
    path.write_bytes(tarfile.TarInfo("0.png").tobuf() + 3000 * (info.tobuf() + b"abc\0".ljust(512, b"\0")))
    assert "is damaged after 1 files" in error_of(lambda: archive(path))


def test_a_member_that_says_it_reaches_beyond_the_archive_does_not_hang(tmp_path):
    path = tmp_path / "a.tar"
    sparse = tarfile.TarInfo("a.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 2**60
    head = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"00000000012\0"  # ten bytes, were it unpacked
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(head + bytes(20480))
    assert error_of(lambda: archive(path)).startswith("data.max_unpacked is 200 GiB")
    for size in (2**60, -512, -1):
        info = tarfile.TarInfo("a.png")
        info.size = size
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(20480))
        try:
            assert len(archive(path)) <= 1
        except ScanError as error:
            assert "\n" not in str(error)


def test_sparse_members_are_read_with_their_holes(tmp_path):
    """As GNU tar writes them: 4 bytes at 512 of 1,000."""
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.png", "GNU.sparse.size": "1000",
        "GNU.sparse.map": "512,4",
    }  # fmt: skip
    path = tarred(tmp_path / "a.tar", [(info, b"data"), ("b.png", b"2")], format=tarfile.PAX_FORMAT)
    assert archive(path) == [Item("a.png", bytes(512) + b"data" + bytes(484)), Item("b.png", b"2")]


@pytest.mark.parametrize("ending", ["zip", *PACKED])
def test_nothing_is_written(tmp_path, ending, monkeypatch):
    path = pack(tmp_path / f"a.{ending}", [("a/1.png", CONTENT), ("../2.png", b"x")])
    kept = path.read_bytes()
    path.chmod(0o400)
    monkeypatch.chdir(tmp_path)
    archive(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == kept


def test_memory_does_not_grow_with_the_members(tmp_path, monkeypatch):
    kept = []
    check = archives._Unpacked.add

    def add(self, size):
        frame = sys._getframe(1)
        kept.append(len(frame.f_locals["archive"].members))
        check(self, size)

    monkeypatch.setattr(archives._Unpacked, "add", add)
    path = tarred(tmp_path / "a.tar", [(f"{at}.png", b"x") for at in range(300)])
    assert len(archive(path)) == 300
    assert kept == [0] * 300


TAR = [(f"{at}.png", CONTENT[: 700 * at]) for at in range(5)]


def test_a_tar_cut_off_anywhere_is_an_error(tmp_path):
    path = tarred(tmp_path / "a.tar", TAR)
    content, end = path.read_bytes(), sum(512 + -(-len(each) // 512) * 512 for _, each in TAR)
    assert content[end - 512 : end].strip(b"\0") or content[end:].count(0) == len(content) - end
    for cut in {*range(512, end, 512), *range(600, end, 377), end}:  # at a member's end too
        path.write_bytes(content[:cut])
        assert "is damaged after" in error_of(lambda: archive(path))
    path.write_bytes(content[: end + 1024])
    assert len(archive(path)) == 5  # without the padding it is whole


@pytest.mark.parametrize("ending", PACKED[1:])
def test_a_packed_tar_cut_off_anywhere_is_an_error(tmp_path, ending):
    path = tarred(tmp_path / f"a.{ending}", TAR)
    content = path.read_bytes()
    for cut in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:cut])
        error_of(lambda: archive(path))
    path.write_bytes(content[:-1])  # nothing but the checksum
    assert "is damaged after" in error_of(lambda: archive(path))


@pytest.mark.parametrize("ending", PACKED[1:])
def test_a_packed_tar_with_a_flipped_bit_is_an_error(tmp_path, ending):
    path = tarred(tmp_path / f"a.{ending}", TAR)
    content = path.read_bytes()
    for at in range(20, len(content) - 4, len(content) // 25):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            found = archive(path)
        except ScanError as error:
            assert "\n" not in str(error)
        else:
            assert found == [Item(*member) for member in TAR]  # a bit that nothing hangs on


def test_a_damaged_header_is_an_error_and_no_end(tmp_path):
    path = tarred(tmp_path / "a.tar", TAR)
    content = path.read_bytes()
    at = content.index(b"3.png")
    for damaged in (b"\xff" * 512, bytes(512)):
        path.write_bytes(content[:at] + damaged + content[at + 512 :])
        assert "is damaged after 3 files" in error_of(lambda: archive(path))
    path.write_bytes(content + content)  # two tars, one after the other
    assert "more follows the end of the archive" in error_of(lambda: archive(path))


def test_a_zip_cut_off_anywhere_is_an_error(tmp_path):
    path = zipped(tmp_path / "a.zip", TAR)
    content = path.read_bytes()
    for cut in range(10, len(content), 113):
        path.write_bytes(content[:cut])
        assert "is damaged (" in error_of(lambda: archive(path))


@given(st.data())
@hypothesis_settings(max_examples=80)
def test_flipped_bits_are_an_error_or_a_finding(tmp_path_factory, drawn):
    folder = tmp_path_factory.getbasetemp()
    ending = drawn.draw(st.sampled_from(["zip", *PACKED]))
    path = pack(folder / f"flipped.{ending}", TAR)
    content = bytearray(path.read_bytes())
    for at in drawn.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    try:
        for each in archive(path):
            each.name.encode()
    except ScanError as error:
        assert "\n" not in str(error)


def test_a_zip_that_needs_a_later_version_is_an_error(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.png", b"1")])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 99
    path.write_bytes(content)
    assert "is damaged (" in error_of(lambda: archive(path))


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    inner = zipped(tmp_path / "in.zip", [("inner.png", b"1")]).read_bytes()
    path = tarred(tmp_path / "a.tar", [("a.png", b"1"), ("in.zip", inner)])
    assert names(archive(path)) == ["a.png", "in.zip"]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"7z\xbc\xaf\x27\x1c" + bytes(600), b"Rar!\x1a\x07\0" + bytes(600), b"\x89PNG" * 300,
     gzip.compress(b"x" * 999), b"BZh9" + b"x" * 99, b"\xfd7zXZ\0" + b"x" * 99, b"\x1f\x8b"],
    ids=["empty", "text", "7z", "rar", "png", "gzip", "bzip2", "xz", "start"],
)  # fmt: skip
def test_what_is_no_archive_is_an_error_that_says_what_is_allowed(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert error_of(lambda: archive(path)) == (
        f"data.path is {path}, which is no archive that can be read; "
        "zip and tar, also with gzip, bzip2 or xz, are allowed"
    )


def test_a_folder_a_pipe_and_nothing_are_no_archives(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert error_of(lambda: archive(tmp_path)) == f"data.path is {tmp_path}, which is a folder; set data.name: folder"
    assert "which is no file" in error_of(lambda: archive(tmp_path / "pipe"))  # opening it would wait for ever
    gone = tmp_path / "gone.zip"
    for name in ("archive", "folder"):
        message = error_of(lambda name=name: open_source(data(gone, name), ROOT, tmp_path))
        assert message == f"data.path is {gone}; there is nothing at {gone}"


def test_an_archive_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", [("a.png", b"1")])

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    assert error_of(lambda: archive(path)) == f"data.path is {path}, which cannot be read: Permission denied"


@pytest.mark.parametrize("ending", ["zip", *PACKED])
def test_reading_twice_gives_the_same(tmp_path, ending):
    path = pack(tmp_path / f"a.{ending}", TAR)
    source = open_archive(path, data(path, "archive"))
    assert list(source.read()) == list(source.read()) == [Item(*member) for member in TAR]


# Signatures.


def changes(path, change_it):
    before = signature(data(path), ROOT, HOME)
    assert signature(data(path), ROOT, HOME) == before
    change_it()
    return signature(data(path), ROOT, HOME) != before


def test_a_signature_changes_with_every_file(tmp_path):
    root = write(tmp_path / "root", "a/1.png", "b/2.png")
    one, two = root / "a/1.png", root / "b/2.png"
    assert changes(root, lambda: write(root, "a/3.png"))
    assert changes(root, lambda: (root / "a/3.png").unlink())
    assert changes(root, lambda: one.rename(root / "a/4.png"))
    assert changes(root, lambda: (root / "a/4.png").rename(root / "b/4.png"))
    times = two.stat()
    two.write_bytes(b"longer than before")
    os.utime(two, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changes(root, lambda: two.write_bytes(b"short"))
    assert changes(root, lambda: os.utime(two, ns=(0, two.stat().st_mtime_ns + 1)))
    assert changes(root, lambda: (root / "link.png").symlink_to("b/2.png"))
    assert not changes(root, lambda: os.utime(two, ns=(5, two.stat().st_mtime_ns)))
    assert not changes(root, lambda: (root / "empty").mkdir())
    assert not changes(root, lambda: os.utime(root))


def test_a_size_alone_changes_a_signature(tmp_path):
    root = write(tmp_path, "a.png")

    def grow():
        times = (root / "a.png").stat()
        (root / "a.png").write_bytes(b"more than there was")
        os.utime(root / "a.png", ns=(times.st_atime_ns, times.st_mtime_ns))

    assert changes(root, grow)


def test_a_signature_reads_no_content(tmp_path, monkeypatch):
    root = write(tmp_path / "root", "a/1.png")
    path = zipped(tmp_path / "a.zip", [("a.png", b"1")])
    labels = tmp_path / "labels.csv"
    labels.write_text("source,label\n")

    def refuse(*args, **kwargs):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    found = signature(data(root, labels=str(labels)), ROOT, HOME)
    assert (found["name"], found["source"]["files"], found["source"]["bytes"]) == ("folder", 1, len("a/1.png"))
    assert found["labels"]["files"] == 1
    assert signature(data(path, "archive"), ROOT, HOME)["source"]["bytes"] == path.stat().st_size


def test_a_signature_of_an_archive_or_of_labels_changes_with_the_file(tmp_path):
    path, labels = tmp_path / "a.zip", tmp_path / "labels.csv"
    zipped(path, [("a.png", b"1")])
    labels.write_text("source,label\n")
    settings = data(path, "archive", labels=str(labels))
    before = signature(settings, ROOT, HOME)
    labels.write_text("source,label\na.png,b\n")
    middle = signature(settings, ROOT, HOME)
    zipped(path, [("a.png", b"22")])
    after = signature(settings, ROOT, HOME)
    assert before["source"] == middle["source"] != after["source"]
    assert before["labels"] != middle["labels"] == after["labels"]
    labels.unlink()
    assert error_of(lambda: signature(settings, ROOT, HOME)) == f"data.labels is {labels}; there is no file {labels}"


def test_a_named_set_is_its_name(tmp_path):
    assert signature(DIGITS, ROOT, HOME) == {"name": "digits"}


def test_imagenet_s_signature_changes_with_its_class_folders(tmp_path):
    settings, home = change(DIGITS, name="imagenet"), tmp_path / "home"
    root = write(home / "imagenet", "train/n01440764/1.JPEG", "train/n02119789/2.JPEG", "val/3.JPEG")
    fish, fox = (root / "train" / wnid for wnid in ("n01440764", "n02119789"))

    def now(home=home):
        return signature(settings, ROOT, home)

    def changed(change_it):
        """Whether what no time tells has changed, and whether anything has."""
        for folder in root.rglob("n*"):
            if folder.is_dir():
                os.utime(folder, (1, 1))  # for two changes may come within one tick of the file system's clock
        os.utime(root / "train", (1, 1))
        os.utime(root / "val", (1, 1))
        before = now()
        assert now() == before
        change_it()
        after = now()
        return after["source"]["names_and_counts"] != before["source"]["names_and_counts"], after != before

    assert changed(lambda: write(root, "train/n01440764/4.JPEG")) == (True, True)
    assert changed(lambda: (fish / "4.JPEG").unlink()) == (True, True)
    assert changed(lambda: (fish / "1.JPEG").rename(fish / "5.JPEG")) == (False, True)
    assert changed(lambda: (fish / "5.JPEG").replace(fox / "2.JPEG")) == (True, True)
    assert changed(lambda: write(root, "val/4.JPEG")) == (True, True)
    assert changed(lambda: (root / "val" / "n02119789").mkdir()) == (True, True)
    assert changed(lambda: fish.rmdir()) == (True, True)
    assert changed(lambda: os.utime(fox, (1, 2))) == (False, True)
    assert changed(lambda: write(root, "meta.bin", ".unpack.lock")) == (False, False)
    assert now()["name"] == now(tmp_path)["name"] == "imagenet"
    assert now() != now(tmp_path)


def test_the_signature_of_nothing_is_an_error(tmp_path):
    gone = tmp_path / "gone"
    assert error_of(lambda: signature(data(gone), ROOT, HOME)) == f"data.path is {gone}; there is nothing at {gone}"


def test_crc_and_zlib_are_checked(tmp_path):
    """A stored member whose bytes changed: nothing but the checksum tells."""
    path = zipped(tmp_path / "a.zip", [("a.png", CONTENT)])
    content = path.read_bytes().replace(CONTENT, CONTENT[:-1] + b"\1")
    assert zlib.crc32(CONTENT) != zlib.crc32(CONTENT[:-1] + b"\1")
    path.write_bytes(content)
    assert reasons(archive(path))["a.png"][1].startswith("damaged in the archive: Bad CRC-32")
