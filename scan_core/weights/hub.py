"""Published weights on the Hugging Face hub, in the layout of timm's repositories: config.json and model.safetensors.

A repository of CLIP has both towers, in open_clip_model.safetensors. The one of ViT-B/32 has no model.safetensors.

``huggingface_hub`` makes every request, so its own settings hold: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and
``HF_HOME``, in whose cache a file that is already there is found.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scan_core.errors import ScanError
from scan_core.weights.published import ON_HUB

if TYPE_CHECKING:  # torch and timm take seconds to import, and a list of names needs neither
    from scan_core.weights.convert import Imported
    from scan_core.weights.text import Sizes

# Read once, when timm imports huggingface_hub. Otherwise each request says which other packages are installed, and the
# first of a day asks the hub for a list of programs, to say which of them runs this one.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

OWNER = "timm/"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BOTH_TOWERS, TEXT_CONFIG, TOKENIZER = "open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"
CLIP = r"vit_\w+_clip_(?!.*_ft_)"  # timm's names of such networks, but of none that was trained further on labels
NO_NAMES = "it cannot suggest names of groups: its repository has no text tower in the form that is read"


def is_on_hub(name: str) -> bool:
    """Whether ``name`` stands for weights on the hub: a name of ``ON_HUB``, or timm/NAME. Nothing is asked."""
    return name in ON_HUB or (name.startswith(OWNER) and not name.endswith(".safetensors"))


def recorded_origin(path: Path) -> dict[str, str]:
    """Repository, revision and SHA-256 that ``load_from_hub`` recorded in a file; empty if it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            origin = json.loads((file.metadata() or {})["scan"])["origin"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return {}
    return origin if isinstance(origin, dict) and "revision" in origin else {}


@contextmanager
def load_from_hub(name: str, path: Path, revision: str | None = None) -> "Iterator[Imported]":
    """Downloads the weights ``name``, which the caller writes to ``path``; until then the download is kept beside it.

    ``revision`` is a branch, tag or commit. If it is None, it is the commit that the file at ``path`` records, or
    else the newest. The origin of the weights has the commit and the SHA-256; if ``path`` records the same commit, the
    download must have the recorded SHA-256.

    Raises ``ScanError`` if timm does not know the network, if the repository is not there, not readable or not in
    timm's layout, if the hub is not reached or the connection is cut, and if the file is not what the hub or ``path``
    says. After a cut, the same call downloads the rest.
    """
    from scan_core.weights.convert import import_checkpoint
    from scan_core.weights.text import read_text

    model, repository = _locate(name)
    what, recorded = f"{name} is {repository} on the hub", recorded_origin(path)
    revision = revision or recorded.get("revision")
    files = (BOTH_TOWERS, WEIGHTS) if re.match(CLIP, model) else (WEIGHTS,)
    with _hub_errors(what, CONFIG, revision):
        commit, config = _describe(repository, revision)
    images = _check_config(repository, config, model)
    recorded = recorded if recorded.get("revision") == commit else {}
    with _hub_errors(what, f"{TEXT_CONFIG} or {TOKENIZER}", revision):
        sizes, texts = _describe_text(repository, commit) if BOTH_TOWERS in files else (None, {})
    hashes = {file: _check_sha256(part, recorded.get(file), what, file) for file, part in texts.items()}
    with _hub_errors(what, " or ".join(files), revision):
        file, checkpoint, sha256 = _download_first(repository, commit, path, files)
    try:
        _check_sha256(checkpoint, recorded["sha256"] if recorded.get("file") == file else sha256, what, file)
        found = import_checkpoint(checkpoint, "timm", model=model, config=images)
        origin = {"file": file, "repository": repository, "revision": commit, "license": images["license"]}
        if sizes is not None and file == BOTH_TOWERS:
            text = read_text(checkpoint, sizes, texts[TOKENIZER].read_text(encoding="utf-8"))
            found, origin = replace(found, text=text, left_out={}), origin | hashes
        elif len(files) > 1:
            found = replace(found, notes=(*found.notes, NO_NAMES))
        yield replace(found, origin=found.origin | origin)
    except ScanError:  # it is whole, and not what is wanted
        _delete_downloads(path)
        raise
    _delete_downloads(path)


def _locate(name: str) -> tuple[str, str]:
    """timm's name of the network, and its repository. Raises ``ScanError`` if timm does not have both."""
    import timm
    from timm.models import get_pretrained_cfg

    model = ON_HUB[name].model if name in ON_HUB else name.removeprefix(OWNER)
    names = timm.list_models(pretrained=True)
    if model not in names:
        close = " or ".join(OWNER + each for each in difflib.get_close_matches(model, names, n=3))
        what = f"did you mean {close}?" if close else "scan weights list has some of them"
        raise ScanError(f"{name} is not one of timm's networks with published weights; {what}")
    repository = get_pretrained_cfg(model).hf_hub_id or "another server"
    if not repository.startswith(OWNER):
        raise ScanError(
            f"{name} is not in one of timm's own repositories, but on {repository}; download its file from there "
            f"and use scan weights import FILE --from timm --model {model}"
        )
    return model, repository


def _describe(repository: str, revision: str | None) -> tuple[str, bytes]:
    """The commit of ``revision`` or, if that is None, the newest one, and its config.json."""
    from huggingface_hub import HfApi

    hub = HfApi()
    commit = hub.resolve_revision(repository, revision=revision).resolved
    return commit, Path(hub.hf_hub_download(repository, CONFIG, revision=commit)).read_bytes()


def _describe_text(repository: str, commit: str) -> "tuple[Sizes | None, dict[str, Path]]":
    """The text tower's sizes and files; None and no files if there is none, or one of another design."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError

    from scan_core.weights.text import read_sizes

    hub = HfApi()
    try:
        files = {
            file: Path(hub.hf_hub_download(repository, file, revision=commit)) for file in (TEXT_CONFIG, TOKENIZER)
        }
    except RemoteEntryNotFoundError:
        return None, {}
    sizes = read_sizes(files[TEXT_CONFIG].read_bytes())
    return sizes, files if sizes else {}


def _check_config(repository: str, content: bytes, model: str) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` in config.json. Raises ``ScanError`` if it is of another network or of other images."""
    networks = {name.partition(".")[0] for name in (repository.removeprefix(OWNER), model)}  # CLIP's two differ
    try:
        config = json.loads(content)
        architecture, images = config["architecture"], dict(config["pretrained_cfg"])
        channels, *sides = map(int, images["input_size"])
        usable = len(sides) == 2 and all(len(list(map(float, images[key]))) == channels for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ScanError(
            f"{CONFIG} of {repository} does not say architecture and pretrained_cfg with input_size, mean and std, as "
            f"timm's do; download {WEIGHTS} and use scan weights import {WEIGHTS} --from timm"
        )
    if architecture not in networks:
        allowed = " or ".join(sorted(networks))
        raise ScanError(f"{CONFIG} of {repository} is of the network {architecture}; {allowed} is allowed")
    if channels != 3:
        raise ScanError(f"{repository} takes images of {channels} channels; networks for 3 are allowed")
    return images | {"license": str(images.get("license") or "not stated")}


def _download_first(repository: str, commit: str, path: Path, files: tuple[str, ...]) -> tuple[str, Path, str | None]:
    """The first of ``files`` that is there, and what ``_download`` gives of it."""
    from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError

    for file in files[:-1]:
        try:
            return file, *_download(repository, commit, path, file)
        except (RemoteEntryNotFoundError, OfflineModeIsEnabled):
            pass
    return files[-1], *_download(repository, commit, path, files[-1])


def _download(repository: str, commit: str, path: Path, name: str) -> tuple[Path, str | None]:
    """The file ``name`` of weights, and the SHA-256 that the hub says, if it does.

    A file in the hub's cache is taken. A download is written beside ``path`` and not to the cache, because
    ``hf_hub_download`` throws away what it has when the connection is cut.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    hub = HfApi()
    try:
        return Path(hub.hf_hub_download(repository, name, revision=commit, local_files_only=True)), None
    except LocalEntryNotFoundError:
        pass
    url = hf_hub_url(repository, name, revision=commit, endpoint=hub.endpoint)
    remote = get_hf_file_metadata(url, endpoint=hub.endpoint)
    part = path.with_name(f".{path.stem}-{commit}{path.suffix}")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        # httpx does not send the token on to another host, where the hub keeps large files.
        headers, size = build_hf_headers(), file.tell()
        http_get(url, file, resume_size=size, headers=headers, expected_size=remote.size, displayed_filename=repository)
    return part, remote.etag if re.fullmatch("[0-9a-f]{64}", remote.etag or "") else None


def _delete_downloads(path: Path) -> None:
    """Deletes what ``_download`` has written for ``path``, at whatever revision."""
    for part in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        part.unlink(missing_ok=True)


def _check_sha256(path: Path, wanted: str | None, what: str, name: str) -> str:
    """The SHA-256 of the file at ``path``. Raises ``ScanError`` unless it is ``wanted``; None is not checked."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and actual != wanted:
        raise ScanError(f"{what}; the SHA-256 of its {name} is {actual}, not {wanted}: not used; get it again")
    return actual


@contextmanager
def _hub_errors(what: str, file: str, revision: str | None) -> Iterator[None]:
    """Turns what ``huggingface_hub`` raises into ``ScanError``. The system's errors, such as a full disk, pass."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RevisionResolutionError
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings name addresses, in which HF_ENDPOINT may have a password
    try:
        yield
    except (HTTPError, OSError, ValueError, KeyError, RevisionResolutionError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        wrapper = isinstance(error, LocalEntryNotFoundError | RevisionResolutionError)
        raise ScanError(f"{what}; {_why((wrapper and error.__cause__) or error, file, revision)}") from None
    finally:
        logging.set_verbosity(level)


def _why(error: BaseException, file: str, revision: str | None) -> str:
    """What is wrong and what to do. The error's own text has addresses and the server's words, and is left out."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set and the hub's cache has no {file} of it; unset HF_HUB_OFFLINE to download it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision}; give one of its branches, tags or commits with --revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"it has no {file}, which is needed, because no pickles are read; scan weights list names others"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"it is not there or not open to you ({status}); set HF_TOKEN to a token that may read it"
        if status == 404:
            return "there is no such repository (404); scan weights list names others"
        return f"the server answered {status}; try again later"
    if isinstance(error, errors.HTTPError | OSError):
        return (
            f"the connection failed ({type(error).__name__}); run the same again, which downloads only what is missing"
        )
    return "the answer is not a hub's; check HF_ENDPOINT"
