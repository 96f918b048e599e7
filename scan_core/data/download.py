"""Files of named sets: downloaded, checked, unpacked. An interrupted run leaves no partial file under a real name."""

import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from scan_core.errors import ScanError

TIMEOUT = 60.0  # seconds without a byte; torchvision itself waits forever
BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)  # what reading an archive raises
FAILED = (OSError, RuntimeError, HTTPException)  # what torchvision's download raises


def provide(dataset: Any, name: str, home: Path, checksums: dict[str, str | None]) -> Path:
    """The folder of torchvision's ``dataset`` class, with the files that ``checksums`` names complete in it."""
    folder: Path = home / dataset.base_folder
    missing = _check_present(folder, checksums)
    if missing:
        fetch(name, home, home, {dataset.filename: (dataset.tgz_md5, [dataset.url])})
        _untar(home / dataset.filename, folder, missing)
        for filename in missing:
            check_md5(folder / filename, checksums[filename])
    return folder


def fetch(name: str, home: Path, folder: Path, files: dict[str, tuple[str, list[str]]]) -> None:
    """Downloads those of ``files`` that ``folder`` lacks and checks the others; each has a checksum and addresses."""
    missing = _check_present(folder, {filename: md5 for filename, (md5, _) in files.items()})
    for number, filename in enumerate(missing):
        try:
            _download(folder / filename, *files[filename])
        except FAILED as error:
            raise ScanError(
                f"data.name is {name}; {folder} lacks {', '.join(missing[number:])} and the download failed "
                f"({one_line(error)}); put the missing files there, or use another folder of data sets than {home}"
            ) from error


def _check_present(folder: Path, checksums: Mapping[str, str | None]) -> list[str]:
    """The files that ``folder`` lacks. Raises ``ScanError`` if one that is there has a wrong checksum."""
    missing = [filename for filename in checksums if not (folder / filename).exists()]
    for filename, md5 in checksums.items():
        if filename not in missing:
            check_md5(folder / filename, md5)
    return missing


def _download(path: Path, md5: str, addresses: list[str]) -> None:
    """Writes ``path`` from the first address that gives the right checksum, with torchvision's progress bar."""
    from torchvision.datasets.utils import download_url

    path.parent.mkdir(parents=True, exist_ok=True)
    # torchvision writes under the file's own name, so that a killed run would leave half a file that looks whole.
    with TemporaryDirectory(prefix=".download-", dir=path.parent) as scratch, ExitStack() as stack:
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(TIMEOUT)
        for address in addresses:
            try:
                download_url(address, scratch, path.name, md5)
                break
            except FAILED:
                if address == addresses[-1]:
                    raise
        os.replace(Path(scratch) / path.name, path)


def _untar(archive: Path, folder: Path, filenames: list[str]) -> None:
    """Writes ``filenames``, which ``archive`` holds below the name of ``folder``, into ``folder``, and nothing else."""
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
    """Unpacks ``packed`` to a file beside it, without the .gz."""
    with TemporaryDirectory(prefix=".unpack-", dir=packed.parent) as scratch:
        part = Path(scratch) / packed.stem
        try:
            with gzip.open(packed) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
        except BROKEN as error:
            reason = one_line(error)
            raise ScanError(f"{packed} cannot be unpacked ({reason}); delete it and download it again") from error
        os.replace(part, packed.with_suffix(""))


def check_md5(path: Path, md5: str | None) -> None:
    """Raises ``ScanError`` unless the file has the checksum ``md5``; None is not checked."""
    if md5 is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != md5:
        raise wrong_md5(path, actual, md5)


def wrong_md5(path: Path, actual: str, expected: str) -> ScanError:
    return ScanError(f"{path}: its MD5 checksum is {actual}, not {expected}; delete it and download it again")


def some(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
