"""A server that speaks the hub's protocol as far as ``scan weights get`` uses it, and a guard against any network."""

import hashlib
import json
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import timm
import torch
from huggingface_hub import constants, file_download
from pytest import MonkeyPatch
from safetensors.torch import save

from scan_core.weights.text import Sizes, TextTower

REPOSITORY, COMMIT, NEWER = "timm/test_vit.r160_in1k", "1" * 40, "2" * 40
CLIP = "timm/vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"  # timm's smallest of CLIP's image towers
TOKEN = "hf_secret"

# In a folder of PYTHONPATH as sitecustomize.py: in every process, a connection beyond the machine's own files is an
# error, and is noted in a file.
NO_NETWORK = """
import socket, sys

def refuse(what):
    with open({file!r}, "a") as file:
        print(*sys.argv, what, file=file)
    raise OSError("there is no network")

class Guarded(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else refuse(address)

    connect_ex = connect

socket.socket = Guarded
socket.getaddrinfo = lambda *words, **options: refuse(words)
"""


def without_network(folder: Path) -> tuple[str, Path]:
    """A PYTHONPATH under which no process reaches a network, and the file that notes who tried."""
    folder.mkdir(parents=True)
    file = folder / "tried.txt"
    (folder / "sitecustomize.py").write_text(NO_NETWORK.format(file=str(file)))
    return str(folder), file


def timm_files(seed: int = 0, **changes: object) -> dict[str, bytes]:
    """A repository as timm lays it out, of its smallest transformer with random weights."""
    torch.manual_seed(seed)
    network = timm.create_model("test_vit.r160_in1k")
    images = {"tag": "r160_in1k", "input_size": [3, 160, 160], "crop_pct": 0.95, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "test_vit", "num_classes": 1000, "num_features": 64}
    config |= {"pretrained_cfg": images | {"license": "apache-2.0"}} | changes
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(weights)}


# open_clip's names of what timm has in an image tower.
OPEN_CLIP = (
    ("blocks.", "visual.transformer.resblocks."), (".norm", ".ln_"), ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj.", "attn.out_proj."), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ("norm_pre", "visual.ln_pre"), ("norm.", "visual.ln_post."), ("pos_embed", "visual.positional_embedding"),
    ("cls_token", "visual.class_embedding"), ("patch_embed.proj", "visual.conv1"), ("head.weight", "visual.proj"),
)  # fmt: skip
TEXT = {"context_length": 20, "vocab_size": 193, "width": 16, "heads": 2, "layers": 2}


def clip_files(seed: int = 0, quick_gelu: bool = True, **text: object) -> dict[str, bytes]:
    """A repository of CLIP as timm lays it out: both towers with random weights, the text tower a tiny one."""
    torch.manual_seed(seed)
    network, tensors = timm.create_model(CLIP.removeprefix("timm/"), num_classes=8), {}
    for key, value in network.state_dict().items():
        for old, new in OPEN_CLIP:
            key = key.replace(old, new)
        shape = {"visual.class_embedding": (-1,), "visual.positional_embedding": value.shape[1:]}.get(key, value.shape)
        tensors[key] = value.T if key == "visual.proj" else value.reshape(shape)
    del tensors["head.bias"]
    sizes = Sizes(embed_dim=8, quick_gelu=quick_gelu, **TEXT)
    tensors |= {key: torch.randn(value.shape) for key, value in TextTower(sizes).state_dict().items()}
    tensors["logit_scale"] = torch.tensor(1.0)
    model = {"embed_dim": 8, "quick_gelu": quick_gelu, "vision_cfg": {"layers": 10}, "text_cfg": TEXT | text}
    return {
        "config.json": timm_files(architecture="vit_xsmall_patch16_clip_224")["config.json"],
        "open_clip_model.safetensors": save({key: value.contiguous() for key, value in tensors.items()}),
        "open_clip_config.json": json.dumps({"model_cfg": model, "preprocess_cfg": {}}).encode(),
        "tokenizer.json": tokenizer_json(),
    }


def tokenizer_json() -> bytes:
    """A tokenizer of CLIP's kind, with ASCII characters and the word "dog"."""
    letters = [chr(number) for number in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate([*words[:-2], "og", *words[-2:]])}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ends = {"sep": ["<|endoftext|>", end], "cls": ["<|startoftext|>", start]}
    space = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "decoder": level,
        "added_tokens": [
            {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for word, number in (("<|startoftext|>", start), ("<|endoftext|>", end))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, space, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "RobertaProcessing", "trim_offsets": False, "add_prefix_space": False} | ends,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "vocab": vocabulary,
            "merges": [["d", "o"], ["do", "g</w>"]],
        },
    }).encode()  # fmt: skip


@contextmanager
def served(hub: "Hub", tmp_path: Path, monkeypatch: MonkeyPatch) -> Iterator["Hub"]:
    """``hub`` as this process's only hub, with an empty cache, and a new folder to work in."""
    servers = hub.start()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    # The library reads the environment when it is imported; a test with a process of its own sets HF_ENDPOINT.
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # 10 MB, and what is not a whole one is lost in a cut
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class Hub:
    """One repository with commits; the newest is ``main``. What is set here changes how it answers."""

    commits: dict[str, dict[str, bytes]]
    main: str = COMMIT
    repository: str = REPOSITORY
    token: str | None = None  # if set, others are refused
    status: int | None = None  # if set, the answer to everything
    sent: dict[str, bytes] = field(default_factory=dict)  # by file: bytes sent in place of the true ones
    cut_after: int | None = None  # bytes of weights, after which the connection is closed, and then at once
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""  # another address, where large files are, as on the hub

    def fetched(self, method: str = "GET") -> list[str]:
        """The paths that were asked for."""
        return [path for each, path, _ in self.requests if each == method]

    def start(self) -> list[ThreadingHTTPServer]:
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
        return servers

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_HEAD(self) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.requests.append((self.command, path, dict(self.headers)))
                if path.startswith("/storage/"):
                    return self.send_stored(path)
                if hub.status:
                    return self.answer(hub.status, b'{"error": "hf_secret"}')
                if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    return self.answer(401, X_Error_Code="GatedRepo", X_Error_Message="restricted")
                api, resolve = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/"
                if path == api or path.startswith(f"{api}/revision/"):
                    commit = hub.commit(path.removeprefix(api).removeprefix("/revision/") or "main")
                    if commit:
                        return self.answer(200, json.dumps({"id": hub.repository, "sha": commit}).encode())
                    return self.answer(404, X_Error_Code="RevisionNotFound")
                if path.startswith(resolve):
                    return self.resolve(*path.removeprefix(resolve).split("/", 1))
                self.answer(404, X_Error_Code="RepoNotFound")

            do_GET = do_HEAD

            def resolve(self, revision: str, file: str) -> None:
                commit = hub.commit(revision)
                content = hub.commits.get(commit or "", {}).get(file)
                if not commit:
                    return self.answer(404, X_Error_Code="RevisionNotFound")
                if content is None:
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                if not file.endswith(".safetensors"):
                    etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)
                if "moved" not in self.path:  # the hub redirects to relative addresses, too
                    return self.answer(307, Location=f"{self.path}?moved=1", X_Repo_Commit=commit)
                self.answer(
                    302, Location=f"{hub.storage}/storage/{commit}/{file}", X_Repo_Commit=commit,
                    X_Linked_Etag=f'"{hashlib.sha256(content).hexdigest()}"', X_Linked_Size=str(len(content)),
                )  # fmt: skip

            def send_stored(self, path: str) -> None:
                _, _, commit, file = path.split("/")
                content = hub.sent.get(file, hub.commits[commit][file])
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                part = content[start:]
                if hub.cut_after is not None:
                    part = part[: max(hub.cut_after - start, 0)]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                self.wfile.write(part)
                self.close_connection = True

        return Handler

    def commit(self, revision: str) -> str | None:
        return self.main if revision == "main" else revision if revision in self.commits else None
