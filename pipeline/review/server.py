"""``scan review`` as a server on this computer alone: the page, its data and pictures, and the corrections it sends.

A random token is the first part of every address. A request that names another host, or comes from another origin, is
refused, and so is a change without the token: no other page in the same browser reads or changes anything.
"""

import hmac
import json
import secrets
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.groups import edits, file
from pipeline.groups.numbering import numbered
from pipeline.params import Params
from pipeline.review import checks
from pipeline.review.contents import Contents, halves
from pipeline.review.more import more
from pipeline.review.photos import Photos
from scan_core.errors import ScanError

STATIC = Path(__file__).with_name("static")
PAGE = {"page.js": "text/javascript", "page.css": "text/css"}
HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>scan review</title><link rel="icon" href="data:,"><link rel="stylesheet" href="page.css"></head>
<body><div id="app"></div><script src="page.js"></script></body></html>
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LARGEST = 1_000_000  # bytes of a request
MOST_MOVED = 100_000  # images at once


class Review:
    """The state of one review: the images, and what changes of them."""

    def __init__(self, params: Params) -> None:
        self.images = Photos(params)
        self.model = file.model_digest()
        self._skipped: set[int] = set()
        self._alone = threading.Lock()
        _ = self.images.odd  # seconds, before the page opens
        self._more = more(self.images, params, numbered().clusters)
        self._version, self._stamp = 1, self._stamps()

    def _stamps(self) -> list[int]:
        files = (file.FILE, file.ANSWERS, checks.FILE)
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in files]

    def data(self) -> dict[str, Any]:
        """All that the page shows."""
        with self._alone:
            self._see_others()
            contents = Contents(self.images, self._more)
            return {
                "mode": "review", "project": Path.cwd().name, "version": self._version, "promise": None,
                **self._without_skipped(contents.everything()),
            }  # fmt: skip

    def change(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Makes one correction. Raises ``ScanError`` if it cannot be made."""
        with self._alone:
            if file.model_digest() != self.model:
                raise ScanError("the groups are those of another run now; end scan review and start it again")
            self._see_others()
            if asked.get("action") == "split_preview":
                parts = halves(Contents(self.images), number(asked, "group"), number(asked, "parts"))
                return {"version": self._version, "parts": parts}
            said = self._do(asked)
            self._version, self._stamp = self._version + 1, self._stamps()
            changed = Contents(self.images).changing()
            return {"version": self._version, "said": said, "data": self._without_skipped(changed)}

    def _see_others(self) -> None:
        """Another review, or ``scan edit``, may have changed the files: then the page reads everything again."""
        if (stamp := self._stamps()) != self._stamp:
            self._version, self._stamp = self._version + 2, stamp

    def _without_skipped(self, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"questions": [each for each in data["questions"] if each["image"] not in self._skipped]}

    def _do(self, asked: dict[str, Any]) -> str:
        match asked.get("action"):
            case "name":
                return edits.name(number(asked, "group"), text(asked, "name"))
            case "suggested":
                return edits.take_suggested()
            case "merge":
                return edits.merge(numbers(asked, "groups"))
            case "split":
                return edits.split(number(asked, "group"), number(asked, "parts"))
            case "ignore":
                return edits.ignore(number(asked, "group"), truth(asked, "ignored"))
            case "move":
                return self._move(numbers(asked, "images"), number(asked, "group"))
            case "answer" if asked.get("group") is None:
                self._skipped.add(self._image(number(asked, "image")))
                return "left as it is"
            case "answer":
                return self._move([number(asked, "image")], number(asked, "group"))
            case "check":
                content = self.images.contents[self._image(number(asked, "image"))]
                return checks.check(Contents(self.images).grouping, content, truth(asked, "right"))
            case "undo":
                self._skipped.clear()
                return edits.undo()
        raise ScanError(f"action is {json.dumps(asked.get('action'))[:60]}, which this page does not send")

    def _move(self, images: list[int], group: int) -> str:
        rows = [self._image(each) for each in images]
        return edits.move({self.images.sources[row]: self.images.contents[row] for row in rows}, group)

    def _image(self, image: int) -> int:
        if not 0 <= image < len(self.images):
            raise ScanError(f"there is no image {image}; there are {len(self.images):,}")
        return image


def number(asked: dict[str, Any], key: str) -> int:
    """The whole number that ``key`` of a request must be. Raises ``ScanError``."""
    value = asked.get(key)
    if type(value) is not int:
        raise ScanError(f"{key} is {json.dumps(value)[:60]}; a whole number is allowed")
    return value


def numbers(asked: dict[str, Any], key: str) -> list[int]:
    """The whole numbers, at least one. Raises ``ScanError``."""
    value = asked.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MOVED or {type(each) for each in value} != {int}:
        raise ScanError(f"{key} is {json.dumps(value)[:60]}; a list of whole numbers is allowed")
    return value


def text(asked: dict[str, Any], key: str) -> str:
    """The text. Raises ``ScanError``."""
    value = asked.get(key)
    if not isinstance(value, str):
        raise ScanError(f"{key} is {json.dumps(value)[:60]}; a text is allowed")
    return value


def truth(asked: dict[str, Any], key: str) -> bool:
    """True or false. Raises ``ScanError``."""
    value = asked.get(key)
    if not isinstance(value, bool):
        raise ScanError(f"{key} is {json.dumps(value)[:60]}; true or false is allowed")
    return value


class Guard(BaseHTTPMiddleware):
    """Refuses other hosts and origins, and adds the headers to each response."""

    def __init__(self, app: Any, hosts: set[str]) -> None:
        super().__init__(app)
        self.hosts, self.origins = hosts, {f"http://{host}" for host in hosts}

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        if request.headers.get("host") not in self.hosts:
            response: Response = JSONResponse({"error": "this address is not served here"}, 403)
        elif (origin is not None and origin not in self.origins) or site not in ("same-origin", "none"):
            response = JSONResponse({"error": "another page has asked for this"}, 403)
        else:
            response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response


def make_app(review: Review, token: str, port: int) -> Starlette:
    """The server's application for ``http://127.0.0.1:port/token/``."""

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if not hmac.compare_digest(request.path_params["token"].encode(), token.encode()):
                return JSONResponse({"error": "the address has another token; scan review says the right one"}, 404)
            try:
                return await handler(request)
            except ScanError as error:
                return JSONResponse({"error": " ".join(str(error).split())}, 400)

        return handle

    async def index(request: Request) -> Response:
        return Response(HTML, media_type="text/html", headers={"Cache-Control": "no-store"})

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in PAGE:
            return JSONResponse({"error": "there is no such file"}, 404)
        return Response((STATIC / name).read_bytes(), media_type=PAGE[name])

    async def data(request: Request) -> Response:
        found = await run_in_threadpool(review.data)
        written = await run_in_threadpool(json.dumps, found, separators=(",", ":"))
        return Response(written, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def picture(request: Request) -> Response:
        kind, image = request.path_params["kind"], request.path_params["image"]
        make = {"thumb": review.images.thumb, "photo": review.images.photo}.get(kind)
        if make is None or image >= len(review.images):
            return JSONResponse({"error": "there is no such picture"}, 404)
        media = {"thumb": "image/webp", "photo": "image/jpeg"}[kind]
        kept = {"Cache-Control": "private, max-age=86400"}  # the token, and so the address, is new with each review
        return Response(await run_in_threadpool(make, image), media_type=media, headers=kept)

    async def like(request: Request) -> Response:
        image = request.path_params["image"]
        if image >= len(review.images):
            return JSONResponse({"error": "there is no such image"}, 404)
        return JSONResponse(await run_in_threadpool(review.images.like, image))

    async def edit(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("x-scan-token", "").encode(), token.encode()):
            return JSONResponse({"error": "the request has no token"}, 403)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                return JSONResponse({"error": f"a request has at most {LARGEST:,} bytes"}, 413)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return JSONResponse({"error": "the request is not a JSON object"}, 400)
        return JSONResponse(await run_in_threadpool(review.change, asked))

    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    return Starlette(
        routes=[
            Route("/{token}/", guarded(index)),
            Route("/{token}/data.json", guarded(data)),
            Route("/{token}/edit", guarded(edit), methods=["POST"]),
            Route("/{token}/like/{image:int}", guarded(like)),
            Route("/{token}/{kind}/{image:int}", guarded(picture)),
            Route("/{token}/{name}", guarded(part)),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
    )


def new_token() -> str:
    """A secret that nobody guesses."""
    return secrets.token_urlsafe(24)
