"""Parts of images: exactly the box's pixels, one row for each part and file, and each mistake with its place."""

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from scan_core.data import chunks
from scan_core.data.boxes import read_boxes
from scan_core.data.decode import ORIENTATION, Refused, Target, crop, decode, open_image, target_of
from scan_core.data.ingest import ingest, load_chunks
from scan_core.data.labels import images_of, labels_and_splits, names_to_label
from scan_core.data.open import open_source
from scan_core.data.signature import signature
from scan_core.data.types import Box, Finding, image_name, part_name
from tests.scan_core.data.little_files import findings, names, put, settings
from tests.tiny import change, refused

HEADER = "source,left,top,width,height\n"
ANIMALS = {"1": "animal", "2": "person", "3": "vehicle"}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 80, 4), dtype=np.uint8)  # (height,width,channels)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode="RGB", factor=1):
    return Image.fromarray(PIXELS).convert(mode).resize((80 * factor, 60 * factor), Image.Resampling.BICUBIC)


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(), "JPEG", exif=exif)


def megadetector(images, **values):
    """The JSON of (file, (category, conf, bbox), ...)."""
    listed = [
        {"file": file, "detections": [{"category": c, "conf": conf, "bbox": list(bbox)} for c, conf, bbox in found]}
        for file, *found in images
    ]
    return json.dumps({"info": {"format_version": "1.6"}, "images": listed, "detection_categories": ANIMALS, **values})


def opened(root, images, boxes, name="folder", **values):
    """The source of ``images``, bytes by name, with ``boxes``: CSV below its header, or JSON."""
    suffix = ".json" if boxes.startswith(("{", "[")) else ".csv"
    (root / f"boxes{suffix}").write_text(boxes if suffix == ".json" else HEADER + boxes)
    put(root / "images", images)
    data = settings(name, "images", boxes=f"boxes{suffix}", **values)
    return open_source(data, root, root), data


def taken(root, images, boxes, **values):
    """The catalog, and the stored pixels of each part by its name, as prepare would decode them."""
    source, data = opened(root, images, boxes, **values)
    count = ingest(source, target_of(data), root, 1, lambda *_: None)
    catalog, locations = load_chunks(root, count)
    parts = {}
    for name, (chunk, start, end) in zip(catalog.names, locations.tolist(), strict=True):
        flat = np.frombuffer((root / f"{chunk:06d}.bin").read_bytes()[start:end], np.uint8)
        parts[name] = flat.reshape(data.size, data.size, -1)
    return catalog, parts


def upright(data):
    """What any program shows of an encoded image, in color, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


ENCODED = {
    "a.png": encoded(picture()),
    "gray.png": encoded(picture("L")),
    "rgba.png": encoded(picture("RGBA")),
    "palette.gif": encoded(picture("P"), "GIF"),
    "a.tiff": encoded(picture(), "TIFF"),
    "a.jpg": encoded(picture(), "JPEG"),
    "gray.jpg": encoded(picture("L"), "JPEG"),
    "large.jpg": encoded(picture(factor=12), "JPEG"),  # decoded at an eighth, if it is meant as a whole
    "progressive.jpg": encoded(picture(factor=12), "JPEG", progressive=True),
    **{f"turned{orientation}.jpg": turned(orientation) for orientation in range(1, 9)},
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_part_is_what_pil_crops_of_the_upright_image(tmp_path, name):
    _, parts = taken(tmp_path, {name: ENCODED[name]}, f"{name},11,23,16,16\n{name},30,5,16,16\n", size=16)
    assert list(parts) == [f"{name}#1", f"{name}#2"]
    for part, corner in zip(parts.values(), ((11, 23), (30, 5)), strict=True):
        wanted = upright(ENCODED[name]).crop((*corner, corner[0] + 16, corner[1] + 16))
        assert np.array_equal(np.broadcast_to(part, (16, 16, 3)), np.asarray(wanted))


@pytest.mark.parametrize("name", ["a.png", "turned6.jpg", "large.jpg"])
def test_megadetectors_boxes_are_shares_of_the_upright_image(tmp_path, name):
    width, height = upright(ENCODED[name]).size
    found = ("1", 0.9, (11 / width, 23 / height, 16 / width, 16 / height))
    _, parts = taken(tmp_path, {name: ENCODED[name]}, megadetector([(name, found)]), size=16)
    wanted = upright(ENCODED[name]).crop((11, 23, 27, 39))
    assert np.array_equal(parts[f"{name}#1"], np.asarray(wanted))


def test_a_part_is_cropped_before_it_is_resized(tmp_path):
    _, parts = taken(tmp_path, {"a.png": ENCODED["a.png"]}, "a.png,10,20,40,40\n", size=8)
    wanted = picture().crop((10, 20, 50, 60)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(parts["a.png#1"], np.asarray(wanted))


@pytest.mark.parametrize(("box", "wanted"), [
    (Box(10, 20, 30, 40), (10, 20, 40, 60)),
    (Box(-5, -6, 30, 40), (0, 0, 25, 34)),
    (Box(70, 50, 30, 40), (70, 50, 80, 60)),
    (Box(-1e9, -1e9, 2e9, 2e9), (0, 0, 80, 60)),
    (Box(-1e308, 0, 1.7e308, 1.7e308), (0, 0, 80, 60)),
    (Box(10.4, 20.6, 30.2, 3.9), (10, 21, 41, 24)),  # the edges are rounded, not the size
    (Box(78, 58, 2, 2), (78, 58, 80, 60)),
    (Box(0.25, 0.5, 0.5, 0.25, relative=True), (20, 30, 60, 45)),
    (Box(0.9, -0.1, 0.2, 1.2, relative=True), (72, 0, 80, 60)),
])  # fmt: skip
def test_a_box_is_rounded_and_clipped_to_the_image(box, wanted):
    assert crop(picture(), box).tobytes() == picture().crop(wanted).tobytes()


@pytest.mark.parametrize(("box", "left"), [
    (Box(79, 0, 30, 40), "1 x 40"), (Box(0, 0, 0, 9), "0 x 9"), (Box(80, 0, 9, 9), "0 x 9"),
    (Box(-9, 0, 9, 9), "0 x 9"), (Box(0, 0, 0.01, 0.01, relative=True), "1 x 1"), (Box(500, 500, 10, 10), "0 x 0"),
])  # fmt: skip
def test_a_box_of_less_than_two_pixels_is_refused(box, left):
    with pytest.raises(
        Refused, match=f"^the box holds {left} of the image's 80 x 60 pixels; at least 2 x 2 are needed$"
    ):
        crop(picture(), box)


def test_every_file_and_every_box_has_one_row(tmp_path):
    images = {
        "day/a.png": ENCODED["a.png"], "day/empty.png": ENCODED["gray.png"], "day/notes.txt": b"wet",
        ".hidden.png": b"", "cut.png": ENCODED["a.png"][:900], "video.mp4": b"film",
    }  # fmt: skip
    boxes = "day/a.png,0,0,9,9\ncut.png,0,0,9,9\nday/a.png,90,0,9,9\nday/a.png,9,0,9,9\n\nvideo.mp4,0,0,9,9\n"
    source, _ = opened(tmp_path, images, boxes)
    catalog, _ = taken(tmp_path, images, boxes)
    assert catalog.names == ["day/a.png#1", "day/a.png#3"]
    assert {finding.name: (finding.kind, finding.reason) for finding in catalog.findings} == {
        ".hidden.png": ("ignored", "hidden or system file"),
        "cut.png#1": ("rejected", "truncated"),
        "day/a.png#2": ("rejected", "the box holds 0 x 9 of the image's 80 x 60 pixels; at least 2 x 2 are needed"),
        "day/empty.png": ("ignored", "no box in boxes.csv"),
        "day/notes.txt": ("ignored", "no box in boxes.csv"),
        "video.mp4#1": ("rejected", "not an image of a known format"),
    }
    assert len(catalog.names) + len(catalog.findings) == source.total == len(list(source.read()))


def test_an_image_is_decoded_once_for_all_its_boxes(tmp_path, monkeypatch):
    def counted(data, target):
        with (tmp_path / "log").open("a") as file:  # a worker's list would be lost
            file.write(".")
        return decode(data, target)

    monkeypatch.setattr(chunks, "decode", counted)
    images = {"a.png": ENCODED["a.png"], "b.jpg": ENCODED["a.jpg"]}
    boxes = "".join(f"{name},{left},0,9,9\n" for left in range(7) for name in images)
    _, parts = taken(tmp_path, images, boxes)
    assert len(parts) == 14 and (tmp_path / "log").read_text() == ".."


@pytest.mark.parametrize("name", ["folder", "archive", "parquet"])
def test_every_source_of_image_files_has_parts(tmp_path, name):
    files = {"a/1.png": ENCODED["a.png"], "b/2.png": ENCODED["gray.png"]}
    boxes = "a/1.png,1,2,9,9\na/1.png,3,4,9,9\nb/2.png,5,6,9,9\n"
    if name == "archive":
        with zipfile.ZipFile(tmp_path / "images", "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    elif name == "parquet":
        pq.write_table(pa.table({"image": list(files.values()), "label": ["a", "b"]}), tmp_path / "images")
        boxes = boxes.replace("a/1.png", "images/0000000").replace("b/2.png", "images/0000001")
    source, data = opened(tmp_path, files if name == "folder" else {}, boxes, name=name)
    items = list(source.read())
    assert [item.box for item in items] == [Box(1, 2, 9, 9), Box(3, 4, 9, 9), Box(5, 6, 9, 9)]
    assert len(set(names(items))) == 3
    count = ingest(source, target_of(data), tmp_path, 1, lambda *_: None)
    catalog, _ = load_chunks(tmp_path, count)
    assert labels_and_splits(source, catalog, data, {})[0] == ["a", "a", "b"]


@pytest.mark.parametrize("name", ["npy", "digits", "cifar10"])
def test_a_source_without_image_files_has_no_parts(name):
    with pytest.raises(
        ValueError, match=f"boxes is boxes.csv; data.name {name} has no image files, .* folder, archive, "
    ):
        settings(name, "images", boxes="boxes.csv")


def test_labels_of_images_are_those_of_their_parts_unless_a_part_has_its_own(tmp_path):
    images = {"a.png": ENCODED["a.png"], "b.png": ENCODED["gray.png"]}
    source, data = opened(tmp_path, images, "a.png,0,0,9,9\na.png,9,0,9,9\nb.png,0,0,9,9\n", labels="labels.csv")
    count = ingest(source, target_of(data), tmp_path, 1, lambda *_: None)
    catalog, _ = load_chunks(tmp_path, count)
    csv_labels = {"a.png": "fox", "a.png#2": "deer", "c.png": "owl"}
    assert labels_and_splits(source, catalog, data, csv_labels)[0] == ["fox", "deer", None]
    matched = images_of(csv_labels, names_to_label(catalog.names, data))
    assert matched.keys() == {"a.png", "a.png#2"}, "a label of all parts is not one of no image"
    whole = change(data, boxes=None)  # here a#2.png is a file's whole name, and a is another file
    catalog.names = ["a#2.png", "a", "b"]
    assert labels_and_splits(source, catalog, whole, {"a": "fox"})[0] == [None, "fox", None]


def test_the_name_of_a_part_leads_back_to_its_image():
    for name in ("a/b.jpg", "a#1.png", "a#b/c#2", "#"):
        assert image_name(part_name(name, 12)) == name


def test_spaces_around_a_source_count_only_where_a_name_has_them(tmp_path):
    source, _ = opened(tmp_path, {"a.png": b"", " b.png": b""}, " a.png ,0,0,9,9\n b.png, 1 , 2,3,4\n")
    assert names(source.read()) == [" b.png#1", "a.png#1"]


# --- MegaDetector


def test_only_animals_that_megadetector_is_sure_of_count(tmp_path):
    found = [
        ("a.png", ("1", 0.2, (0, 0, 0.5, 0.5)), ("1", 0.199, (0, 0, 1, 1)), ("2", 0.9, (0, 0, 1, 1)),
         ("1", 1, (0.5, 0, 0.5, 1)), ("7", 0.9, (0, 0, 1, 1))),
        ("b.png", ("3", 0.9, (0, 0, 1, 1))),
        ("c.png",),
        ("sub\\d.png", ("1", 0.8, (0, 0, 1, 1))),
        ("gone.png", ("1", 0.1, (0, 0, 1, 1))),  # nothing of it is used
    ]  # fmt: skip
    written = json.loads(megadetector(found))
    written["images"] += [{"file": "e.png", "failure": "Failure image access", "detections": None}, {"file": "f.png"}]
    video = {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1], "frame_number": 20}
    written["images"].append({"file": "g.mp4", "frame_rate": 20, "detections": [video]})
    images = dict.fromkeys(["a.png", "b.png", "c.png", "sub/d.png", "e.png", "f.png", "g.mp4"], b"")
    source, _ = opened(tmp_path, images, json.dumps(written))
    things = list(source.read())
    assert {item.name: item.box for item in things if not isinstance(item, Finding)} == {
        "a.png#1": Box(0, 0, 0.5, 0.5, relative=True), "a.png#2": Box(0.5, 0, 0.5, 1, relative=True),
        "sub/d.png#1": Box(0, 0, 1, 1, relative=True),
    }  # fmt: skip
    assert findings(things) == {
        name: ("ignored", "no box in boxes.json") for name in ("b.png", "c.png", "e.png", "f.png", "g.mp4")
    }


def test_the_number_of_an_animal_does_not_follow_the_order_of_categories(tmp_path):
    other = {"0": "vehicle", "9": "animal"}
    text = megadetector([("a.png", ("9", 0.9, (0, 0, 1, 1)), ("0", 0.9, (0, 0, 1, 1)))], detection_categories=other)
    assert names(opened(tmp_path, {"a.png": b""}, text)[0].read()) == ["a.png#1"]


# --- mistakes


@pytest.mark.parametrize(("content", "said"), [
    ("source,left,top,width\na,1,2,3\n", ('0 columns named "height"', "source, left, top, width, height")),
    ("", ("its columns are none",)),
    (HEADER, ("has no box; at least one is needed",)),
    (HEADER + "a.png,1,2,3,4\nb.png,1,two,3,4\n", ('line 3: top is "two"; a number of pixels is allowed',)),
    (HEADER + "a.png,1,2,3\n", ('line 2: height is ""; a number of pixels of at least 0 is allowed',)),
    (HEADER + "a.png,1,2,-3,4\n", ('line 2: width is "-3"; a number of pixels of at least 0',)),
    (HEADER + "a.png,nan,2,3,4\n", ('line 2: left is "nan"',)),
    (HEADER + "a.png,1,inf,3,4\n", ('line 2: top is "inf"',)),
    (HEADER + ",1,2,3,4\n", ("line 2: the box has no source; name its image",)),
    (HEADER + '"a"b,1,2,3,4\n', ("line 2",)),
    (HEADER.encode("utf-16")[:-1], ("is not UTF-8",)),
])  # fmt: skip
def test_a_mistake_in_a_csv_file_is_an_error_with_its_place(tmp_path, content, said):
    path = tmp_path / "boxes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: read_boxes(path), path, *said)


def wrong(**values):
    found = {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1], **values}
    fine = {"file": "a.png", "detections": []}
    images = [fine, {"file": "b.png", "detections": [{k: v for k, v in found.items() if v is not None}]}]
    return json.dumps({"images": images, "detection_categories": ANIMALS})


@pytest.mark.parametrize(("content", "said"), [
    ("{", ("is not MegaDetector's output: Invalid JSON", "line 1")),
    ("\xff\xfe", ("is not MegaDetector's output",)),
    ("{}", ("images: Field required",)),
    ('[{"file": "a", "detections": []}]', ("is not MegaDetector's output",)),  # another detector's list
    ('{"images": []}', ("detection_categories: Field required",)),
    ('{"images": [{"detections": []}], "detection_categories": {}}', ("images[0].file: Field required",)),
    (wrong(bbox=None), ("images[1].detections[0].bbox: Field required",)),
    (wrong(bbox=[0, 0, 1]), ("images[1].detections[0].bbox[3]: Field required",)),
    (wrong(bbox=[0, 0, -1, 1]), ("images[1].detections[0].bbox[2]: Input should be greater than or equal to 0",)),
    (wrong(bbox=[0, "0", 1, 1]), ("images[1].detections[0].bbox[1]: Input should be a valid number",)),
    (wrong(bbox=[float("nan"), 0, 1, 1]), ("is not MegaDetector's output",)),
    (wrong(conf=None), ("images[1].detections[0].conf: Field required",)),
    (wrong(category=1), ("images[1].detections[0].category: Input should be a valid string",)),
    (wrong(conf=0.1), ("has no box of an animal with a confidence of at least 0.2",)),
    (megadetector([], detection_categories={"1": "dog"}), ("detection_categories are dog; one of them must",)),
])  # fmt: skip
def test_a_mistake_in_a_json_file_is_an_error_with_its_place(tmp_path, content, said):
    path = tmp_path / "boxes.json"
    path.write_bytes(content.encode("latin-1"))
    refused(lambda: read_boxes(path), path, *said)


@pytest.mark.parametrize("name", ["boxes.csv", "boxes.json"])
def test_a_file_that_is_not_there_is_an_error(tmp_path, name):
    refused(lambda: read_boxes(tmp_path / name), tmp_path / name, "No such file", "data.boxes")
    put(tmp_path / "images", {"a.png": b""})
    data = settings("folder", "images", boxes=name)
    refused(lambda: signature(data, tmp_path, tmp_path), f"data.boxes is {name}; there is no file {tmp_path / name}")


@pytest.mark.parametrize(("boxes", "said"), [
    ("b/a.png,0,0,9,9\na.png,0,0,9,9\n", "boxes.csv, line 3: a.png is not in the source, which has b/a.png"),
    (megadetector([("b/a.png",), ("/photos/b/a.png", ("1", 0.9, (0, 0, 1, 1)))]),
     "boxes.json, images[1]: /photos/b/a.png is not in the source, which has b/a.png"),
])  # fmt: skip
def test_an_image_that_the_source_does_not_have_is_an_error_before_anything_is_decoded(tmp_path, boxes, said):
    refused(lambda: opened(tmp_path, {"b/a.png": b"", "c.txt": b""}, boxes), said, "write the names as the source has")


def test_a_file_with_the_name_of_a_part_is_an_error(tmp_path):
    images = {"a.png": b"", "a.png#2": b""}
    assert names(opened(tmp_path, images, "a.png,0,0,9,9\n")[0].read()) == ["a.png#1"]
    refused(lambda: opened(tmp_path, images, "a.png,0,0,9,9\na.png,0,0,9,9\n"), "a.png#2 is a file", "rename the file")


# --- what a change of the file changes


def test_the_signature_holds_the_content_of_the_boxes_and_not_their_time(tmp_path):
    _, data = opened(tmp_path, {"a.png": b""}, "a.png,0,0,9,9\n")
    first = signature(data, tmp_path, tmp_path)
    (tmp_path / "boxes.csv").write_text(HEADER + "a.png,0,0,9,9\n")
    assert signature(data, tmp_path, tmp_path) == first
    (tmp_path / "boxes.csv").write_text(HEADER + "a.png,0,0,9,8\n")  # as long as before
    other = signature(data, tmp_path, tmp_path)
    assert other["content"].pop("boxes") != first["content"].pop("boxes") and other == first
    assert signature(change(data, boxes=None), tmp_path, tmp_path) == first


def test_without_boxes_large_jpegs_are_reduced_as_before():
    data, target = ENCODED["large.jpg"], Target(8, "crop", "array", 10**7)
    assert open_image(data, target).size == (120, 90)
    assert target == target_of(settings("folder", "images", size=8, max_pixels=10**7))
