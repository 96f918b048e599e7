"""Images in a zip or a tar, read as a stream and never unpacked: no name in it can lead anywhere."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scan_core.data.folder import is_junk, tree_layout
from scan_core.data.sources import Finding, Item, Source, printable
from scan_core.errors import ScanError
from scan_core.settings import Data

GIB = 2**30
LARGEST_MEMBER = GIB  # of an archive, which is read into memory; no photo comes near
LARGEST_HEADER = 2**18  # of a tar: a long name or extended attributes
PIECE = 2**16
HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
)  # fmt: skip
TAR_ERRORS = (
    tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error, lzma.LZMAError
)  # fmt: skip


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
            file._decompressor = _Bounded(member.file_size)  # type: ignore[attr-defined]  # not in typeshed
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
