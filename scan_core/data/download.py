"""Files of named sets: checked, unpacked or downloaded, and nothing half done left under a file's own name."""

import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from scan_core.errors import ScanError

TIMEOUT = 60.0  # seconds without a byte; torchvision itself waits for ever
BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)  # what reading an archive raises
FAILED = (OSError, RuntimeError, HTTPException)  # what torchvision's download raises


def provide(kind: Any, name: str, home: Path, checksums: dict[str, str | None]) -> Path:
    """The folder of torchvision's set ``kind``, with the files that ``checksums`` names whole in it."""
    folder: Path = home / kind.base_folder
    missing = [filename for filename in checksums if not (folder / filename).exists()]
    for filename, md5 in checksums.items():
        if filename not in missing:
            check_md5(folder / filename, md5)
    if missing:
        fetch(name, home, home, {kind.filename: (kind.tgz_md5, [kind.url])})
        _untar(home / kind.filename, folder, missing)
        for filename in missing:
            check_md5(folder / filename, checksums[filename])
    return folder


def _untar(archive: Path, folder: Path, filenames: list[str]) -> None:
    """Writes ``filenames``, members of the folder's name in ``archive``, into ``folder``, and nothing else."""
    wanted = {f"{folder.name}/{filename}" for filename in filenames}
    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".unpack-", dir=folder) as scratch:
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    source = tar.extractfile(member) if str(path) in wanted else None
                    if source is not None:
                        with source, (Path(scratch) / path.name).open("wb") as target:
                            shutil.copyfileobj(source, target)
                        wanted.remove(str(path))
        except BROKEN as error:
            raise ScanError(f"{archive} cannot be unpacked ({one_line(error)}); download it again") from error
        if wanted:
            raise ScanError(f"{archive} lacks {some(sorted(wanted))}; delete it and download it again")
        for filename in filenames:
            os.replace(Path(scratch) / filename, folder / filename)


def gunzip(packed: Path) -> None:
    """Writes ``packed`` without its .gz beside it."""
    with TemporaryDirectory(prefix=".unpack-", dir=packed.parent) as scratch:
        part = Path(scratch) / packed.stem
        try:
            with gzip.open(packed) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
        except BROKEN as error:
            raise ScanError(
                f"{packed} cannot be unpacked ({one_line(error)}); delete it and download it again"
            ) from error
        os.replace(part, packed.with_suffix(""))


def fetch(name: str, home: Path, folder: Path, files: dict[str, tuple[str, list[str]]]) -> None:
    """Puts ``files``, each with its checksum and the addresses it has, into ``folder``; those there are checked."""
    missing = [filename for filename in files if not (folder / filename).exists()]
    for filename, (md5, _) in files.items():
        if filename not in missing:
            check_md5(folder / filename, md5)
    for number, filename in enumerate(missing):
        try:
            _download(folder / filename, *files[filename])
        except FAILED as error:
            raise ScanError(
                f"data.name is {name}; {folder} lacks {', '.join(missing[number:])} and the download failed "
                f"({one_line(error)}); put the missing there, or point SCAN_DATA, now {home}, at another folder"
            ) from error


def _download(path: Path, md5: str, addresses: list[str]) -> None:
    """Writes ``path`` from the first address that gives the right checksum, with torchvision's progress bar."""
    from torchvision.datasets.utils import download_url

    path.parent.mkdir(parents=True, exist_ok=True)
    # torchvision writes under the file's own name; a run killed meanwhile would leave half a file that looks whole.
    with TemporaryDirectory(prefix=".download-", dir=path.parent) as scratch, _socket_timeout():
        for address in addresses:
            try:
                download_url(address, scratch, path.name, md5)
                break
            except FAILED:
                if address == addresses[-1]:
                    raise
        os.replace(Path(scratch) / path.name, path)


@contextmanager
def _socket_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_md5(path: Path, md5: str | None) -> None:
    """Raises ``ScanError`` unless the file has the checksum ``md5``, where that is known."""
    if md5 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise wrong_md5(path, found, md5)


def wrong_md5(path: Path, found: str, expected: str) -> ScanError:
    return ScanError(f"{path}: its MD5 checksum is {found}, not {expected}; delete it and download it again")


def some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
