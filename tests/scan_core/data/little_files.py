"""Builders of small files for the tests of sources, and short forms of what a source yields."""

import io
import os
import tarfile

from pipeline.presets import read_preset
from scan_core.data.types import Finding, Item
from tests.project import ROOT
from tests.tiny import change

DIGITS = read_preset(ROOT / "presets" / "digits.yaml").data


def settings(name, path=None, **values):
    return change(DIGITS, name=name, path=None if path is None else str(path), **values)


def put(folder, contents):
    """Writes bytes under paths relative to ``folder``, which is returned."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def write(folder, *paths):
    """Files that each hold their own path."""
    return put(folder, {path: path.encode("utf-8", "surrogateescape") for path in paths})


def tar_bytes(members, packing="", **options):
    """A tar of (name or TarInfo, content or None), packed with "", "gz", "bz2" or "xz"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{packing}", **options) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is not None:
                info.size = len(content)
            archive.addfile(info, None if content is None else io.BytesIO(content))
    return buffer.getvalue()


def names(things):
    return [thing.name for thing in things if isinstance(thing, Item)]


def findings(things):
    return {thing.name: (thing.kind, thing.reason) for thing in things if isinstance(thing, Finding)}


class Trap:
    """Unpickling it makes the folder ``path``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
