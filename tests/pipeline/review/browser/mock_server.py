"""A server that speaks the page's contract on made-up data, for looking at the page and for its tests.

python -m tests.pipeline.review.browser.mock_server --images 60000 --groups 80. It keeps nothing, checks the token only.
"""

import argparse
import base64
import copy
import io
import json
import sys
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw

from tests.pipeline.review.browser import mock_data

STATIC = Path(__file__).parents[4] / "pipeline" / "review" / "static"
TOKEN = "mock-token"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>photos</title><link rel="icon" href="data:,"><link rel="stylesheet" href="page.css"></head>
<body><div id="app"></div><script src="page.js"></script></body></html>
"""
POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"


class Refused(Exception):
    """An edit that cannot be done; its text is shown."""


class Project:
    """The state that edits change, with all earlier states for undo."""

    def __init__(self, data: dict[str, Any], photos: Path | None = None) -> None:
        self.data, self.photos = data, photos
        self.before: list[dict[str, Any]] = []
        self.checks: dict[int, bool] = {}
        self.skipped: set[int] = set()
        sure = [i for i, state in enumerate(data["images"]["state"]) if state == 0]
        self.drawn = np.random.default_rng(3).permutation(sure)[:30].tolist()
        self._say_checks()
        self.edits: list[dict[str, Any]] = []  # as they came, for tests
        self.lock = threading.Lock()

    def edit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Applies one edit and says what changed."""
        with self.lock:
            self.edits.append(body)
            action = body["action"]
            if action == "split_preview":
                return {"parts": self._parts(body["group"], body["parts"])}
            if action == "undo":
                if not self.before:
                    raise Refused("there is nothing to undo")
                self.data.update(self.before.pop())
                self.skipped.clear()
                said = "taken back"
            elif action == "check":
                said = self._check(body)
            elif action == "answer" and body["group"] is None:
                self.skipped.add(body["image"])
                said = "left as it is"
            else:
                keys = ("groups", "images", "counts", "run", "questions")
                self.before.append(copy.deepcopy({k: self.data[k] for k in keys}))
                try:
                    said = getattr(self, f"_{action}")(body)
                except Refused:
                    self.before.pop()
                    raise
                if action in ("merge", "split", "move", "answer"):
                    mock_data.refresh(self.data)
                self.data["run"]["edited"] = True
            self.data["version"] += 1
            changed = {k: self.data[k] for k in ("groups", "counts", "run", "promise", "check")}
            changed["questions"] = [q for q in self.data["questions"] if q["image"] not in self.skipped]
            changed["images"] = {k: self.data["images"][k] for k in ("group", "state", "answered")}
            return {"version": self.data["version"], "said": said, "data": changed}

    def _group(self, number: int) -> dict[str, Any]:
        for group in self.data["groups"]:
            if group["number"] == number:
                return group
        raise Refused(f"there is no group {number}")

    def _name(self, body: dict[str, Any]) -> str:
        self._group(body["group"])["name"] = body["name"]
        return f"group {body['group']} is '{body['name']}' now"

    def _suggested(self, body: dict[str, Any]) -> str:
        for group in self.data["groups"]:
            group["name"] = group["name"] or group["suggested"]
        return "took the suggested names"

    def _ignore(self, body: dict[str, Any]) -> str:
        self._group(body["group"])["ignored"] = body["ignored"]
        return f"group {body['group']} is {'left out' if body['ignored'] else 'taken in again'}"

    def _merge(self, body: dict[str, Any]) -> str:
        first, *others = body["groups"]
        for other in others:
            self._group(other)
        self.data["images"]["group"] = [first if g in others else g for g in self.data["images"]["group"]]
        self.data["groups"] = [g for g in self.data["groups"] if g["number"] not in others]
        return f"groups {', '.join(map(str, body['groups']))} are group {first} now"

    def _parts(self, number: int, parts: int) -> list[list[int]]:
        members = [i for i, g in enumerate(self.data["images"]["group"]) if g == number]
        if len(members) < parts:
            raise Refused(f"group {number} has {len(members)} images: too few for {parts} parts")
        members.sort(key=lambda i: self.data["images"]["x"][i])
        return [part.tolist() for part in np.array_split(np.array(members), parts)]

    def _split(self, body: dict[str, Any]) -> str:
        parts = self._parts(body["group"], body["parts"])
        old = self._group(body["group"])
        highest = max(g["number"] for g in self.data["groups"])
        numbers = [highest + 1 + i for i in range(len(parts))]
        for number, part in zip(numbers, parts, strict=True):
            for image in part:
                self.data["images"]["group"][image] = number
            self.data["groups"].append({**old, "number": number, "name": "", "suggested": "", "word": "strong"})
        self.data["groups"].remove(old)
        return f"group {body['group']} is groups {', '.join(map(str, numbers))} now"

    def _move(self, body: dict[str, Any]) -> str:
        self._group(body["group"])
        for image in body["images"]:
            self.data["images"]["group"][image] = body["group"]
            self.data["images"]["state"][image] = 0
        return f"{len(body['images'])} moved to group {body['group']}"

    def _answer(self, body: dict[str, Any]) -> str:
        image = body["image"]
        self.data["images"]["answered"][image] = 1
        self.data["images"]["group"][image] = self._group(body["group"])["number"]
        self.data["images"]["state"][image] = 0
        self.data["questions"] = [q for q in self.data["questions"] if q["image"] != image]
        return f"answered: group {body['group']}"

    def _check(self, body: dict[str, Any]) -> str:
        self.checks[body["image"]] = bool(body["right"])
        n, right, z = len(self.checks), sum(self.checks.values()), 1.96
        middle, half = right / n + z * z / 2 / n, z * (right / n * (1 - right / n) / n + z * z / 4 / n / n) ** 0.5
        low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        self.data["promise"] = {"checked": n, "right": right, "low": low, "high": high, "void": False}
        self._say_checks()
        return "right" if body["right"] else "wrong"

    def _say_checks(self) -> None:
        self.data["check"] = {"images": self.drawn, "right": [self.checks.get(image) for image in self.drawn]}

    def like(self, image: int) -> list[int]:
        """It finds images alike whose numbers are far: not those that are near on the map."""
        return [image, *(each for each in range(len(self.data["images"]["group"]) - 1, -1, -1) if each != image)]

    def picture(self, image: int, size: int) -> bytes:
        """The photo itself, or a drawing that tells groups apart."""
        if self.photos:
            with Image.open(self.photos / self.data["images"]["source"][image]) as photo:
                return _webp(photo.convert("RGB"), size)
        return _drawing(image, self.data["images"]["group"][image], size)


def _webp(picture: Image.Image, size: int) -> bytes:
    picture.thumbnail((size, size))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=75, method=0)
    return out.getvalue()


@lru_cache(maxsize=20000)
def _drawing(image: int, group: int, size: int) -> bytes:
    rng = np.random.default_rng(image)
    wide = size if image % 4 else size * 2 // 3
    high = size if image % 5 else size * 2 // 3
    hue = group * 137.5 % 360
    picture = Image.new("RGB", (wide, high), f"hsl({hue:.0f},{40 + image % 30}%,{35 + image % 40}%)")
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, r = rng.random() * wide, rng.random() * high, size * (0.05 + 0.2 * rng.random())
        shape = draw.ellipse if group % 2 else draw.rectangle
        color = f"hsl({(hue + 40 * rng.random()) % 360:.0f},60%,{30 + 50 * rng.random():.0f}%)"
        shape((x - r, y - r, x + r, y + r), fill=color)
    draw.text((4, 4), f"{group} / {image}", fill="white")
    return _webp(picture, size)


def handler_of(project: Project) -> type[BaseHTTPRequestHandler]:
    """The request handler of one project."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

        def _send(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            head, _, path = unquote(self.path).lstrip("/").partition("/")
            if head != TOKEN:
                return self._send(b"no", "text/plain", 403)
            if not path:
                return self._send(PAGE.encode(), "text/html; charset=utf-8")
            if path in ("page.js", "page.css"):
                kind = "text/javascript" if path.endswith("js") else "text/css"
                return self._send((STATIC / path).read_bytes(), f"{kind}; charset=utf-8")
            if path == "data.json":
                with project.lock:
                    return self._send(json.dumps(project.data).encode(), "application/json")
            kind, _, image = path.partition("/")
            if kind == "like" and image.isdigit():
                return self._send(json.dumps(project.like(int(image))).encode(), "application/json")
            if kind in ("thumb", "photo") and image.isdigit():
                return self._send(project.picture(int(image), 160 if kind == "thumb" else 1200), "image/webp")
            return self._send(b"not here", "text/plain", 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers.get("X-Scan-Token") != TOKEN or self.path != f"/{TOKEN}/edit":
                return self._send(b'{"error": "wrong token"}', "application/json", 403)
            try:
                answer, status = project.edit(body), 200
            except Refused as refused:
                answer, status = {"error": str(refused)}, 409
            return self._send(json.dumps(answer).encode(), "application/json", status)

    return Handler


class Quiet(ThreadingHTTPServer):
    """A browser drops requests of pictures that have scrolled by; that is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only what is not a broken connection is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def start(project: Project, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A running server and its address."""
    server = Quiet(("127.0.0.1", port), handler_of(project))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}/{TOKEN}/"


def report(project: Project, thumbs: int) -> str:
    """The single file, with at most `thumbs` pictures of those that cards and questions name."""
    data = {**project.data, "mode": "report"}
    wanted = [i for g in data["groups"] for i in (*g["prototypes"], *g["least_sure"])]
    wanted += [i for q in data["questions"] for i in (q["image"], *q["own"], *q["other"])]
    data["thumbs"] = {
        str(i): "data:image/webp;base64," + base64.b64encode(project.picture(i, 96)).decode()
        for i in list(dict.fromkeys(wanted))[:thumbs]
    }
    text = json.dumps(data).replace("<", "\\u003c")
    style, script = (STATIC / "page.css").read_text(), (STATIC / "page.js").read_text()
    page = PAGE.replace('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>")
    block = f'<script type="application/json" id="data">{text}</script><script>{script}</script>'
    return page.replace('<script src="page.js"></script>', block)


def main() -> None:
    """Serves until Ctrl-C, or writes the single file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--verdict", choices=["strong", "weak", "none"], default="weak")
    parser.add_argument("--photos", type=Path, help="real photos, in class folders")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--report", type=Path, help="write the single file instead of serving")
    given = parser.parse_args()
    sources, classes = mock_data.photos_of(given.photos, given.images) if given.photos else (None, None)
    count = len(sources) if sources else given.images
    data = mock_data.make(count, given.groups, given.labels, given.verdict, sources=sources, classes=classes)
    if not given.labels:
        data["images"]["label"] = []
        mock_data.refresh(data)
    project = Project(data, given.photos)
    if given.report:
        given.report.write_text(report(project, 2000), encoding="utf-8")
        return
    _, address = start(project, given.port)
    print(address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
