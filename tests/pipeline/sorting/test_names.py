"""Names: every system takes them, and none takes two of them for one."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sorting.names import FILE_BYTES, FOLDER_BYTES, Taken, clean_rest, fold, folder_name, safe_stem, split

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")}
odd = st.text(st.sampled_from('aAäß. <>:"/\\|?*\x00\x1f\x7f\n\u2028\ud800😀CONnulLPT1') | st.characters(), max_size=300)


def is_safe(name):
    """What Windows, macOS and Linux say of a name, written from their rules and not from the code."""
    allowed = all(each not in '<>:"/\\|?*' and ord(each) >= 32 and ord(each) != 127 for each in name)
    device = name.split(".")[0].strip(" ").casefold() in DEVICES
    return bool(name) and allowed and not device and name[-1] not in ". " and len(name.encode()) <= 255


@given(st.integers(1, 99_999), odd)
def test_folders_are_taken_everywhere_and_apart_by_their_number(number, name):
    made = folder_name(number, 2, name)
    assert is_safe(made) and len(made.encode()) <= FOLDER_BYTES
    assert fold(made) != fold(folder_name(number + 1, 2, name))


@pytest.mark.parametrize(("number", "width", "name", "folder"), [
    (3, 2, "daisy", "03 daisy"), (3, 3, "", "003"), (12, 2, "a/b: c?", "12 a_b_ c_"),
    (1, 2, "St. Moritz.", "01 St. Moritz"), (1, 2, "CON", "01 CON"), (1, 2, "é" * 200, "01 " + "é" * 58),
    (7, 2, "tab\there", "07 tab_here"), (7, 2, "... ", "07"),
])  # fmt: skip
def test_a_folder_has_the_number_and_the_name(number, width, name, folder):
    assert folder_name(number, width, name) == folder


@given(odd, st.lists(odd, min_size=1, max_size=3))
def test_files_are_taken_everywhere(stem, rests):
    rests = [clean_rest(rest) for rest in rests]
    made = safe_stem(stem, rests)
    assert all(is_safe(made + rest) and len((made + rest).encode()) <= FILE_BYTES for rest in rests)


@pytest.mark.parametrize(("stem", "rest", "name"), [
    ("IMG_0001", ".JPG", "IMG_0001.JPG"), ("con", ".jpg", "con_.jpg"), ("Aux.2", ".jpg", "Aux_.2.jpg"),
    ("a:b", ".jp?g", "a_b.jp_g"), ("nul ", ".jpg", "nul _.jpg"), ("a ", ".jpg", "a .jpg"), ("a. ", "", "a"),
    ("", ".jpg", "_.jpg"), ("com1", "", "com1_"),
    ("Schnee 雪", ".HEIC", "Schnee 雪.HEIC"), ("console", ".jpg", "console.jpg"),
])  # fmt: skip
def test_a_file_keeps_its_name_if_it_can(stem, rest, name):
    rest = clean_rest(rest)
    assert safe_stem(stem, [rest]) + rest == name


def test_a_long_dot_is_no_suffix():
    assert split("a.tar.gz") == ("a.tar", ".gz") and split("a. very long sentence ends here") == (
        "a. very long sentence ends here", "",
    )  # fmt: skip


@given(st.lists(st.tuples(
    st.sampled_from(["IMG", "img", "Img (2)", "IMG (a)", "é", unicodedata.normalize("NFD", "é"), "x" * 300, "X" * 300]),
    st.sampled_from([[], ["a"], ["A"], ["b", "a"], ["c", "a"], ["y" * 300]]),
    st.sampled_from([[".JPG"], [".jpg"], [".JPG", ".CR2"], [".png", ".JPG.xmp"]]),
    st.booleans(),
), max_size=12))  # fmt: skip
def test_names_in_a_folder_stay_apart_and_are_the_same_each_time(photos):
    given_twice = []
    for _ in range(2):
        taken = Taken(["IMG.jpg"])
        given_twice.append([taken.give(*photo) for photo in photos])
    assert given_twice[0] == given_twice[1]
    found = [fold(stem + rest) for stem, (*_, rests, _) in zip(given_twice[0], photos, strict=True) for rest in rests]
    assert len({*found, fold("IMG.jpg")}) == len(found) + 1
    assert all(is_safe(stem + rest) for stem, photo in zip(given_twice[0], photos, strict=True) for rest in photo[2])


def test_the_nearest_folder_joins_the_name_then_more_then_a_number():
    taken = Taken([])
    given_names = [taken.give("IMG", folders, [".JPG"], False) for folders in (
        ["a", "100"], ["b", "100"], ["c", "100"], ["c", "100"], [], [],
    )]  # fmt: skip
    assert given_names == ["IMG", "IMG (100)", "IMG (c - 100)", "IMG (100, 2)", "IMG (2)", "IMG (3)"]


def test_photos_of_one_stem_stay_apart_if_one_has_companions():
    taken = Taken([])
    assert [taken.give("IMG", ["a"], [".JPG"], False), taken.give("IMG", ["b"], [".PNG"], False)] == ["IMG", "IMG"]
    assert taken.give("img", ["c"], [".HEIC", ".MOV"], True) == "img (c)"
    assert taken.give("IMG (c)", ["d"], [".GIF"], False) == "IMG (c) (d)"
