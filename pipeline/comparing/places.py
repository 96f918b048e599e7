"""Where a run lies that is compared: in a project's folder, or in a revision of this project."""

from pathlib import Path
from typing import Any

from dvc import api, exceptions, fs, repo, scm

from pipeline.project import is_project
from scan_core.data.open import expanded
from scan_core.errors import ScanError

LOCK = Path("dvc.lock")


class Folder:
    """The run of a project's folder, as the folder is now."""

    store = "its folder"  # where outputs are

    def __init__(self, folder: Path, title: str) -> None:
        self.title = title
        self._folder = folder.resolve()

    def get(self, path: Path, to: Path) -> bool:
        """Puts file ``path`` of the project at ``to``, which is only read. False if there is none."""
        source = self._folder / path
        if not source.is_file():
            return False
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(source)
        return True

    def how_to_get(self, path: Path) -> str:
        """What a person can do if ``path``, an output of a run, is not there."""
        return f"run dvc checkout {path}, or dvc repro, in {self._folder}"


class Revision:
    """The run of a revision of the project that is the working directory. Only the local cache of DVC is read."""

    store = "the local cache"

    def __init__(self, name: str, here: Path) -> None:
        """Raises ``ScanError`` if ``name`` is no revision, or if nothing was run in it."""
        what = f"{name} is no folder of a project"
        if not is_project(here):
            raise ScanError(f"{what}, nor is {here}, so it has no revisions; run this in a project's folder")
        try:
            tree = scm.SCM(str(here))
        except scm.SCMError:
            raise ScanError(
                f"{what}, and {here} is not under git, so it has no revisions; give the folder of another project"
            ) from None
        try:
            commit: str = scm.resolve_rev(tree, name)
        except scm.RevError:
            raise ScanError(
                f"{what}, and no revision of this one; give a commit, branch or tag of git log, or a name of "
                "dvc exp list"
            ) from None
        git = fs.GitFileSystem(scm=tree, rev=commit)
        top = Path("/") / here.resolve().relative_to(Path(tree.root_dir).resolve())  # a project may be a part of git's
        if not git.exists(str(top / LOCK)):
            raise ScanError(
                f"{name} has no {LOCK}, so no run belongs to it; give a revision in which {LOCK} is committed"
            )
        self.title = name if commit.startswith(name) else f"{name} ({commit[:7]})"
        self._name = name
        try:
            # Without a remote, so that nothing is downloaded unasked.
            opened = repo.Repo(str(top), fs=git, scm=tree, config={"core": {"remote": ""}})
            self._files: Any = api.DVCFileSystem(repo=opened)
        except exceptions.DvcException as error:
            raise ScanError(f"{name} cannot be read: {error}; give another revision") from None

    def get(self, path: Path, to: Path) -> bool:
        """Puts file ``path`` of the revision, one of git or an output, at ``to``. False if it cannot be had."""
        try:
            self._files.get_file(f"/{path.as_posix()}", str(to))
        except FileNotFoundError:
            return False
        except exceptions.DvcException as error:
            raise ScanError(f"{path} of {self._name} cannot be read: {error}; give another revision") from None
        return True

    def how_to_get(self, path: Path) -> str:
        """What a person can do if ``path``, an output of the revision, is not in the local cache."""
        return f"run dvc fetch --all-commits {path}, or dvc repro in a checkout of {self._name}"


Place = Folder | Revision


def find_place(name: str | None, here: Path) -> Place:
    """The place that a person calls ``name``: a project's folder, or a revision of the project ``here``.

    None is ``here``. Raises ``ScanError`` if it is neither.
    """
    if name is None:
        if not is_project(here):
            raise ScanError(f"{here} is no project to compare with; run this in a project's folder, or give two")
        return Folder(here, "the workspace")
    folder = expanded(name)
    if is_project(folder):
        return Folder(folder, "the workspace" if folder.resolve() == here.resolve() else name)
    return Revision(name, here)
