"""Images in a folder or in an archive, found by walking; an archive is read as a stream and never unpacked.

Where files lie says what they are only after all of them are known: see ``tree_layout``.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from scan_core.errors import ScanError
from scan_core.settings import SOURCES_WITH_PATH, Data
from scan_core.sources import Finding, Item, Source, Split, located, printable, resolve

GIB = 2**30
LARGEST_MEMBER = GIB  # of an archive, which is read into memory; no photo comes near
LARGEST_HEADER = 2**18  # of a tar: a long name or extended attributes
PIECE = 2**16
HELD_OUT = ("val", "valid", "validation", "test")
UNLABELLED = ("unlabelled", "unlabeled")
JUNK = ("thumbs.db", "desktop.ini")
HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
TAR_ERRORS = (
    tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error, lzma.LZMAError
)  # fmt: skip


def tree_layout(names: Sequence[str]) -> tuple[list[str | None], list[Split | None]]:
    """Labels and splits of images by the folders they lie in, (N,) each.

    Folders that all images share mean nothing. Then ``train`` beside ``val`` (or ``valid``, ``validation``, ``test``)
    is an official split, in which ``unlabelled`` holds what is beyond it. The next folder is the class; an image in
    none, or in ``unlabelled``, has no label.
    """
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it compares whole folders)
    folders = [parts[shared:] for parts in folders]
    tops = {parts[0].lower() for parts in folders if parts}
    official = "train" in tops and not tops.isdisjoint(HELD_OUT)
    labels: list[str | None] = []
    splits: list[Split | None] = []
    for parts in folders:
        split: Split | None = None
        if official:
            top = parts[0].lower() if parts else "train"
            split = "val" if top in HELD_OUT else "extra" if top in UNLABELLED else "train"
            if top == "train" or split == "val":
                parts = parts[1:]
        labels.append(parts[0] if parts and parts[0].lower() not in UNLABELLED else None)
        splits.append(split)
    return labels, splits


def open_folder(path: Path, settings: Data) -> Source:
    """All files below ``path``, sorted by their names' bytes. Raises ``ScanError`` where it is no folder."""
    if not path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is no folder; for a zip or tar set data.name: archive")
    return Source(read=lambda: _walk(path), layout=tree_layout)


def _walk(root: Path) -> Iterator[Item | Finding]:
    inside = os.path.realpath(root)
    for entry, name in walk(os.fspath(root), ""):
        shown = printable(name)
        if is_junk(name) and name != ".":
            yield Finding(shown, "ignored", "hidden or system file")
        elif isinstance(entry, OSError):
            yield Finding(shown, "rejected", f"cannot be read: {entry.strerror}")
        elif entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.commonpath([inside, target]) != inside:
                yield Finding(shown, "rejected", "a link that leads out of the folder")
            elif os.path.isdir(target):
                yield Finding(shown, "ignored", "a link to a folder, whose files are read where they lie")
            elif os.path.isfile(target):
                yield Item(shown, target)
            else:
                yield Finding(shown, "rejected", "a link to nothing")
        elif entry.is_file(follow_symlinks=False):
            yield Item(shown, entry.path)
        else:
            yield Finding(shown, "rejected", "not a regular file")  # opening a pipe would wait for ever


def walk(folder: str, prefix: str) -> Iterator[tuple["os.DirEntry[str] | OSError", str]]:
    """Everything below ``folder`` that is no folder, with its path from there; or why a folder cannot be read."""
    waiting = _entries(folder, prefix)  # and no recursion: folders may lie deeper than Python's stack
    while waiting:
        entry, name = waiting.pop()
        if not isinstance(entry, OSError) and entry.is_dir(follow_symlinks=False):
            waiting += _entries(entry.path, f"{name}/")
        else:
            yield entry, name


def _entries(folder: str, prefix: str) -> list[tuple["os.DirEntry[str] | OSError", str]]:
    """What lies in a folder, last first. A folder sorts as its files' paths do: with a slash."""

    def order(entry: "os.DirEntry[str]") -> bytes:
        return os.fsencode(entry.name) + b"/" * entry.is_dir(follow_symlinks=False)

    try:
        with os.scandir(folder) as scan:
            return [(entry, prefix + entry.name) for entry in sorted(scan, key=order, reverse=True)]
    except OSError as error:
        return [(error, prefix.rstrip("/") or ".")]


def is_junk(name: str) -> bool:
    """Whether a file was put there by a system and not by a person."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].lower() in JUNK


def open_archive(path: Path, settings: Data) -> Source:
    """All files in a zip or tar, in the archive's order. Raises ``ScanError`` where it is neither."""
    if path.is_dir():
        raise ScanError(f"data.path is {settings.path}, which is a folder; set data.name: folder")
    if not path.is_file():
        raise ScanError(f"data.path is {settings.path}, which is no file; the path of a zip or tar is allowed")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ScanError(f"data.path is {settings.path}, which cannot be read: {error.strerror}") from None
    if _is_tar(path):  # first: zipfile takes a tar whose last file is a zip for that zip
        return Source(read=lambda: _tar_members(path, settings), layout=tree_layout)
    if start == b"PK\3\4" or zipfile.is_zipfile(path):
        return Source(read=lambda: _zip_members(path, settings), layout=tree_layout)
    raise ScanError(
        f"data.path is {settings.path}, which is no archive that can be read; zip and tar, also with gzip, bzip2 or "
        "xz, are allowed"
    )


def _is_tar(path: Path) -> bool:
    try:
        with _unpacking(path) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member):
            return True
    except TAR_ERRORS:
        return False


def _unpacking(path: Path) -> IO[bytes]:
    """The bytes of a tar. tarfile unpacks whole blocks, however large they become, and checks no checksum."""
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]  # a stream of bytes in all but name
    if start.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if start.startswith((b"\xfd7zXZ", b"\x5d\0\0")) else path.open("rb")


class _Member(tarfile.TarInfo):
    """A member whose archive may not end without saying so: tarfile takes a cut-off archive for a shorter one."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > LARGEST_HEADER:  # it would be read into memory
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]  # not in typeshed


class _Unpacked:
    """Counts what comes out of an archive."""

    def __init__(self, settings: Data) -> None:
        self.limit, self.total = settings.max_unpacked, 0

    def add(self, size: int) -> None:
        """Raises ``ScanError`` where the archive is larger than allowed."""
        self.total += size
        self.check(self.total)

    def check(self, total: int) -> None:
        """Raises ``ScanError`` where ``total`` bytes are more than allowed."""
        if total > self.limit * GIB:
            raise ScanError(
                f"data.max_unpacked is {self.limit:g} GiB, and the archive holds more; raise it if that is meant"
            )


def _plain(name: str) -> str:
    """A path in an archive without what means nothing: ``./a//b`` is ``a/b``. A leading slash stays, to be refused."""
    return "/".join(part for at, part in enumerate(name.split("/")) if part != "." and (part or not at))


def _refusal(name: str, size: int) -> Finding | None:
    """Why a regular member of an archive is not read, or None."""
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or parts[0][1:] == ":" or ".." in parts:
        return Finding(printable(name), "rejected", "a path that leads out of the archive")
    if is_junk(name):
        return Finding(printable(name), "ignored", "hidden or system file")
    if size > LARGEST_MEMBER:
        return Finding(printable(name), "rejected", f"larger than {LARGEST_MEMBER / GIB:g} GiB")
    return None


def _tar_members(path: Path, settings: Data) -> Iterator[Item | Finding]:
    unpacked, count = _Unpacked(settings), 0
    try:
        with _unpacking(path) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, bufsize=PIECE) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                unpacked.add(max(member.size, 0))
                unpacked.check(archive.offset)  # where the next begins: a sparse file may hide how far that is
                if member.isdir():
                    continue
                count += 1
                name = _plain(member.name)
                if not member.isreg():
                    kind = "a link" if member.issym() or member.islnk() else "not a regular file"
                    yield Finding(printable(name), "rejected", f"{kind}; in an archive only files are read")
                    continue
                refused = _refusal(name, member.size)
                if refused:
                    yield refused
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                yield Item(printable(name), content.read())
            # Padding, and the checksum of what was packed. A header that was lost to zeros looks like the end.
            assert archive.fileobj is not None
            while rest := archive.fileobj.read(PIECE):
                unpacked.check(archive.fileobj.tell())
                if rest.count(0) < len(rest):
                    raise tarfile.ReadError("more follows the end of the archive")
    except TAR_ERRORS as error:
        raise ScanError(
            f"{path} is damaged after {count:,} files ({' '.join(str(error).split())}); copy or download it again"
        ) from None


def _zip_members(path: Path, settings: Data) -> Iterator[Item | Finding]:
    unpacked = _Unpacked(settings)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # noqa: BLE001 (a damaged directory makes zipfile raise anything)
        what = " ".join(str(error).split()) or type(error).__name__
        raise ScanError(f"{path} is damaged ({what}); copy or download it again") from None
    with archive:
        for member in archive.infolist():
            unpacked.add(member.file_size)
            mode = member.external_attr >> 16
            if member.is_dir() and not member.file_size:
                continue
            name = _plain(member.filename)
            refused = _refusal(name, member.file_size)
            if refused:
                yield refused
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                yield Finding(printable(name), "rejected", "a link or device; in an archive only files are read")
            elif member.flag_bits & 1:
                yield Finding(printable(name), "rejected", "encrypted")
            else:
                try:
                    data = _content(archive, member)
                except Exception as error:  # noqa: BLE001 (zlib, lzma and bz2 each raise their own)
                    what = " ".join(str(error).split()) or type(error).__name__
                    yield Finding(printable(name), "rejected", f"damaged in the archive: {what}")
                else:
                    yield Item(printable(name), data)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        if member.compress_type == zipfile.ZIP_BZIP2:
            file._decompressor = _Bounded(member.file_size)  # type: ignore[attr-defined]
        # Of lzma zipfile unpacks as many packed bytes as it is asked for, into up to 7,000 times as many.
        step = 4096 if member.compress_type == zipfile.ZIP_LZMA else member.file_size + 1
        return b"".join(iter(lambda: file.read(step), b""))


class _Bounded:
    """Unpacks bzip2 up to ``size`` bytes. zipfile would unpack it all: some kilobytes may become as many gigabytes."""

    def __init__(self, size: int) -> None:
        self.left, self.inner = size, bz2.BZ2Decompressor()

    @property
    def eof(self) -> bool:
        """Whether all has been unpacked."""
        return self.inner.eof

    def decompress(self, data: bytes) -> bytes:
        """The next bytes. Raises ``BadZipFile`` where they are more than the archive has said."""
        found = self.inner.decompress(data, self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise zipfile.BadZipFile("larger than the archive says")
        return found


def signature(settings: Data, root: Path) -> dict[str, Any]:
    """What tells whether a source has changed without reading it: names, sizes and times of its files.

    Named sets do not change: their files have checksums. Raises ``ScanError`` where there is nothing at ``data.path``.
    """
    found: dict[str, Any] = {"name": settings.name}
    if settings.name in SOURCES_WITH_PATH:
        found["source"] = _listing(located(settings, root))
    if settings.labels.endswith(".csv"):
        labels = resolve(settings.labels, root)
        if not labels.is_file():
            raise ScanError(f"data.labels is {settings.labels}; there is no file {labels}")
        found["labels"] = _listing(labels)
    return found


def _listing(path: Path) -> dict[str, Any]:
    digest, count, total = hashlib.sha256(), 0, 0
    entries = walk(os.fspath(path), "") if path.is_dir() else [(path, path.name)]
    for entry, name in entries:
        digest.update(os.fsencode(name) + b"\0")
        if isinstance(entry, OSError):
            continue
        if entry.is_symlink():
            digest.update(os.fsencode(os.readlink(entry)) + b"\0")
        try:
            found = entry.stat()  # of what a link leads to
        except OSError:  # a link to nothing
            continue
        digest.update(f"{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
        count, total = count + 1, total + found.st_size
    return {"files": count, "bytes": total, "sha256": digest.hexdigest()}
