"""Names that Windows, macOS and Linux all take, and that none of them takes for one another."""

import os
import re
import unicodedata
from collections.abc import Iterable

FOLDER_BYTES = 120
FILE_BYTES = 240  # 255 are allowed; a program may add a suffix of its own
ORIGIN_BYTES = 80  # of a folder of the source that joins a name
SUFFIX_BYTES = 16  # what follows the last dot is a suffix if it is not longer
RESERVED = frozenset('<>:"/\\|?*')
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)  # Windows's own


def fold(name: str) -> str:
    """Equal for names that some file system takes for one: by upper and lower case, or by how accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def split(name: str) -> tuple[str, str]:
    """A file's stem and suffix, such as ``.JPG``, or ``""`` if it has none."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if len(os.fsencode(suffix)) <= SUFFIX_BYTES else (name, "")


def clean(text: str) -> str:
    """``text`` with an underscore for each character that some system does not take in a name."""
    return "".join("_" if each in RESERVED or _is_control(each) else each for each in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Cn", "Zl", "Zp")


def cut(text: str, limit: int) -> str:
    """The start of ``text`` that takes at most ``limit`` bytes, in whole characters."""
    return text.encode()[: max(limit, 0)].decode(errors="ignore")


def folder_name(number: int, width: int, name: str) -> str:
    """``03 daisy``, or ``03`` for a group without a name. ``width`` is how many digits the number has."""
    return cut(clean(f"{number:0{width}d} {name}"), FOLDER_BYTES).rstrip(". ")


def safe_stem(stem: str, rests: Iterable[str]) -> str:
    """``stem`` so that it can be followed by each of ``rests``, which are ``clean_rest``."""
    rests = list(rests)
    longest = max((len(rest.encode()) for rest in rests), default=0)
    found = cut(clean(stem), FILE_BYTES - longest)
    if "" in rests:
        found = found.rstrip(". ")  # Windows drops them at the end
    first, dot, more = found.partition(".")
    if DEVICES.fullmatch(first.rstrip(" ")):
        found = f"{first}_{dot}{more}"
    return found or "_"


def clean_rest(rest: str) -> str:
    """What follows a stem, such as ``.JPG.xmp``, as every system takes it."""
    return cut(clean(rest), 4 * SUFFIX_BYTES).rstrip(". ")


class Taken:
    """The names in one folder, and those that are still to be given."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {fold(each) for each in names}
        self._stems: dict[str, bool] = {}  # whether companions follow the photos of this stem

    def give(self, stem: str, folders: list[str], rests: list[str], companions: bool) -> str:
        """The stem for a photo and all that has its name, and notes it as taken.

        It is ``stem`` if no other file has one of the names. Otherwise the nearest of ``folders``, in which the photo
        is in the source, joins it, then more of them, then a number. Photos of one stem share it only if none of them
        has ``companions``: these would be taken for the other photo's.
        """
        origins = [cut(clean(each), ORIGIN_BYTES) for each in (*folders[-1:], " - ".join(folders)) if each]
        tried = ["", *origins]
        number = 1
        while True:
            for each in tried:
                found = _with_origin(stem, each, rests)
                names, key = {fold(found + rest) for rest in rests}, fold(found)
                if not names & self._names and not (key in self._stems and (companions or self._stems[key])):
                    self._names |= names
                    self._stems[key] = companions or self._stems.get(key, False)
                    return found
            number += 1
            tried = [", ".join([*origins[:1], str(number)])]


def _with_origin(stem: str, origin: str, rests: list[str]) -> str:
    """``stem (origin)``, of which the stem is cut if it is too long."""
    end = f" ({origin})" if origin else ""
    return safe_stem(stem, [end + rest for rest in rests]) + end
