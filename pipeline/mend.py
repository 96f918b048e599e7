"""What DVC leaves if it is killed or the disk is full, mended before it runs again: ``make repro`` and ``scan run``.

DVC writes ``dvc.lock`` and ``.dvc/tmp/rwlock`` in place, so either may be empty or cut, and then every later command
fails; half copies of files stay behind in its cache and beside outputs. Whatever a run that is alive may need is left.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.finished import LOCK, delete_noted
from pipeline.progress import say
from pipeline.yaml_file import read_yaml
from scan_core.errors import ScanError

TEMPORARY = Path(".dvc/tmp")
COPY = re.compile(r".*\.[\w-]{22}\.tmp")  # how DVC calls a file until it is whole
FILE = re.compile(r"[0-9a-f]{30}(\.dir)?")  # an object of the cache, in a folder of the first two digits


def mend() -> None:
    """Mends what a killed DVC has left in the project of the working directory, and says what that was."""
    delete_noted(Path())
    if not Path(".dvc").is_dir():
        return
    with _alone(TEMPORARY / "rwlock.lock") as alone:
        if alone and _is_cut(TEMPORARY / "rwlock"):
            (TEMPORARY / "rwlock").unlink()
            say("mended    .dvc/tmp/rwlock, which a DVC that was stopped had left empty")
    with _alone(TEMPORARY / "lock") as alone:
        if not alone or _at_work():
            return
        _mend_lock()
        count = 0
        for file in _half_copies():
            file.unlink(missing_ok=True)
            count += 1
        if count:
            say(f"mended    {count:,} half copies, which a DVC that was stopped had left, are deleted")


def _mend_lock() -> None:
    """Puts a cut dvc.lock aside; the last commit's takes its place, and DVC's run cache knows the rest."""
    if not LOCK.exists():
        return
    try:
        stages = read_yaml(LOCK)["stages"]
        whole = all({"cmd"} <= set(entry) for entry in stages.values()) and LOCK.read_bytes().endswith(b"\n")
    except (ScanError, TypeError, KeyError, AttributeError):
        whole = False
    if whole:
        return
    aside = Path(".scan/dvc.lock.damaged")
    aside.parent.mkdir(exist_ok=True)
    os.replace(LOCK, aside)
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True)
    if committed.returncode == 0:
        LOCK.write_bytes(committed.stdout)
    instead = "the last commit's is there again" if committed.returncode == 0 else "a new one will be written"
    say(f"mended    dvc.lock was cut by a DVC that was stopped; it is put aside as {aside}, and {instead}")


def _is_cut(file: Path) -> bool:
    try:
        return not isinstance(json.loads(file.read_bytes()), dict)
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def _at_work() -> bool:
    """Whether a run of this project, or of an experiment that shares its cache, is alive: their rwlocks name them."""
    for file in [TEMPORARY / "rwlock", *(TEMPORARY / "exps").glob("*/.dvc/tmp/rwlock")]:
        try:
            locks = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        holders = [
            *locks.get("write", {}).values(),
            *(each for held in locks.get("read", {}).values() for each in held),
        ]
        if any(_is_alive(int(each["pid"])) for each in holders):
            return True
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _half_copies() -> Iterator[Path]:
    """Files that DVC has not finished, in its cache, its temporary folder and beside the outputs of stages."""
    for folder in (cache_folder(), TEMPORARY, *map(Path, ("data", "models", "reports"))):
        for file in folder.glob("*.tmp") if folder == TEMPORARY else folder.rglob("*.tmp"):
            if COPY.fullmatch(file.name) and file.is_file():
                yield file


def cache_folder() -> Path:
    """DVC's cache of this project."""
    configured = [Path(".dvc") / name for name in ("config", "config.local")]
    if not any(file.exists() and "cache" in file.read_text() for file in configured):  # to ask DVC takes a second
        return Path(".dvc/cache")
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else Path(".dvc/cache")


def damaged_objects() -> dict[str, list[str]]:
    """The objects of DVC's cache whose bytes are not those that their names say, with the outputs they belong to."""
    damaged: dict[str, list[str]] = {}
    outputs = _outputs_by_digest()
    for file in sorted((cache_folder() / "files" / "md5").glob("??/*")):
        if not FILE.fullmatch(file.name):
            continue
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "md5").hexdigest()
        name = file.parent.name + file.name
        if digest != name.removesuffix(".dir"):
            damaged[str(file)] = outputs.get(name, [])
    return damaged


def _outputs_by_digest() -> dict[str, list[str]]:
    """For each digest the outputs of ``dvc.lock`` that have it; a folder's files, too."""
    found: dict[str, list[str]] = {}
    entries: dict[str, Any] = (read_yaml(LOCK) or {}).get("stages", {}) if LOCK.exists() else {}
    for out in (out for entry in entries.values() for out in entry.get("outs", [])):
        digest = str(out.get("md5"))
        found.setdefault(digest, []).append(out["path"])
        listing = cache_folder() / "files" / "md5" / digest[:2] / digest[2:]
        if digest.endswith(".dir") and listing.exists():
            try:
                for each in json.loads(listing.read_bytes()):
                    found.setdefault(each["md5"], []).append(f"{out['path']}/{each['relpath']}")
            except (ValueError, KeyError, TypeError):  # the listing is damaged itself
                continue
    return found


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Holds a lock of DVC's, which uses flock; yields False if a running DVC holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
