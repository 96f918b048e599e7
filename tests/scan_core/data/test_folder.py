"""Folders: every file is yielded or listed with its reason, in one order. Signatures: what counts as a change."""

import contextlib
import os
import random
import socket
import stat
from pathlib import Path

import pytest

from scan_core.data.folder import open_folder, tree_layout
from scan_core.data.signature import signature
from scan_core.data.types import Item, printable
from tests.project import ROOT
from tests.scan_core.data.little_files import DIGITS, findings, names, put, settings, write
from tests.tiny import refused

HOME = ROOT / "datasets"
NAMES = [
    "a.jpg", "B.jpg", "Z/1.png", "a/1.png", "a/10.png", "a/2.png", "a-b/1.png", "a.b/1.png", "äöü/ß.png", "кот/1.png",
    "猫/一.png", "🐈/😀.png", "עברית/א.png", "new\nline,comma;\t\"q\".png", " lead and trail .png",
    "deep/er/and/er/x.png",
]  # fmt: skip


def folder(path):
    return list(open_folder(path, settings("folder", path)).read())


def sign(path, name="folder", **values):
    return signature(settings(name, path, **values), ROOT, HOME)


def deny(monkeypatch, *denied):
    """Folders of these names cannot be listed."""
    scandir = os.scandir

    def scan(path):
        if os.path.basename(path) in denied:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_all_files_come_in_the_order_of_their_bytes_whatever_the_file_systems(tmp_path, monkeypatch):
    write(tmp_path, *NAMES)
    expected = [Item(printable(name), str(tmp_path / name)) for name in sorted(NAMES, key=str.encode)]
    before, walk = sign(tmp_path), os.walk

    def shuffled(*args, **options):
        for place, subfolders, files in walk(*args, **options):
            yield place, random.sample(subfolders, len(subfolders)), random.sample(files, len(files))

    for _ in range(3):
        assert folder(tmp_path) == expected
        assert sign(tmp_path) == before
        monkeypatch.setattr(os, "walk", shuffled)


def test_bytes_that_are_not_utf8_are_written_out(tmp_path):
    try:
        write(tmp_path, "a/" + os.fsdecode(b"\xff.jpg"), "a/🐈.jpg")
    except OSError:
        pytest.skip("this file system allows only text")
    cat, item = folder(tmp_path)  # in the order of bytes, which is not that of Python's text here
    assert (cat.name, item.name) == ("a/🐈.jpg", "a/\\udcff.jpg")
    assert Path(item.data).read_bytes() == b"a/\xff.jpg"
    assert sign(tmp_path)["content"]["source"]["files"] == 2


def test_hidden_and_system_files_are_ignored_and_listed(tmp_path):
    junk = [".DS_Store", "a/._1.png", ".git/config", "__MACOSX/a/1.png", "a/Thumbs.db", "desktop.ini", "a.b/..c/1.png"]
    images = ["a/1.png", "a/x.thumbs.db.png", "my__MACOSX/1.png"]
    things = folder(write(tmp_path / ".root", *junk, *images))  # the root itself may be hidden
    assert names(things) == images
    assert findings(things) == dict.fromkeys(junk, ("ignored", "hidden or system file"))


def test_links_are_followed_and_loops_end(tmp_path):
    write(tmp_path, "out/4.png", "in/a/1.png", "in/b/2.png", "cache/files/md5/ab/cdef", "chosen/x/5.png")
    root = tmp_path / "in"
    (tmp_path / "root").symlink_to("in")  # the root itself may be a link
    (tmp_path / "out" / "back").symlink_to(root)
    dangling = ("rejected", "a link to nothing")
    read = ("ignored", "a link to a folder, whose files are read where they lie")
    links = {
        "a/file.png": ("1.png", None), "absolute.png": (root / "b/2.png", None),
        "cached.png": (tmp_path / "cache/files/md5/ab/cdef", None), "chain.png": ("cached.png", None),
        "out": ("../out", None), "again": ("../chosen", None), "twice": ("../chosen", read),
        "deep": ("../chosen/x", read), "up": ("..", read), "folder": ("a", read), "loop": (".", read),
        "b/up": ("..", read),
        "self.png": ("self.png", dangling), "x.png": ("y.png", dangling), "y.png": ("x.png", dangling),
        "gone.png": ("nothing", dangling),
    }  # fmt: skip
    for name, (target, _) in links.items():
        (root / name).symlink_to(target)
    things = folder(tmp_path / "root")
    wanted = [
        "a/1.png",
        "a/file.png",
        "absolute.png",
        "again/x/5.png",
        "b/2.png",
        "cached.png",
        "chain.png",
        "out/4.png",
    ]
    assert names(things) == wanted
    assert findings(things) == {name: finding for name, (_, finding) in links.items() if finding} | {"out/back": read}
    assert things[1] == Item("a/file.png", str(root / "a/1.png"))
    before = sign(tmp_path / "root")
    write(tmp_path, "chosen/x/6.png")
    assert sign(tmp_path / "root") != before


def test_previews_trash_and_snapshots_of_other_programs_are_no_images(tmp_path):
    junk = [
        "@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "a/#recycle/1.jpg", "#snapshot/a/1.jpg", "$RECYCLE.BIN/S-1/$R1.jpg",
        "System Volume Information/1.jpg", "lost+found/1.jpg", ".Trashes/1.jpg", ".@__thumb/1.jpg",
        "DCIM/.thumbnails/1.jpg", "~snapshot/1.jpg", "Mine.lrdata/a/1.jpg", "Picasa.ini",
        "My.photoslibrary/resources/derivatives/1.jpeg",
    ]  # fmt: skip
    photos = ["My.photoslibrary/originals/0/1.jpeg", "lrdata/1.jpg", "recycle/1.jpg", "thumbnails/1.jpg"]
    things = folder(write(tmp_path, *junk, *photos))
    assert names(things) == photos
    assert {name for name, _ in findings(things).items()} == set(junk)


def test_a_raw_file_beside_its_photo_is_no_second_one(tmp_path):
    things = folder(write(tmp_path, "a/1.CR2", "a/1.JPG", "a/2.nef", "b/1.dng", "b/1.heic", "b/2.jpg", "b/2.MOV"))
    assert names(things) == ["a/1.JPG", "a/2.nef", "b/1.heic", "b/2.MOV", "b/2.jpg"]
    assert set(findings(things).values()) == {("ignored", "the raw file of a photo that is read")}


def test_names_hold_no_control_characters(tmp_path):
    (item,) = folder(write(tmp_path, "red\x1b[31m/new\nline\u202egnp.png"))
    assert item.name == r"red\x1b[31m/new\nline\u202egnp.png"
    assert Path(item.data).exists()


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to-pipe.png").symlink_to("pipe.png")
    expected = {
        "pipe.png": "not a regular file",
        "to-pipe.png": "a link to nothing",
        "socket.png": "not a regular file",
    }
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        with contextlib.suppress(OSError):  # not allowed everywhere
            os.mknod("null.png", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            expected["null.png"] = "not a regular file"
        things = folder(tmp_path)
    assert findings(things) == {name: ("rejected", reason) for name, reason in expected.items()}
    assert not names(things)
    assert sign(tmp_path)["content"]["source"]["files"] == len(expected)


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    root = write(tmp_path / "root", "a/1.png", "b/2.png", "b.png", ".c/3.png", "d/4.png")
    deny(monkeypatch, "b", ".c")
    denied = ("rejected", "cannot be read: Permission denied")
    things = folder(root)
    assert [thing.name for thing in things] == [".c", "a/1.png", "b.png", "b", "d/4.png"]
    assert findings(things) == {"b": denied, ".c": ("ignored", "hidden or system file")}
    assert sign(root)["content"]["source"]["files"] == 3
    deny(monkeypatch, "root")
    assert findings(folder(root)) == {".": denied}


def test_what_is_not_a_folder_is_an_error_and_an_empty_one_yields_nothing(tmp_path):
    path = write(tmp_path, "a.zip") / "a.zip"
    refused(lambda: folder(path), f"data.path is {path}, which is not a folder", "set data.name: archive")
    (tmp_path / "empty" / "b").mkdir(parents=True)
    assert folder(tmp_path / "empty") == []


@pytest.mark.parametrize(("paths", "labels", "splits"), [
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
    (["Training/a/1.png", "Testing/b/2.png"], ["a", "b"], "tv"),
    (["seg_train/a/1.png", "seg_test/b/2.png"], ["a", "b"], "tv"),
    (["train2017/1.png", "val2017/2.png"], [None, None], "tv"),
    (["training_set/a/1.png", "test_set/b/2.png"], ["a", "b"], "tv"),
    (["trainset/a/1.png", "testset/b/2.png"], ["a", "b"], "tv"),
    (["train_station/1.png", "test_tube/2.png"], ["train_station", "test_tube"], None),
    (["trainer/1.png", "tester/2.png"], ["trainer", "tester"], None),
    (["over.png", "set/train/a/1.png", "set/test/b/2.png"], [None, "a", "b"], "etv"),
    (["over.png", "set/a/1.png", "set/b/2.png"], [None, "a", "b"], None),
    (["o.png", "x/o.png", "x/set/a/1.png", "x/set/b/2.png"], [None, None, "a", "b"], None),
    (["Mu\u0308ller/1.png", "M\u00fcller/2.png", "b/3.png"], ["M\u00fcller", "M\u00fcller", "b"], None),
    ([], [], None),
])  # fmt: skip
def test_folders_are_labels_and_splits(paths, labels, splits):
    kinds = {"t": "train", "v": "val", "e": "extra"}
    expected = [kinds[letter] for letter in splits] if splits else [None] * len(paths)
    assert tree_layout(paths) == (labels, expected)


def test_folders_called_train_and_test_may_be_classes():
    assert tree_layout(["train/1.png", "test/2.png"], with_split=False) == (["train", "test"], [None, None])


# --- signatures


def touch(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def relink(path, target):
    path.unlink()
    path.symlink_to(target)


def rewrite(path, content):
    """Another content at the same time."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(("change_it", "content", "mtimes"), [
    (lambda root: write(root, "a/3.png"), True, True),
    (lambda root: (root / "a/1.png").unlink(), True, True),
    (lambda root: (root / "a/1.png").rename(root / "a/4.png"), True, True),
    (lambda root: (root / "a/1.png").rename(root / "b/1.png"), True, True),
    (lambda root: rewrite(root / "a/1.png", b"longer than before"), True, False),
    (lambda root: rewrite(root / "a/1.png", b"A/1.PNG"), False, False),  # no content is read
    (lambda root: (rewrite(root / "c.png", b"b/22.png"), rewrite(root / "b/22.png", b"c.png")), True, False),
    (lambda root: touch(root / "a/1.png"), False, True),
    (lambda root: os.chmod(root / "a/1.png", 0), False, True),
    (lambda root: relink(root / "link.png", "./a/1.png"), False, True),
    (lambda root: relink(root / "link.png", "b/22.png"), True, True),
    (lambda root: relink(root / "gone.png", "nowhere"), False, True),
    (lambda root: os.utime(root / "a/1.png", ns=(5, (root / "a/1.png").stat().st_mtime_ns)), False, False),
    (lambda root: (root / "empty").mkdir(), False, False),
    (lambda root: touch(root), False, False),
])  # fmt: skip
def test_a_signature_tells_changes_of_content_from_changes_of_times(tmp_path, change_it, content, mtimes):
    write(tmp_path, "a/1.png", "b/22.png", "c.png")
    (tmp_path / "link.png").symlink_to("a/1.png")
    (tmp_path / "gone.png").symlink_to("nothing")
    before = sign(tmp_path)
    assert sign(tmp_path) == before
    change_it(tmp_path)
    after = sign(tmp_path)
    assert {key: after[key] != before[key] for key in before} == {"content": content, "mtimes": mtimes}


def test_a_signature_of_an_archive_or_of_labels_reads_no_content_and_changes_with_the_file(tmp_path, monkeypatch):
    put(tmp_path, {"a.zip": b"1", "labels.csv": b"source,label\n"})
    path, labels = tmp_path / "a.zip", tmp_path / "labels.csv"
    with monkeypatch.context() as patch:
        for name in ("builtins.open", "io.open"):
            patch.setattr(name, None)
        first = sign(path, "archive", labels=str(labels))
    assert first["content"]["source"]["bytes"] == 1 and first["content"]["labels"]["files"] == 1
    labels.write_text("source,label\na.png,b\n")
    second = sign(path, "archive", labels=str(labels))
    path.write_bytes(b"22")
    third = sign(path, "archive", labels=str(labels))
    sources, labelings = ([each["content"][key] for each in (first, second, third)] for key in ("source", "labels"))
    assert sources[0] == sources[1] != sources[2] and labelings[0] != labelings[1] == labelings[2]
    assert len({each["mtimes"] for each in (first, second, third)}) == 3
    labels.unlink()
    refused(lambda: sign(path, "archive", labels=str(labels)), f"data.labels is {labels}; there is no file {labels}")
    refused(lambda: sign(tmp_path / "x"), f"data.path is {tmp_path / 'x'}; there is nothing at {tmp_path / 'x'}")


def test_imagenets_signature_changes_with_its_class_folders(tmp_path):
    root = write(tmp_path / "imagenet", "train/n01440764/1.JPEG", "train/n02119789/2.JPEG", "val/3.JPEG")
    fish, fox = (root / "train" / wnid for wnid in ("n01440764", "n02119789"))

    def changed(change_it):
        """Whether the content has changed, and whether anything has."""
        for path in [root / "train", root / "val", *root.glob("*/n*")]:
            os.utime(path, (1, 1))  # because two changes may come within one tick of the file system's clock
        before = signature(settings("imagenet"), ROOT, tmp_path)
        assert signature(settings("imagenet"), ROOT, tmp_path) == before
        change_it()
        after = signature(settings("imagenet"), ROOT, tmp_path)
        return after["content"] != before["content"], after != before

    assert changed(lambda: write(root, "train/n01440764/4.JPEG")) == (True, True)
    assert changed(lambda: (fish / "4.JPEG").unlink()) == (True, True)
    assert changed(lambda: (fish / "1.JPEG").rename(fish / "5.JPEG")) == (False, True)
    assert changed(lambda: (fish / "5.JPEG").replace(fox / "2.JPEG")) == (True, True)
    assert changed(lambda: write(root, "val/4.JPEG")) == (True, True)
    assert changed(lambda: (root / "val" / "n02119789").mkdir()) == (True, True)
    assert changed(fish.rmdir) == (True, True)
    assert changed(lambda: os.utime(fox, (1, 2))) == (False, True)
    assert changed(lambda: write(root, "meta.bin", ".unpack.lock")) == (False, False)
    assert signature(settings("imagenet"), ROOT, tmp_path / "none")["content"]["name"] == "imagenet"
    assert signature(DIGITS, ROOT, tmp_path)["content"] == {"name": "digits"}  # the other sets are their names
