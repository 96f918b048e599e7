"""A server that speaks the hub's protocol as far as ``scan weights get`` uses it, and a guard against any network."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import timm
import torch
from safetensors.torch import save

REPOSITORY, COMMIT, NEWER = "timm/test_vit.r160_in1k", "1" * 40, "2" * 40
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


@dataclass
class Hub:
    """One repository with commits; the newest is ``main``. What is set here changes how it answers."""

    commits: dict[str, dict[str, bytes]]
    main: str = COMMIT
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
                api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
                if path == api or path.startswith(f"{api}/revision/"):
                    commit = hub.commit(path.removeprefix(api).removeprefix("/revision/") or "main")
                    if commit:
                        return self.answer(200, json.dumps({"id": REPOSITORY, "sha": commit}).encode())
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
