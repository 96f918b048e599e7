"""Which source a setting means, and how names are written and classes ordered."""

import os
from pathlib import Path

import numpy as np
import pytest

from scan_core.data.open import open_source, resolve
from scan_core.data.types import class_order, printable
from tests.scan_core.data.little_files import DIGITS, settings
from tests.tiny import refused


def test_a_named_set_needs_no_path(tmp_path):
    source = open_source(DIGITS, tmp_path / "root", tmp_path / "home")
    assert next(iter(source.read())).name == "digits/0000"


@pytest.mark.parametrize("name", ["folder", "archive", "parquet", "npy"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_with_nothing_there_is_an_error_that_says_where(tmp_path, name, absolute):
    path = tmp_path / "sub" / "images"
    data = settings(name, path if absolute else "sub/images")
    refused(lambda: open_source(data, tmp_path, tmp_path), f"data.path is {data.path}; there is nothing at {path}")


def test_a_relative_path_starts_at_the_project_and_a_tilde_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    found = [resolve(path, tmp_path) for path in ("images", "/images", "~/images")]
    assert found == [tmp_path / "images", Path("/images"), tmp_path / "me" / "images"]


def test_names_become_text_that_any_file_can_hold():
    assert printable("käfer/1.png") == "käfer/1.png"
    assert printable(os.fsdecode(b"k\xe4fer.png")) == "k\\udce4fer.png"


@pytest.mark.parametrize(("names", "wanted"), [
    ({"10", "9", "-3"}, ["-3", "9", "10"]),
    ({"1.5", "10", "2"}, ["1.5", "2", "10"]),
    ({"10", "9", "cat"}, ["10", "9", "cat"]),
    ({"10", "9", "nan"}, ["10", "9", "nan"]),
    ({"10", "9", "Infinity"}, ["10", "9", "Infinity"]),
    ({"1.0", "1", "01"}, ["01", "1", "1.0"]),
    ({"9007199254740993", "9007199254740992", "10000000000000000"},
     ["9007199254740992", "9007199254740993", "10000000000000000"]),
    ({"True", "False"}, ["False", "True"]),
    ({"b", "B", "a"}, ["B", "a", "b"]),
    (set(), []),
])  # fmt: skip
def test_numbers_are_ordered_by_value_and_others_as_text(names, wanted):
    assert class_order(names) == wanted


def test_the_home_of_a_user_that_there_is_not_is_said():
    refused(
        lambda: resolve("~nobody-has-this-name/x", Path("/")), "~nobody-has-this-name/x begins with the home of a user"
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.zip"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    kind = {".zip": "archive"}.get(Path(name).suffix, Path(name).suffix[1:])
    opened = settings(kind, tmp_path / name)
    refused(lambda: open_source(opened, tmp_path, tmp_path), "a pointer of Git LFS", "git lfs pull")


def test_a_npz_is_called_one(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((9, 8, 8), np.uint8), train_labels=np.zeros(9))
    said = "a.npz is a .npz with the arrays train_images, train_labels; save the one with the images as a .npy file"
    refused(lambda: open_source(settings("npy", tmp_path / "a.npz"), tmp_path, tmp_path), said)
