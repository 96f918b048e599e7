"""Images in a zip or a tar, read one by one and never unpacked to disk: no name in an archive can lead anywhere."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from scan_core.data.download import one_line
from scan_core.data.folder import RAW_FILE, SYSTEM_FILE, is_junk, is_raw_of, photos_of, tree_layout
from scan_core.data.settings import Data
from scan_core.data.types import Finding, Item, Source, printable
from scan_core.errors import ScanError

GIB = 2**30
MAX_MEMBER = GIB  # a member is read into memory, and no photo comes near this size
PIECE = 2**16
ZIP_UTF8, ZIP_DOS = 0x800, 0  # flag of a member; the system that separates folders by backslashes


class _Member(NamedTuple):
    """One file in an archive."""

    name: str
    size: int  # bytes when unpacked, as the archive states it
    problem: str | None  # why it is not to be opened
    is_raw: bool  # the raw file of a photo that is in the archive, too; a tar does not tell in advance
    open: Callable[[], IO[bytes] | None]


def open_archive(path: Path, settings: Data) -> Source:
    """All files in a zip or tar, in the archive's order. Raises ``ScanError`` if ``path`` is neither."""
    if path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is a folder; set data.name: folder")
    if not path.is_file():
        raise ScanError(f"data.path is {settings.path}, which is not a file; the path of a zip or tar is allowed")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ScanError(f"data.path is {settings.path}, which cannot be read: {error.strerror}") from None
    layout = partial(tree_layout, with_split=settings.split == "source")
    with suppress(Exception):  # damaged gzip, bzip2 and xz each raise their own
        if tarfile.is_tarfile(path):  # asked first, because zipfile takes a tar whose last file is a zip for that zip
            return Source(lambda: _read(path, settings, _tar_members(path)), layout=layout)
    if start == b"PK\3\4" or zipfile.is_zipfile(path):
        return Source(lambda: _read(path, settings, _zip_members(path)), layout=layout)
    raise ScanError(
        f"data.path is {settings.path}, which is not an archive that can be read; zip and tar, also with gzip, bzip2 "
        "or xz, are allowed"
    )


def _read(path: Path, settings: Data, members: Iterator[_Member]) -> Iterator[Item | Finding]:
    """The files of an archive. Raises ``ScanError`` if the archive is damaged or larger than ``max_unpacked``."""
    count = unpacked = 0
    try:
        for member in members:
            unpacked += member.size
            if unpacked > settings.max_unpacked * GIB:
                limit = f"{settings.max_unpacked:g} GiB"
                raise ScanError(f"data.max_unpacked is {limit}, and {path} holds more; raise it if that is intended")
            yield _item(member)
            count += 1
    except ScanError:
        raise
    except Exception as error:  # noqa: BLE001 (damage makes tarfile and zipfile raise anything)
        reason = one_line(error)
        raise ScanError(f"{path} is damaged after {count:,} files ({reason}); copy or download it again") from None


def _item(member: _Member) -> Item | Finding:
    # "./a//b" is "a/b". A leading slash stays, so that the path is refused.
    parts = [part for at, part in enumerate(member.name.split("/")) if part != "." and (part or not at)]
    name = printable("/".join(parts))
    folders = "/".join(parts).replace("\\", "/").split("/")
    if not folders[0] or folders[0][1:] == ":" or ".." in folders:
        return Finding(name, "rejected", "a path that leads out of the archive")
    if is_junk(name):
        return Finding(name, "ignored", SYSTEM_FILE)
    if member.is_raw:
        return Finding(name, "ignored", RAW_FILE)
    if member.problem:
        return Finding(name, "rejected", member.problem)
    if member.size > MAX_MEMBER:
        return Finding(name, "rejected", f"larger than {MAX_MEMBER / GIB:g} GiB")
    try:
        file = member.open()
        assert file is not None  # tarfile returns None for what is not a file
        with file:
            content = file.read(member.size + 1)  # bounded, because the archive may understate the size
    except Exception as error:  # noqa: BLE001 (each compression raises its own)
        return Finding(name, "rejected", f"damaged in the archive: {one_line(error)}")
    return Item(name, content)


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        photos = photos_of(map(_zip_name, archive.infolist()))
        for info in archive.infolist():
            name = _zip_name(info)
            if name.endswith("/") and not info.file_size:
                continue
            problem = "encrypted" if info.flag_bits & 1 else None
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                problem = "a link or device; in an archive only files are read"
            yield _Member(name, info.file_size, problem, is_raw_of(name, photos), partial(archive.open, info))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name. zipfile takes each that is not said to be UTF-8 for IBM's code page of 1981."""
    name = info.filename
    if not info.flag_bits & ZIP_UTF8 and not name.isascii():
        with suppress(UnicodeError):  # macOS writes UTF-8 without a word
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system == ZIP_DOS else name


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isdir():
                continue
            kind = "a link" if info.issym() or info.islnk() else "not a regular file"
            problem = None if info.isreg() else f"{kind}; in an archive only files are read"
            yield _Member(info.name, info.size, problem, False, partial(archive.extractfile, info))
        # tarfile takes an archive that is cut off, or that has a damaged header, for a shorter one: a whole archive
        # ends in a block of zeros, and only zeros follow. Reading them also checks the compression's checksum.
        file = archive.fileobj
        ended = file.tell() >= archive.offset + tarfile.BLOCKSIZE
        while ended and (rest := file.read(PIECE)):
            ended = not rest.strip(b"\0")
        if not ended:
            raise tarfile.ReadError("it does not end as a tar does")
