"""The server: what it serves to whom, what a request changes, and what is refused."""

import http.client
import json
import random
import threading

import numpy as np
import pytest
import uvicorn

from pipeline.cli.review import ADDRESS, bound
from pipeline.groups import edits, file
from pipeline.params import read_params
from pipeline.review import checks, server
from pipeline.review.images import StoredImages
from pipeline.review.server import LARGEST, Review, make_app
from scan_core.errors import ScanError

TOKEN = "secret"


class Client:
    """A browser's side of a running server."""

    def __init__(self, port, token=TOKEN):
        self.port, self.token = port, token

    def ask(self, path, body=None, **headers):
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=20)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        given = {"X-Scan-Token": self.token} if raw is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        for name in [name for name, value in headers.items() if value is None]:
            given.pop(name.replace("_", "-"), None)
        connection.request("POST" if raw is not None else "GET", f"/{self.token}/{path}", raw, given)
        answer = connection.getresponse()
        return answer, answer.read()

    def json(self, path, body=None, status=200, **headers):
        answer, content = self.ask(path, body, **headers)
        assert answer.status == status, content
        return json.loads(content)


@pytest.fixture
def serve():
    running = []

    def start(review):
        opened = bound(0)
        port = opened.getsockname()[1]
        config = uvicorn.Config(make_app(review, TOKEN, port), log_level="error", lifespan="off")
        running.append(uvicorn.Server(config))
        threading.Thread(target=running[-1].run, kwargs={"sockets": [opened]}, daemon=True).start()
        while not running[-1].started:
            pass
        return Client(port)

    yield start
    for each in running:
        each.should_exit = True


@pytest.fixture
def client(project, serve):
    return serve(Review(read_params()))


def test_the_page_its_parts_and_pictures_are_served(client, monkeypatch, tmp_path):
    monkeypatch.setattr(server, "STATIC", tmp_path)
    for name in ("page.js", "page.css"):
        (tmp_path / name).write_text(name)
    answer, content = client.ask("")
    assert answer.status == 200 and b'<div id="app">' in content
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert [client.ask(name)[1] for name in ("page.js", "page.css")] == [b"page.js", b"page.css"]
    for path, kind in (("thumb/3", "image/webp"), ("photo/3", "image/jpeg")):
        answer, content = client.ask(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind) and len(content) > 50
    data = client.json("data.json")
    assert data["mode"] == "review" and data["version"] == 1 and len(data["images"]["group"]) == 22


def test_images_are_said_to_be_alike_by_their_embeddings(client, monkeypatch):
    embeddings = StoredImages().embeddings
    cosine = embeddings @ embeddings[3]
    found = client.json("like/3")
    assert found[0] == 3 and sorted(found) == list(range(22)) and (np.diff(cosine[found[1:]]) <= 0).all()
    monkeypatch.setattr("pipeline.review.images.LIKE", 4)
    assert client.json("like/3") == found[:4]


@pytest.mark.parametrize(
    "path",
    ["like/22", "like/-1", "thumb/22", "thumb/-1", "thumb/x", "other/1", "server.py", "../params.yaml", "%2e%2e/x"],
)
def test_nothing_else_is_served(client, path):
    assert client.ask(path)[0].status == 404


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
])  # fmt: skip
@pytest.mark.parametrize("path", ["", "data.json", "photo/1"])
def test_other_hosts_and_pages_are_refused(client, path, headers):
    assert client.ask(path, **headers)[0].status == 403
    assert client.ask("edit", {"action": "name", "group": 1, "name": "x"}, **headers)[0].status == 403
    assert file.load().names == {}


def test_the_same_page_under_either_name_is_allowed(client):
    for host in ("127.0.0.1", "localhost"):
        origin = f"http://{host}:{client.port}"
        client.json("data.json", Host=f"{host}:{client.port}", Origin=origin, Sec_Fetch_Site="same-origin")


def test_without_the_token_nothing_is_read_or_changed(client):
    wrong = Client(client.port, "guess")
    for path in ("", "data.json", "thumb/1"):
        assert wrong.ask(path)[0].status == 404
    assert wrong.ask("edit", {"action": "undo"})[0].status == 404
    name = {"action": "name", "group": 1, "name": "x"}
    assert client.json("edit", name, 403, X_Scan_Token="guess")["error"] == "the request has no token"
    client.json("edit", name, 403, X_Scan_Token=None)
    assert client.ask("edit")[0].status == 404, "a link changes nothing"
    assert file.load().names == {}


def test_each_correction_is_made_said_and_undone(client, images):
    def edit(**asked):
        return client.json("edit", asked)

    said = edit(action="name", group=1, name=" dog ")
    assert said["said"] == "group 1 is 'dog' now" and said["version"] == 2
    assert next(each for each in said["data"]["groups"] if each["number"] == 1)["name"] == "dog"
    assert "source" not in said["data"]["images"], "only what has changed"
    assert "shown as group 1" in edit(action="merge", groups=[1, 2])["said"]
    assert edit(action="undo")["said"].startswith("the last change is taken back; 1 more")
    parts = edit(action="split_preview", group=1, parts=2)["parts"]
    assert sorted(sum(parts, [])) == list(range(10)) and file.load().split == {}  # noqa: RUF017
    split = edit(action="split", group=1, parts=2)
    assert split["said"] == "group 1 is groups 4, 5 now" and split["data"]["run"]["number"] == 4
    assert edit(action="undo")["data"]["run"]["number"] == 3
    moved = edit(action="move", images=[0, 3], group=2)
    assert [moved["data"]["images"]["group"][image] for image in (0, 3)] == [2, 2]
    assert file.load_answers() == {images.contents[row]: (2, f"a/{row}.jpg") for row in (0, 3)}
    assert edit(action="ignore", group=3, ignored=True)["said"] == "group 3 is left out by scan sort"
    assert edit(action="check", image=1, right=True)["data"]["promise"]["right"] == 1


def test_a_question_is_answered_or_left(client):
    first = client.json("data.json")["questions"]
    image, group = first[0]["image"], first[0]["runner_up"]
    after = client.json("edit", {"action": "answer", "image": image, "group": group})["data"]
    assert after["images"]["group"][image] == group and image not in [each["image"] for each in after["questions"]]
    left = after["questions"][0]["image"]
    after = client.json("edit", {"action": "answer", "image": left, "group": None})["data"]
    assert left not in [each["image"] for each in after["questions"]] and after["images"]["answered"][left] == 0


WRONG = [
    ({"action": "name", "group": "1", "name": "x"}, 'group is "1"; a whole number is allowed'),
    ({"action": "name", "group": True, "name": "x"}, "group is true; a whole"),
    ({"action": "name", "group": 9, "name": "x"}, "there is no group 9"),
    ({"action": "name", "group": 1, "name": "a\nb"}, "one line"),
    ({"action": "name", "group": 1}, "name is null; a text"),
    ({"action": "merge", "groups": [1]}, "two or more"), ({"action": "merge", "groups": []}, "groups is []; a list"),
    ({"action": "split", "group": 1, "parts": 99}, "2 to 20 groups"),
    ({"action": "move", "images": [22], "group": 1}, "there is no image 22; there are 22"),
    ({"action": "move", "images": [-1], "group": 1}, "there is no image -1"),
    ({"action": "ignore", "group": 1, "ignored": 1}, "ignored is 1; true or false"),
    ({"action": "check", "image": 1, "right": None}, "right is null"),
    ({"action": "undo"}, "there is no change to take back"), ({"action": "rm"}, 'action is "rm", which'),
    ({}, "action is null"), ([1], "not a JSON object"),
    (b"{", "not a JSON object"), (b"[" * 100_000, "not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), WRONG, ids=lambda each: str(each)[:30])
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_changes(client, body, said):
    client.json("data.json")
    before = file.load()
    error = client.json("edit", body, 400)["error"]
    assert said in error and "\n" not in error
    assert file.load() == before and not edits.undoable() and not file.ANSWERS.exists()


def test_a_request_has_an_end(client):
    assert client.json("edit", b" " * (LARGEST + 1), 413)["error"] == "a request has at most 1,000,000 bytes"


def test_damaged_requests_never_end_in_a_traceback(client):
    rng, bodies = random.Random(0), [json.dumps(body).encode() for body, _ in WRONG[:-2]]
    for _ in range(300):
        body = bytearray(rng.choice(bodies))
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        assert client.ask("edit", bytes(body))[0].status in (200, 400)


def test_two_reviews_see_one_another_and_lose_nothing(client, serve):
    other = serve(Review(read_params()))
    client.json("edit", {"action": "name", "group": 1, "name": "dog"})
    found = other.json("edit", {"action": "name", "group": 2, "name": "cat"})
    assert found["version"] > 2, "the page reads everything again"
    assert file.load().names == {1: "dog", 2: "cat"}
    assert client.json("data.json")["version"] > 3

    def name(who, group):
        for number in range(10):
            who.json("edit", {"action": "name", "group": group, "name": f"n{number}"})

    threads = [threading.Thread(target=name, args=each) for each in ((client, 1), (other, 2))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert file.load().names == {1: "n9", 2: "n9"} and edits.undoable() == 22


def test_a_new_run_ends_the_review_s_changes(client, project):
    (project / "models" / "selflabel.safetensors").write_bytes(b"another")
    error = client.json("edit", {"action": "name", "group": 1, "name": "x"}, 400)["error"]
    assert error == "the groups are those of another run now; end scan review and start it again"


def test_a_kill_while_a_correction_is_saved_loses_nothing(client, monkeypatch):
    client.json("edit", {"action": "name", "group": 1, "name": "dog"})
    for where in ("pipeline.artifacts.replace_text", "shutil.copy", "pathlib.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *_: (_ for _ in ()).throw(SystemExit))
            with pytest.raises(SystemExit):
                edits.name(1, "cat")
        assert file.load().names == {1: "dog"} and edits.undoable() == 1
    edits.undo()
    assert file.load().names == {} and checks.promise


def test_a_port_that_is_taken_is_said():
    taken = bound(0)
    taken.listen()
    with pytest.raises(ScanError, match=r"--port is \d+, which cannot be used .*; leave it out"):
        bound(taken.getsockname()[1])
