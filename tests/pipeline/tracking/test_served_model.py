"""The packaged model: its answers are those of ``scan predict``, in Python and from the scoring server."""

import base64
import io
import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline import predict
from pipeline.params import read_params
from pipeline.tracking.packaging import MODEL_REQUIREMENTS
from pipeline.tracking.spool import spools
from scan_core.evaluation.scores import Prediction
from tests.project import STAGES, environment, make_project, run, run_stages, set_params
from tests.stages.test_frozen import FROZEN, frozen_project

SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
COLUMNS = ["cluster", "group", "name", "probability", "runner_up", "runner_up_probability", "state"]
SEND = "from pathlib import Path; from pipeline.tracking.delivery import send_waiting; send_waiting(Path.cwd())"


def picture(seed, size=(26, 20)):
    """A smooth picture of one of three kinds of color."""
    rng = np.random.default_rng(seed)
    base = np.eye(3)[seed % 3] * 150 + rng.integers(0, 60, 3)
    small = (base + rng.integers(0, 40, (5, 6, 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def variety():
    """Encoded images that are decoded in different ways, by name."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    clear = picture(5, (40, 30)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = Image.fromarray(np.asarray(picture(6).convert("L"), np.uint16) * 257)
    return {
        "plain.jpg": encoded(picture(0), quality=90),
        "turned.jpg": encoded(picture(1, (50, 30)), exif=rotated),
        "gray.jpg": encoded(picture(2).convert("L")),
        "print.jpg": encoded(picture(3).convert("CMYK")),
        "large.jpg": encoded(picture(4, (300, 170))),
        "long.png": encoded(picture(4, (200, 20)), "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "few.gif": encoded(picture(7).convert("P"), "GIF"),
        "small.webp": encoded(picture(8, (9, 7)), "WEBP"),
    }


def text_of(data):
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module", params=["frozen", "trained"])
def project(request, tmp_path_factory):
    """A finished run, delivered to MLflow, with a copy of what evaluate wrote for it, in ``again``."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "photos").mkdir()
    for seed in range(60):
        picture(seed).save(folder / "photos" / f"{seed}.jpg", quality=90)
    few = {"num_clusters": 3, "neighbors": 4, "val_neighbors": 1}
    small = {"pretext": {"batch_size": 16}, "cluster": {**few, "batch_size": 16}, "selflabel": {"batch_size": 16}}
    frozen = request.param == "frozen"
    made = frozen_project(folder / "project") if frozen else make_project(folder / "project")
    data = {"name": "folder", "path": "../photos", "labels": "none", "size": 16, "protocol": "all"}
    data |= {"store": "jpeg"} if frozen else {"store": "array", "view": 12, "fit": "pad"}
    set_params(made, {**({"cluster": {**FROZEN["cluster"], **few}} if frozen else small), "data": data})
    set_params(made, {"neighbors": {"k": 4}})
    run_stages(made, "source", *STAGES)
    (spool,) = (each for each in spools(made) if "-evaluate-" in each.name)
    shutil.copytree(spool, folder / "again")
    run(made, sys.executable, "-c", SEND)
    assert spools(made) == []
    return made


@pytest.fixture(scope="module")
def package(project):
    """The folder of the packaged model."""
    (found,) = project.glob("mlartifacts/**/MLmodel")
    return found.parent


@pytest.fixture(scope="module")
def loaded(package):
    import mlflow

    torch.set_num_threads(1)
    return mlflow.pyfunc.load_model(str(package))


@pytest.fixture
def model(loaded, monkeypatch):
    monkeypatch.delenv(SERVING, raising=False)  # the scoring server sets it for the whole process
    return loaded


@pytest.fixture
def post(loaded, monkeypatch):
    """Posts a body, JSON or bytes, to the scoring server's app; returns the status and the answer."""
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    monkeypatch.setenv(SERVING, "false")  # so that it is as it was afterward
    client = TestClient(scoring_server.init(loaded), raise_server_exceptions=False)

    def send(body, kind="application/json"):
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        answer = client.post("/invocations", content=content, headers={"content-type": kind})
        return answer.status_code, answer.text

    return send


def alike(found, wanted):
    """Whether two lists of rows are the same but for rounding: a network's sums may depend on the batch."""
    numbers = ("probability", "runner_up_probability")
    return len(found) == len(wanted) and all(
        one == {**other, **{name: pytest.approx(other[name], abs=1e-6) for name in numbers}}
        for one, other in zip(found, wanted, strict=True)
    )


def records(answer):
    status, text = answer
    assert status == 200, text[:1000]
    return json.loads(text)["predictions"]


def said_of(probabilities):
    return SimpleNamespace(
        prediction=Prediction.of(np.array(probabilities, np.float32)), states=np.array(["sure"] * len(probabilities))
    )


def test_merged_groups_add_up_and_the_rest_is_null():
    from pipeline.tracking.served_model import answer

    said = said_of([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    groups = {"0": (4, "daisy"), "1": (4, "daisy"), "2": (7, "")}
    rows = answer(said, groups).to_dict("records")
    assert [list(row) for row in rows] == [COLUMNS] * 2
    assert rows[0]["group"] == 4 and rows[0]["name"] == "daisy" and rows[0]["probability"] == pytest.approx(0.8)
    assert rows[0]["runner_up"] is None and rows[0]["runner_up_probability"] is None
    assert rows[1]["cluster"] == 2 and rows[1]["group"] == 7 and rows[1]["runner_up"] == 4
    assert rows[1]["runner_up_probability"] == pytest.approx(0.2) and rows[1]["probability"] == pytest.approx(0.7)
    assert json.loads(json.dumps(rows)) == rows


def test_without_groups_the_clusters_are_given():
    from pipeline.tracking.served_model import answer

    (row,) = answer(said_of([[0.1, 0.2, 0.7]]), None).to_dict("records")
    assert list(row) == ["cluster", "probability", "runner_up", "runner_up_probability", "state"]
    assert (row["cluster"], row["runner_up"], row["state"]) == (2, 1, "sure")


def test_a_single_cluster_has_no_runner_up():
    from pipeline.tracking.served_model import answer

    (row,) = answer(said_of([[1.0]]), {"0": (1, "")}).to_dict("records")
    assert row["probability"] == 1 and row["runner_up"] is None and row["runner_up_probability"] is None


@pytest.mark.slow
def test_the_answers_are_those_of_scan_predict(project, model, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, data in variety().items():
        (photos / name).write_bytes(data)
    for name in ("0.jpg", "7.jpg"):
        shutil.copy(Path("..", "photos", name), photos)
    params = read_params()
    predictions = predict.Predictions(predict.source_of([str(photos)], params.data), params)
    predictions.known = {}  # the model's answers, and not those that the run has noted
    (tmp_path / "parts").mkdir()
    wanted = [row for table in predictions.tables(tmp_path / "parts") for row in table.to_pylist()]
    assert len(wanted) == len(variety()) + 2 and not any(row["reason"] for row in wanted)
    said = model.predict(pd.DataFrame({"image": [(photos / row["source"]).read_bytes() for row in wanted]}))
    assert list(said.columns) == COLUMNS
    for row, found in zip(wanted, said.to_dict("records"), strict=True):
        for key in ("group", "name", "runner_up", "state"):
            assert found[key] == row[key], (row["source"], key)
        for key in ("probability", "runner_up_probability"):
            assert found[key] == pytest.approx(row[key], abs=1e-6), row["source"]
    assert len(set(said["group"])) > 1, "proves little"


@pytest.mark.slow
def test_the_images_of_the_run_are_where_the_run_has_put_them(project, model):
    table = pq.read_table(project / "reports" / "predictions.parquet").to_pylist()
    paths = [str(project / ".." / "photos" / row["source"]) for row in table]
    said = model.predict(pd.DataFrame({"image": paths}), params={"paths": True})
    assert said["cluster"].tolist() == [row["cluster"] for row in table]
    assert said["state"].tolist() == [row["state"] for row in table]
    np.testing.assert_allclose(said["probability"], [row["probability"] for row in table], atol=1e-5)


@pytest.mark.slow
def test_all_forms_of_the_same_images_get_the_same_answer(model, post):
    data = [encoded(picture(seed), "PNG") for seed in range(3)]
    pixels = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    texts = [text_of(each) for each in data]
    wanted = model.predict(pd.DataFrame({"image": data})).to_dict("records")
    lines = ["\n".join(text[at : at + 76] for at in range(0, len(text), 76)) for text in texts]  # as base64(1) prints
    for given in (
        pd.DataFrame({"image": texts, "name": "abc"}), pd.DataFrame({"image": lines}), data, texts, pixels,
        [{"image": each} for each in data], {"image": texts}, list(pixels), pixels.astype(np.int64),
        [data[0], texts[1], pixels[2]],
    ):  # fmt: skip
        assert model.predict(given).to_dict("records") == wanted
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        {"dataframe_records": [{"image": text, "name": "abc"} for text in texts]},
        {"instances": [{"image": text} for text in texts]}, {"instances": texts}, {"inputs": {"image": texts}},
        {"inputs": lines}, {"instances": pixels.tolist()}, {"inputs": pixels.tolist()},
        {"dataframe_records": [{"image": texts[0]}, {"image": texts[1]}, {"image": pixels[2].tolist()}]},
    ):  # fmt: skip
        assert records(post(body)) == wanted, str(body)[:60]
    assert records(post("image\n" + "\n".join(texts), "text/csv")) == wanted
    table = io.BytesIO()
    pd.DataFrame({"image": data}).to_parquet(table)
    assert records(post(table.getvalue(), "application/vnd.apache.parquet")) == wanted


@pytest.mark.slow
def test_pixels_of_any_size_and_gray_or_transparent_ones_are_answered(model):
    mixed = [np.asarray(picture(1)), np.asarray(picture(1, (90, 31)))]
    mixed += [np.asarray(picture(2).convert("L"))[..., None], np.asarray(picture(3).convert("RGBA"))]
    together = model.predict(mixed)
    for number, each in enumerate(mixed):
        assert alike(model.predict(each[None]).to_dict("records"), together.iloc[[number]].to_dict("records"))


@pytest.mark.slow
def test_what_is_wrong_is_said_with_status_400_in_one_line_that_holds_no_request(post):
    good, side = text_of(encoded(picture(0))), np.zeros((1, 8, 8, 3), int)
    for body, said in (
        ({"instances": (side + 0.5).tolist()}, "image 1 of 1 has pixels of type float64 from 0.5 to 0.5"),
        ({"instances": (side + 256).tolist()}, "image 1 of 1 has pixels from 256 to 256; 0 to 255 are allowed"),
        ({"instances": side[0].tolist()}, "the request has pixels of shape (8, 8, 3)"),
        ({"instances": side[..., :2].tolist()}, "image 1 of 1 has pixels of shape (8, 8, 2)"),
        ({"instances": []}, "the request has no image"),
        ({"dataframe_records": [{"picture": good}]}, "the request has 0 columns image among ['picture']"),
        ({"dataframe_records": [{"image": good}, {"image": None}]}, "image 2 of 2 is"),
        ({"dataframe_records": [{"image": good}, {"image": good[:80]}]}, "image 2 of 2 cannot be used: truncated"),
        ({"inputs": {"image": [text_of(b"text")]}}, "image 1 of 1 cannot be used: not an image of a known format"),
        ({"inputs": {"image": ["photo.jpg"]}}, "image 1 of 1 is the text 'photo.jpg', which is no base64"),
        ({"inputs": {"image": [str(__file__)]}, "params": {"paths": True}}, "not allowed over HTTP"),
        ({"messages": [good]}, "the request has 0 columns image among ['messages']"),
    ):
        status, text = post(body)
        answer = json.loads(text)
        assert status == 400 and answer["error_code"] == "BAD_REQUEST" and said in answer["message"], text[:500]
        assert answer["message"].endswith("as bytes or as base64 text") and "\n" not in answer["message"]
        assert len(text) < 500, "the request is not sent back"


@pytest.mark.slow
def test_in_python_paths_are_read_only_if_asked_for(model, tmp_path):
    from mlflow.exceptions import MlflowException

    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(0), "PNG"))
    table = pd.DataFrame({"image": [str(path)]})
    wanted = model.predict([path.read_bytes()]).to_dict("records")
    assert model.predict(table, params={"paths": True}).to_dict("records") == wanted
    with pytest.raises(MlflowException, match="which is no base64"):
        model.predict(table)
    for other in (tmp_path, tmp_path / "gone.png", "a\0b"):
        with pytest.raises(MlflowException, match="there is no such file"):
            model.predict([str(other)], params={"paths": True})


@pytest.mark.slow
def test_requests_at_the_same_time_get_their_own_answers(post):
    bodies = [{"inputs": [text_of(encoded(picture(seed)))]} for seed in range(12)]
    wanted = [post(body) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(post, bodies * 4)) == wanted * 4
    assert all(status == 200 for status, _ in wanted)


@pytest.mark.slow
def test_a_photo_of_twelve_megapixels_is_answered(model, post):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).resize((4000, 3000))
    data = encoded(noise, quality=95)
    assert len(data) > 1_000_000
    (found,) = records(post({"dataframe_split": {"columns": ["image"], "data": [[text_of(data)]]}}))
    assert found == model.predict([data]).to_dict("records")[0]


def mutated(body, rng):
    """``body`` with some bytes cut, flipped, added, or moved."""
    body = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body))
        end = min(len(body), at + rng.choice([1, 1, 4, 50, 1000]))
        kind = rng.randrange(5)
        if kind == 0:
            del body[at:end]
        elif kind == 1:
            body[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            body[at:end] = rng.randbytes(end - at)
        elif kind == 3:
            body[at:at] = rng.choice([b"[", b"]", b"{", b"}", b'"', b",", b"null", b"1e999", b"-", b"\\ud800", b"0"])
        else:
            body[at:at] = body[:end][-200:]
        if not body:
            return b"{"
    return bytes(body)


def odd_value(rng, depth=0):
    """JSON that is more or less like a request."""
    numbers = [0, -1, 255, 256, 0.5, 1e308, -1e999, 10**18, 10**30, 10**400, float("nan"), True, None]
    texts = [
        "",
        "image",
        "a" * 300,
        text_of(b"GIF89a" + rng.randbytes(20)),
        "data:image/png;base64,AAAA",
        "\ud800",
        "é",
    ]
    kind = rng.randrange(6 if depth < 4 else 2)
    if kind == 0:
        return rng.choice(numbers)
    if kind == 1:
        return rng.choice(texts)
    if kind == 2:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 3:
        return {rng.choice(["image", "data", "columns", "index", "x", ""]): odd_value(rng, depth + 1) for _ in range(3)}
    shape = [rng.choice([0, 1, 2, 3, 4, 5]) for _ in range(rng.randrange(1, 6))]
    values = np.array([rng.choice([0, 7, 255, 300, -2, 0.5]) for _ in range(int(np.prod(shape)))])
    return values.reshape(shape).astype(rng.choice([int, float, bool])).tolist()


@pytest.mark.slow
def test_of_1500_damaged_requests_none_is_the_servers_fault(post):
    rng = random.Random(0)
    images = list(variety().values())
    statuses, fields = [], ["instances", "inputs", "dataframe_split", "dataframe_records", "messages", "nothing"]
    table = io.BytesIO()
    pd.DataFrame({"image": images[:2]}).to_parquet(table)
    for number in range(1500):
        good = json.dumps({"inputs": {"image": [text_of(rng.choice(images))]}, "params": {"paths": False}}).encode()
        kind = number % 5
        content = "application/json"
        if kind == 0:
            body = mutated(good, rng)
        elif kind == 1:
            damaged = [text_of(mutated(rng.choice(images), rng)) for _ in range(rng.randint(1, 2))]
            body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[each] for each in damaged]}})
        elif kind == 2:
            body = json.dumps({rng.choice(fields): odd_value(rng), rng.choice(["params", *fields]): odd_value(rng)})
        elif kind == 3:
            body = json.dumps({rng.choice(fields[:4]): odd_value(rng)})
        else:
            content, whole = rng.choice([
                ("text/csv", b"image\n" + text_of(images[0]).encode()), ("text/csv; charset=utf-8", b"image,b\n1,2"),
                ("application/vnd.apache.parquet", table.getvalue()), ("image/jpeg", images[0]),
            ])  # fmt: skip
            body = mutated(whole, rng)
        status, text = post(body, content)
        assert status in (200, 400, 415), (number, status, body[:300], text[:300])
        statuses.append(status)
    assert {status: statuses.count(status) > 20 for status in (200, 400, 415)} == dict.fromkeys((200, 400, 415), True)


IMPORTS = """
import builtins, json, sys
from pathlib import Path

asked, original = set(), builtins.__import__

def spy(name, globals=None, *rest, **named):
    asker = (globals or {}).get("__name__", "")
    if asker.split(".")[0] == "scan_core" or "served_model" in (globals or {}).get("__file__", ""):
        asked.add(name.split(".")[0])
    return original(name, globals, *rest, **named)

builtins.__import__ = spy
import mlflow
package = Path(sys.argv[1])
request = json.loads((package / "input_example.json").read_text())
said = mlflow.pyfunc.load_model(package).predict([row[0] for row in request["data"]])
assert len(said) and "scan_core" in asked, said
import scan_core
assert Path(scan_core.__file__).is_relative_to(package), scan_core.__file__
print("imported", *asked)
"""


@pytest.mark.slow
def test_the_package_answers_with_its_own_code_and_imports_what_it_requires(package, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, package], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("imported"))
    owners = packages_distributions()
    names = {owner.lower() for each in line.split()[1:] for owner in owners.get(each, ())} - {"scan-pipeline"}
    names = {name for name in names if not name.startswith("mlflow-")}  # parts of it
    required = {text.partition("==")[0] for text in (package / "requirements.txt").read_text().split()}
    assert {"torch", "pillow", "simplejpeg"} <= names <= required
    assert ("openvino" in required) == ("openvino" in names) == (package / "artifacts" / "networks").exists()
    assert set(MODEL_REQUIREMENTS) <= required


@pytest.mark.slow
def test_the_example_in_the_package_is_a_request(package, post):
    found = records(post((package / "serving_input_example.json").read_text()))
    assert len(found) == 4 and list(found[0]) == COLUMNS


@pytest.mark.slow
def test_a_model_that_was_registered_before_the_connection_broke_is_registered_once(project):
    count = "; from pipeline.tracking.mlflow_runs import connect; "
    count += "print('versions', len(connect(Path.cwd())[0].search_model_versions('')))"
    before = run(project, sys.executable, "-c", SEND + count).stdout
    folder = project / ".scan" / "tracking" / "1-evaluate-1"
    shutil.copytree(project.parent / "again", folder)
    assert run(project, sys.executable, "-c", SEND + count).stdout.split() == before.split() == ["versions", "1"]
    assert not folder.exists()
