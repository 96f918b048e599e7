"""Archives: every file is yielded or listed with its reason, nothing is written, and no damage passes unnoticed."""

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import random
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from io import BytesIO
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scan_core.data import archive as archives
from scan_core.data.archive import open_archive
from scan_core.data.folder import open_folder
from scan_core.data.types import Item
from scan_core.errors import ScanError
from tests.scan_core.data.little_files import findings, names, settings, tar_bytes, write
from tests.tiny import refused

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
PACKINGS = ["", "gz", "bz2", "xz"]
FORMS = ["zip", *PACKINGS]
CONTENT = random.Random(0).randbytes(3000) + bytes(3000)
FILES = [(f"{number}.png", CONTENT[: 700 * number]) for number in range(5)]
GIB = 2**30


def opened(path, **values):
    return open_archive(path, settings("archive", path, **values))


def read(path, content, **values):
    """What an archive of these bytes yields."""
    path.write_bytes(content)
    return list(opened(path, **values).read())


def zip_bytes(members, method=zipfile.ZIP_STORED):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = method
            file.writestr(info, content)
    return buffer.getvalue()


def packed(form, members):
    return zip_bytes(members) if form == "zip" else tar_bytes(members, form)


def tar_info(name, kind=tarfile.REGTYPE, **values):
    info = tarfile.TarInfo(name)
    for key, value in {"type": kind, **values}.items():
        setattr(info, key, value)
    return info


def set_flags(content, name, offset, value):
    """A zip whose member has another value in its header and, two bytes on, in the directory."""
    content = bytearray(content)
    for at in (content.index(name) - 30 + offset, content.rindex(name) - 46 + offset + 2):
        content[at] = value
    return content


@contextlib.contextmanager
def little_memory():
    """At most 20 MB are taken inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


LONG = "long/" * 60 + "name.png"
MEMBERS = [("a/1.png", CONTENT), ("b/2.png", b""), ("ß/猫.png", b"x" * 100000), (LONG, b"long")]


TAR_FORMS = itertools.product(PACKINGS, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))


@pytest.mark.parametrize("form", [*METHODS, *TAR_FORMS], ids=str)
def test_an_archive_of_any_packing_is_read_and_again_the_same(tmp_path, form):
    path = tmp_path / "images"  # the ending of the name means nothing
    path.write_bytes(zip_bytes(MEMBERS, form) if form in METHODS else tar_bytes(MEMBERS, form[0], format=form[1]))
    source = opened(path)
    assert list(source.read()) == list(source.read()) == [Item(*member) for member in MEMBERS]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_packing_in_several_streams_is_read_to_the_end(tmp_path, compress):
    plain = tar_bytes(FILES)  # pbzip2 and pixz pack in pieces
    assert len(read(tmp_path / "a", compress(plain[:4000]) + compress(plain[4000:]))) == 5


def test_folder_and_archives_of_one_tree_are_the_same(tmp_path):
    paths = ["train/a/1.png", "train/b/2.png", "val/a/3.png", ".hidden", "val/notes.txt", "unlabelled/4.png"]
    root = write(tmp_path / "root", *paths)
    expected = list(open_folder(root, settings("folder", root)).read())
    for ending in ("zip", "tar"):
        shutil.make_archive(str(tmp_path / "a"), ending, root)
        source = opened(tmp_path / f"a.{ending}")
        things = list(source.read())
        assert sorted(names(things)) == names(expected) and findings(things) == findings(expected)
        assert source.layout(["train/a/1.png", "val/b/2.png"]) == (["a", "b"], ["train", "val"])
        assert all(thing.data == thing.name.encode() for thing in things if isinstance(thing, Item))


def test_sparse_members_are_read_with_their_holes(tmp_path):
    """As GNU tar writes them: 4 bytes at 512 of 1,000."""
    sparse = {"major": "0", "minor": "1", "name": "a.png", "size": "1000", "map": "512,4"}
    info = tar_info("a.png", pax_headers={f"GNU.sparse.{key}": value for key, value in sparse.items()})
    things = read(tmp_path / "a", tar_bytes([(info, b"data"), ("b.png", b"2")], format=tarfile.PAX_FORMAT))
    assert things == [Item("a.png", bytes(512) + b"data" + bytes(484)), Item("b.png", b"2")]


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    content = tar_bytes([("a.png", b"1"), ("in.zip", zip_bytes([("inner.png", b"1")]))])
    assert names(read(tmp_path / "a", content)) == ["a.png", "in.zip"]


@pytest.mark.parametrize("form", ["zip", "gz"])
def test_nothing_is_written(tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = packed(form, [("a/1.png", CONTENT), ("../2.png", b"x")])
    read(tmp_path / "a", content)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == content


def test_names_in_a_zip_are_read_as_the_program_that_wrote_them_meant(tmp_path):
    """macOS writes UTF-8 without saying so, Windows' old tools backslashes."""
    members = []
    for name, system in (("a/M\u00fcller.png", 3), ("b\\c\\1.png", 0), ("a\\b.png", 3)):
        info = zipfile.ZipInfo(name)
        info.create_system = system
        members.append((info, b"x"))
    assert names(read(tmp_path / "a", unflagged(zip_bytes(members)))) == ["a/M\u00fcller.png", "b/c/1.png", "a\\b.png"]


def unflagged(content):
    """A zip whose names are not said to be UTF-8."""
    data = bytearray(content)
    for start, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.find(start)
        while place >= 0:
            data[place + at + 1] &= ~8
            place = data.find(start, place + 1)
    return bytes(data)


def test_a_raw_file_beside_its_photo_is_no_second_one(tmp_path):
    things = read(tmp_path / "a", zip_bytes([("1.CR2", b"x"), ("1.JPG", b"x"), ("2.NEF", b"x")]))
    assert names(things) == ["1.JPG", "2.NEF"]
    assert findings(things) == {"1.CR2": ("ignored", "the raw file of a photo that is read")}


LEADS_OUT = [
    "../x.jpg", "/abs.jpg", "C:\\x.jpg", "C:/x.jpg", "a\\..\\..\\b.jpg", "a/../../b.jpg", "\\\\host\\x.jpg", "..",
]  # fmt: skip
ODD = {
    "./a.png": "a.png", "././b.png": "b.png", "c/./d.png": "c/d.png", "e//f.png": "e/f.png", "h..i.png": "h..i.png",
    "note:/g.png": "note:/g.png", "new\nline,.png": "new\\nline,.png", "1:2.png": "1:2.png", "a\\b.png": "a\\b.png",
}  # fmt: skip
JUNK = ["a/.DS_Store", "__MACOSX/._1.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["zip", ""])
def test_paths_that_lead_out_and_junk_are_listed_and_odd_ones_are_read(tmp_path, form):
    folder = ("a/", b"") if form == "zip" else (tar_info("a", tarfile.DIRTYPE), None)
    members = [(name, b"x") for name in [*LEADS_OUT, *JUNK, *ODD]]
    things = read(tmp_path / "a", packed(form, [folder, *members, ("twice.png", b"1"), ("twice.png", b"2")]))
    assert names(things) == [*ODD.values(), "twice.png", "twice.png"] and things[-1].data == b"2"
    assert findings(things) == {
        **dict.fromkeys(LEADS_OUT, ("rejected", "a path that leads out of the archive")),
        **dict.fromkeys(JUNK, ("ignored", "hidden or system file")),
    }


def test_names_that_are_not_utf8_are_written_out(tmp_path):
    content = tar_bytes([(os.fsdecode(b"\xff.png"), b"x")], format=tarfile.GNU_FORMAT)
    assert read(tmp_path / "a", content) == [Item("\\udcff.png", b"x")]


def test_links_and_devices_in_a_tar_are_refused(tmp_path):
    device, link = "not a regular file; in an archive only files are read", "a link; in an archive only files are read"
    kinds = {
        "sym.png": (tarfile.SYMTYPE, link), "hard.png": (tarfile.LNKTYPE, link), "char.png": (tarfile.CHRTYPE, device),
        "block.png": (tarfile.BLKTYPE, device), "pipe.png": (tarfile.FIFOTYPE, device),
    }  # fmt: skip
    infos = [(tar_info(name, kind, linkname="/etc/passwd"), None) for name, (kind, _) in kinds.items()]
    things = read(tmp_path / "a", tar_bytes([("a.png", b"1"), *infos, ("b.png", b"2")]))
    assert names(things) == ["a.png", "b.png"]
    assert findings(things) == {name: ("rejected", reason) for name, (_, reason) in kinds.items()}


def test_links_devices_encryption_and_unknown_methods_in_a_zip_are_refused(tmp_path):
    link, device = zipfile.ZipInfo("link.png"), zipfile.ZipInfo("device.png")
    link.external_attr, device.external_attr = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFCHR | 0o600) << 16
    members = [(link, b"/etc"), (device, b""), ("secret.png", b"x"), ("deflate64.png", b"x"), ("a.png", b"1")]
    content = set_flags(zip_bytes(members), b"secret.png", 6, 1)
    things = read(tmp_path / "a", set_flags(content, b"deflate64.png", 8, 9))
    assert names(things) == ["a.png"]
    assert "compression" in findings(things)["deflate64.png"][1]
    reason = ("rejected", "a link or device; in an archive only files are read")
    expected = {"link.png": reason, "device.png": reason, "secret.png": ("rejected", "encrypted")}
    assert findings(things).items() >= expected.items()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_beyond_the_limits_is_not_read(tmp_path, monkeypatch, form):
    content = packed(form, [(f"{number}.png", bytes(300_000)) for number in range(8)])
    assert len(read(tmp_path / "a", content, max_unpacked=2.5e6 / GIB)) == 8
    things = opened(tmp_path / "a", max_unpacked=1e6 / GIB).read()
    assert len(list(itertools.islice(things, 3))) == 3
    refused(lambda: list(things), "data.max_unpacked is 0.000931323 GiB, and", "holds more")
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    content = packed(form, [("a.png", b"1"), ("b.png", bytes(1001)), ("c.png", bytes(1000))])
    things = read(tmp_path / "a", content)
    assert names(things) == ["a.png", "c.png"] and findings(things)["b.png"][0] == "rejected"


def test_a_packed_tar_is_unpacked_in_bounded_pieces(tmp_path):
    path, packer = tmp_path / "a", bz2.BZ2Compressor()
    head = tar_info("a.png", size=300_000_000)
    pieces = [packer.compress(piece) for piece in (head.tobuf(), *[bytes(10_000_000)] * 30)]
    path.write_bytes(b"".join(pieces) + packer.flush())
    assert path.stat().st_size < 1000
    with little_memory():
        refused(lambda: list(opened(path, max_unpacked=0.1).read()), "data.max_unpacked")


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_zip_that_understates_a_size_fills_no_memory(tmp_path, method):
    content = bytearray(zip_bytes([("a.png", bytes(40_000_000)), ("b.png", b"2")], method))
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, 10)
    (tmp_path / "a").write_bytes(content)
    with little_memory():
        things = list(opened(tmp_path / "a").read())
    assert names(things) == ["b.png"] and findings(things)["a.png"][0] == "rejected"


# --- damage


def test_a_tar_cut_off_anywhere_is_an_error(tmp_path):
    content = tar_bytes(FILES)
    end = sum(512 + -(-len(data) // 512) * 512 for _, data in FILES)
    for cut in {*range(512, end + 1, 512), *range(600, end, 377)}:  # also at the end of a member
        refused(lambda cut=cut: read(tmp_path / "a", content[:cut]), "is damaged after")
    assert len(read(tmp_path / "a", content[: end + 1024])) == 5  # without the padding it is whole


@pytest.mark.parametrize("form", ["zip", *PACKINGS[1:]])
def test_a_packed_archive_cut_off_anywhere_is_an_error(tmp_path, form):
    content = packed(form, FILES)
    for cut in {*range(10, len(content), len(content) // 40), len(content) - 1}:  # also within the last checksum
        said = ["is damaged after"] if form == "zip" or cut == len(content) - 1 else []
        refused(lambda cut=cut: read(tmp_path / "a", content[:cut]), *said)


def test_a_damaged_header_is_an_error_and_not_the_end(tmp_path):
    content = tar_bytes(FILES)
    at = content.index(b"3.png")
    for damaged in (b"\xff" * 512, bytes(512)):
        refused(lambda d=damaged: read(tmp_path / "a", content[:at] + d + content[at + 512 :]), "damaged after 3 files")
    refused(lambda: read(tmp_path / "a", content + content), "does not end as a tar does")  # two tars in a row
    info = tar_info("a", tarfile.GNUTYPE_LONGNAME, size=4)
    headers = 3000 * (info.tobuf() + b"abc\0".ljust(512, b"\0"))  # deeper than Python's stack
    refused(lambda: read(tmp_path / "a", tarfile.TarInfo("0.png").tobuf() + headers), "is damaged after 1 files")


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_of_a_zip_is_listed_and_the_rest_is_read(tmp_path, method):
    content = bytearray(zip_bytes([("a.png", b"1"), ("b.png", CONTENT), ("c.png", b"2")], method))
    content[content.index(b"b.png") + 1000] ^= 0xFF  # of a stored member only the checksum tells
    things = read(tmp_path / "a", content)
    assert names(things) == ["a.png", "c.png"]
    ((kind, reason),) = findings(things).values()
    assert kind == "rejected" and reason.startswith("damaged in the archive: ")


def test_a_zip_that_needs_a_later_version_is_an_error(tmp_path):
    content = bytearray(zip_bytes([("a.png", b"1")]))
    content[content.index(b"PK\1\2") + 6] = 99
    refused(lambda: read(tmp_path / "a", content), "is damaged after 0 files", "version 9.9")


@given(st.data())
@hypothesis_settings(max_examples=120)
def test_flipped_bits_are_an_error_or_a_finding(tmp_path_factory, drawn):
    form = drawn.draw(st.sampled_from(FORMS))
    content = bytearray(packed(form, FILES))
    for at in drawn.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[at // 8] ^= 1 << at % 8
    try:
        things = read(tmp_path_factory.getbasetemp() / "flipped", content)
    except ScanError as error:
        assert "\n" not in str(error)
    else:
        assert all(thing.name.encode() for thing in things)
        if form in PACKINGS[1:]:  # the checksum tells, unless the bits mean nothing
            assert things == [Item(*member) for member in FILES]


NO_ARCHIVES = {
    "empty": b"", "text": b"hello", "7z": b"7z\xbc\xaf\x27\x1c" + bytes(600), "rar": b"Rar!\x1a\x07\0" + bytes(600),
    "png": b"\x89PNG" * 300, "gzip": gzip.compress(b"x" * 999), "bzip2": b"BZh9" + b"x" * 99,
    "xz": b"\xfd7zXZ\0" + b"x" * 99, "start": b"\x1f\x8b",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_what_is_not_an_archive_is_an_error_that_says_what_is_allowed(tmp_path, content):
    said = (
        f"data.path is {tmp_path / 'a'}, which is not an archive that can be read; zip and tar, also with gzip, bzip2"
    )
    refused(lambda: read(tmp_path / "a", content), said)


def test_a_folder_a_pipe_and_an_unreadable_file_are_not_archives(tmp_path, monkeypatch):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    refused(lambda: opened(tmp_path), f"data.path is {tmp_path}, which is a folder; set data.name: folder")
    refused(lambda: opened(path), "which is not a file")  # opening it would wait forever
    path.unlink()
    path.write_bytes(zip_bytes(FILES))
    monkeypatch.setattr(type(path), "open", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    refused(lambda: opened(path), f"data.path is {path}, which cannot be read: Permission denied")
