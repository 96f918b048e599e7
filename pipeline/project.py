"""Projects: folders that hold settings, stages and results of one source of images, apart from the program."""

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.presets import TEMPLATE, find_preset, use_preset
from pipeline.progress import say
from scan_core.data.open import expanded
from scan_core.errors import ScanError

COPIED = ("dvc.yaml", ".dvcignore")  # from the program; also the newer ones of a newer program
START = "photos"  # the preset that params.yaml begins as
MINE = {*COPIED, "params.yaml", ".dvc", ".git", ".gitignore", "scan", ".scan"}
SUFFIX = "-groups"
IGNORED = (
    "/.scan/\n/data/\n/models/\n/reports/\n/weights/\n/datasets/\n/mlflow.db*\n/mlartifacts/\n/dvc_plots/\n/scan\n"
)
SCRIPT = '#!/bin/sh\n# The command scan, without an activated environment.\nexec {program} "$@"\n'


def is_project(folder: Path) -> bool:
    """Whether ``folder`` is one that stages run in."""
    return (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file()


def is_clone(folder: Path) -> bool:
    """Whether ``folder`` is a clone of the program itself."""
    return (folder / "scan_core" / "method.py").is_file() and (folder / "pipeline" / "project.py").is_file()


def project_for(photos: str, here: Path) -> Path:
    """The project in which ``photos`` are grouped: ``here`` if it is one, else a folder in it with their name.

    A clone of the program is no project of a person's: its settings and results are those of its own example.
    """
    if is_project(here) and not is_clone(here):
        return here
    name = expanded(photos).resolve().name
    stem = re.sub(r"(\.tar)?\.\w+$", "", name) if expanded(photos).is_file() else name
    safe = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "photos"
    return here / f"{safe}{SUFFIX}"


def make_project(folder: Path) -> None:
    """Makes an empty project in ``folder``. One that is there, also a half-made one, is completed and else left alone.

    Raises ``ScanError`` if ``folder`` holds other things, or if it cannot be written.
    """
    if folder.exists() and not is_project(folder):
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
        if others := sorted(inside - MINE):
            raise ScanError(
                f"{folder} is there and is no project: it has {others[0]}; move it away, or run this elsewhere"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            _copy(TEMPLATE / name, folder / name)
        _write(folder / ".gitignore", IGNORED)
        _write(folder / "scan", SCRIPT.format(program=_quoted(_program())), 0o755)
        if not (folder / ".dvc").is_dir():
            _start_dvc(folder)
        if not (folder / "params.yaml").exists():  # last: with it the folder is a project
            with contextlib.chdir(folder):
                use_preset(find_preset(START))
    except OSError as error:
        raise ScanError(f"a project cannot be made in {folder}: {error.strerror}; run this in another folder") from None


def _copy(source: Path, target: Path) -> None:
    """The program's file; one that differs was another program's or is a person's, and is kept."""
    if target.exists() and target.read_bytes() != source.read_bytes():
        kept = target.parent / ".scan" / f"{target.name}-{hashlib.sha256(target.read_bytes()).hexdigest()[:8]}"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(target, kept)
        say(f"project   {target.name} is now that of this program; the old one is {kept}")
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copy(source, target)


def command_name() -> str:
    """What a person types here for this program: ``scan``, ``./scan``, or its path."""
    on_path, program = shutil.which("scan"), _program()
    if on_path and Path(on_path).resolve() == program.resolve():
        return "scan"
    return "./scan" if Path("scan").is_file() else str(program)


def _program() -> Path:
    """The command ``scan`` of the environment that this runs in."""
    return Path(sys.executable).parent / "scan"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    if not path.exists():
        path.write_text(text)
        path.chmod(mode)


def _start_dvc(folder: Path) -> None:
    """Under git, if there is one: then each run's row names its commit, and DVC can run experiments."""
    git = shutil.which("git")
    steps = [[git, "init", "--quiet"]] if git and not (folder / ".git").exists() else []
    steps.append([sys.executable, "-m", "dvc", "init", "--quiet", *([] if git else ["--no-scm"])])
    for words in steps:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason is given"]
            raise ScanError(f"a project cannot be made in {folder}: {lines[-1]}")
    settings = {"analytics": "false", "autostage": "false"} | ({} if git else {"no_scm": "true"})
    (folder / ".dvc" / "config").write_text(
        "[core]\n" + "".join(f"    {key} = {said}\n" for key, said in settings.items())
    )
