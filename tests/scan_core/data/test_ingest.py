"""Chunks: the same for any number of processes, after any kill, and without the images that kill their decoder."""

import contextlib
import faulthandler
import io
import multiprocessing
import os
import signal
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.presets import read_preset
from scan_core.data import chunks, ingest
from scan_core.data.chunks import load_thumbs
from scan_core.data.decode import Target
from scan_core.data.types import Finding, Item, Source
from scan_core.errors import ScanError
from tests.project import ROOT
from tests.tiny import change

DATA = change(read_preset(ROOT / "presets" / "digits.yaml").data, name="folder", path="images")
HOME = Path("/data/sets")
TARGET = Target(size=8, fit="crop", stored="array", max_pixels=10**6)
COUNT, TAKEN, REFUSED = 30, 21, 9  # things


def png(seed, size=8, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, "PNG")
    return file.getvalue()


def things(count=COUNT):
    """Images, some of them gray, and some other files, and some that the source refuses."""
    for number in range(count):
        name = f"a/{number:03d}"
        if number % 11 == 5:
            yield Finding(f"{name}.lnk", "rejected", "a link to nothing")
        elif number % 7 == 3:
            yield Item(f"{name}.png", png(number)[:60], "x")
        elif number % 13 == 6:
            yield Item(f"{name}.txt", b"notes", "x")
        else:
            yield Item(f"{name}.png", png(number, mode="L" if number % 3 == 0 else "RGB"), "x", "train")


def source_of(items):
    items = list(items)
    return Source(read=lambda: iter(items))


def run(folder, items=None, workers=1, target=TARGET):
    """The number of chunks made in ``folder``, and what was reported."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    source = source_of(things() if items is None else items)
    return ingest.ingest(source, target, folder, workers, lambda *counts: reports.append(counts)), reports


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 6)


@pytest.fixture
def whole(tmp_path):
    """The chunks of an undisturbed run."""
    run(tmp_path / "whole")
    return contents(tmp_path / "whole")


def deadly(monkeypatch, numbers, how=lambda: os._exit(3)):
    """Workers, which are forks of this process, die of some images."""
    bad, original = {png(number) for number in numbers}, chunks.open_image

    def open_image(data, target):
        if data in bad:
            how()
        return original(data, target)

    monkeypatch.setattr(chunks, "open_image", open_image)


# --- pieces


@pytest.mark.parametrize(
    ("stored", "size", "data", "wanted"),
    [
        ("array", 8, [b""] * 14, [6, 6, 2]),  # by count
        ("array", 64, ["/image"] * 10, [4, 4, 2]),  # by the bytes that they will take
        ("jpeg", 182, ["/image"] * 10, [4, 4, 2]),
        ("array", 8, [bytes(size) for size in (20_000, 20_000, 20_000, 99_999, 1, 1)], [3, 1, 2]),  # in memory
        ("array", 8, [np.zeros(size, np.uint8) for size in (20_000, 20_000, 20_000, 99_999, 1, 1)], [3, 1, 2]),
    ],
)
def test_pieces_are_cut_by_count_and_by_bytes(monkeypatch, stored, size, data, wanted):
    monkeypatch.setattr(ingest, "CHUNK_BYTES", 4 * 3 * 64**2)
    items = [Item(f"{number}", each) for number, each in enumerate(data)]
    found = ingest.pieces(source_of(items), Target(size, "crop", stored, 10**6))
    assert [len(piece.items) for piece in found] == wanted


@given(st.lists(st.integers(0, 5000), max_size=40), st.lists(st.booleans(), min_size=40, max_size=40))
def test_pieces_hold_everything_once_in_order(sizes, refused):
    everything = [
        Finding(str(number), "rejected", "") if no else Item(str(number), bytes(size))
        for number, (size, no) in enumerate(zip(sizes, refused, strict=False))
    ]
    first, again = (list(ingest.pieces(source_of(everything), TARGET)) for _ in range(2))
    assert first == again
    assert [piece.number for piece in first] == list(range(max(-(-len(sizes) // 6), 1))), "findings count"
    assert [item for piece in first for item in piece.items] == [each for each in everything if type(each) is Item]
    assert [each for piece in first for each in piece.findings] == [
        each for each in everything if type(each) is Finding
    ]


# --- ingest


def test_nothing_is_lost_and_the_order_is_the_sources(tmp_path):
    count, reports = run(tmp_path)
    catalog, locations = ingest.load_chunks(tmp_path, count)
    everything = list(things())
    taken = [each for each in everything if type(each) is Item and each.name.endswith(".png") and len(each.data) > 60]
    assert count == 5 and len(reports) == 5
    assert catalog.names == [item.name for item in taken]
    assert {finding.name for finding in catalog.findings} == {each.name for each in everything} - set(catalog.names)
    assert {finding.kind for finding in catalog.findings} == {"rejected", "ignored"}
    assert reports == sorted(reports) and reports[-1] == (len(taken), len(everything) - len(taken))
    assert set(catalog.labels) == {"x"} and set(catalog.splits) == {"train"}
    assert locations.dtype == np.int64 and locations.shape == (len(taken), 3)
    for (chunk, start, end), item, gray in zip(locations.tolist(), taken, catalog.gray, strict=True):
        stored = (tmp_path / f"{chunk:06d}.bin").read_bytes()[start:end]
        image = Image.open(io.BytesIO(item.data))
        assert gray == (image.mode == "L")
        assert stored == (image.tobytes() if len(stored) == 64 else image.convert("RGB").tobytes())


@pytest.mark.parametrize(("workers", "seconds"), [(2, 0), (3, 0), (3, 0.02)])
def test_neither_the_number_of_processes_nor_their_speed_changes_a_byte(tmp_path, monkeypatch, whole, workers, seconds):
    original = chunks.open_image

    def slow(data, target):
        time.sleep(seconds * (data == png(0)))
        return original(data, target)

    monkeypatch.setattr(chunks, "open_image", slow)
    run(tmp_path / "other", workers=workers)
    assert contents(tmp_path / "other") == whole


@pytest.mark.slow
def test_with_any_chunks_already_there_the_others_are_made(tmp_path, monkeypatch, whole):
    log = tmp_path / "log"
    original = ingest.decode_chunk

    def noted(items, findings, target, folder, number):
        with log.open("a") as file:
            file.write(f"{number}\n")
        return original(items, findings, target, folder, number)

    monkeypatch.setattr(ingest, "decode_chunk", noted)
    for number, missing in enumerate(each for size in (0, 1, 4, 5) for each in combinations(range(5), size)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in whole.items():
            if int(name[:6]) not in missing:
                (folder / name).write_bytes(data)
        log.write_text("")
        _, reports = run(folder, workers=2)
        assert contents(folder) == whole
        assert sorted(map(int, log.read_text().split())) == list(missing)
        assert reports[-1] == (TAKEN, REFUSED)


def cut(name, share):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(share * 500)])


DAMAGE = {
    "a cut .bin": cut("000002.bin", 0.3),
    "an empty .bin": cut("000002.bin", 0),
    "a longer .bin": lambda folder: (folder / "000002.bin").write_bytes(bytes(9999)),
    "no .bin": lambda folder: (folder / "000002.bin").unlink(),
    "a cut .npz": cut("000002.npz", 1),
    "an empty .npz": cut("000002.npz", 0),
    "no .npz": lambda folder: (folder / "000002.npz").unlink(),
    "another chunk's": lambda folder: [
        (folder / f"000002.{kind}").write_bytes((folder / f"000003.{kind}").read_bytes()) for kind in ("bin", "npz")
    ],
    "stray .partial": lambda folder: (folder / "000002.partial").write_bytes(b"half"),
    "stray .partial without the rest": lambda folder: (
        (folder / "000002.npz").rename(folder / "000002.partial"),
        (folder / "000001.partial").write_bytes(b"half"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.slow
def test_what_is_not_whole_is_made_again(tmp_path, whole, damage):
    run(tmp_path / "damaged")
    DAMAGE[damage](tmp_path / "damaged")
    count, _ = run(tmp_path / "damaged")
    assert {name: data for name, data in contents(tmp_path / "damaged").items() if ".partial" not in name} == whole
    assert len(ingest.load_chunks(tmp_path / "damaged", count)[0].names) == TAKEN


def test_what_is_in_flight_does_not_grow_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 4)
    image, state = png(0), {"read": 0, "done": 0, "most": 0}

    def read():
        for number in range(200):
            state["read"] += 1
            state["most"] = max(state["most"], state["read"] - state["done"])
            yield Item(f"{number}.png", image)

    def report(taken, refused):
        state["done"] = taken + refused

    for workers in (1, 2):
        state |= {"read": 0, "done": 0, "most": 0}
        folder = tmp_path / str(workers)
        folder.mkdir()
        count = ingest.ingest(Source(read=read), TARGET, folder, workers, report)
        assert count == 50
        assert state["most"] <= 4 * (2 * workers + 1)


def test_chunks_without_images_are_chunks(tmp_path):
    items = [Item(f"{number}.txt", b"text") for number in range(7)] + [Item("a.png", png(1))]
    count, reports = run(tmp_path, items)
    catalog, locations = ingest.load_chunks(tmp_path, count)
    assert catalog.names == ["a.png"] and len(catalog.findings) == 7 and locations.tolist() == [[1, 0, 192]]
    assert reports == [(0, 6), (1, 7)]
    assert load_thumbs(tmp_path / "000000.npz").shape == (0, 16, 16, 3)


def test_an_error_in_the_source_ends_the_run_and_the_workers(tmp_path):
    def read():
        yield from things(20)
        raise ScanError("the archive is damaged")

    with pytest.raises(ScanError, match="the archive is damaged"):
        ingest.ingest(Source(read=read), TARGET, tmp_path, 2, lambda *_: None)
    run(tmp_path / "other", list(things(20)))


def test_an_error_in_a_worker_is_the_runs(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest, "decode_chunk", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, workers=2)


def test_an_interrupt_is_not_the_workers(tmp_path, monkeypatch, whole):
    """Ctrl-C reaches them too, and one that waits would end with a traceback of its own."""
    monkeypatch.setattr(ingest, "_decode_without_crashes", None)  # what follows if a worker has ended

    def read():
        for number, each in enumerate(things()):
            if number == 10:
                time.sleep(0.3)
                workers = multiprocessing.active_children()
                assert len(workers) == 2
                for worker in workers:
                    os.kill(worker.pid, signal.SIGINT)
                time.sleep(0.1)
            yield each

    (tmp_path / "found").mkdir()
    ingest.ingest(Source(read=read), TARGET, tmp_path / "found", 2, lambda *_: None)
    assert contents(tmp_path / "found") == whole


# --- decoders that kill their process


def leave():
    os._exit(3)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("numbers", "workers", "how"),
    [((1,), 1, leave), ((8,), 2, be_killed), ((1, 2), 2, segfault), ((7, 11), 1, leave), ((1, 8, 13, 29), 3, leave)],
)
@pytest.mark.slow
def test_a_crash_costs_that_image_alone(tmp_path, monkeypatch, numbers, workers, how):
    """As if the source had refused it."""
    items = [
        Finding(each.name, "rejected", "its decoder crashed") if int(each.name[2:5]) in numbers else each
        for each in things()
    ]
    wanted, places = ingest.load_chunks(tmp_path / "wanted", run(tmp_path / "wanted", items)[0])
    deadly(monkeypatch, numbers, how)
    count, reports = run(tmp_path / "found", workers=workers)
    found, locations = ingest.load_chunks(tmp_path / "found", count)
    assert found.names == wanted.names and sorted(found.findings) == sorted(wanted.findings)
    assert np.array_equal(found.digests, wanted.digests) and np.array_equal(locations, places)
    assert reports[-1] == (TAKEN - len(numbers), REFUSED + len(numbers)) and len(reports) == 5
    assert {path.suffix for path in (tmp_path / "found").iterdir()} == {".bin", ".npz"}


def test_a_crash_while_the_source_is_read(tmp_path, monkeypatch):
    """The pool is broken when the next chunk is handed to it."""
    deadly(monkeypatch, [1])

    def read():
        for number, each in enumerate(things()):
            if number == 10:
                time.sleep(0.3)
            yield each

    count = ingest.ingest(Source(read=read), TARGET, tmp_path, 2, lambda *_: None)
    catalog, _ = ingest.load_chunks(tmp_path, count)
    assert len(catalog.names) == TAKEN - 1 and len(catalog.findings) == REFUSED + 1


def test_a_chunk_that_a_crash_was_found_in_is_not_searched_again(tmp_path, monkeypatch):
    deadly(monkeypatch, [13])
    run(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(ingest, "_decode_without_crashes", None)
    run(tmp_path)
    assert contents(tmp_path) == before


def test_the_search_for_a_crash_leaves_no_chunk_that_looks_whole(tmp_path, monkeypatch):
    """Killed in the middle of it, a run would take a trial of one image for the chunk."""
    log, original = tmp_path / "log", ingest.decode_chunk
    deadly(monkeypatch, [1])

    def watched(items, *others):
        counts = original(items, *others)
        if len(items) == 1:
            with log.open("a") as file:
                file.write(f"{(tmp_path / 'made' / '000000.npz').exists()}\n")
        return counts

    monkeypatch.setattr(ingest, "decode_chunk", watched)
    run(tmp_path / "made")
    assert log.read_text() == "False\n" * 4, "five items, of which one crashes"


def test_images_that_only_together_end_their_process_are_an_error(tmp_path, monkeypatch):
    original = ingest.decode_chunk

    def greedy(items, *others):
        if len(items) > 2:
            os._exit(9)
        return original(items, *others)

    monkeypatch.setattr(ingest, "decode_chunk", greedy)
    with pytest.raises(ScanError, match=r"decoding 5 images, the first of which is a/000\.png, .* memory is enough$"):
        run(tmp_path, workers=2)


# --- check_rejected


@pytest.mark.parametrize(
    ("name", "said"), [("folder", "data.path is images"), ("imagenet", "data.name is imagenet, in /data/sets")]
)
def test_an_empty_source_is_one_empty_chunk_and_an_error(tmp_path, name, said):
    count, _ = run(tmp_path, [])
    catalog, locations = ingest.load_chunks(tmp_path, count)
    assert (count, catalog.names, catalog.findings, locations.shape) == (1, [], [], (0, 3))
    with pytest.raises(ScanError, match=rf"^{said}: none of the 0 files there is an image that can be read$"):
        ingest.check_rejected(catalog, change(DATA, name=name), HOME)


@pytest.mark.parametrize(("limit", "fine"), [(0.0, False), (0.09, False), (0.1, True), (0.5, True), (1.0, True)])
def test_more_rejected_than_the_setting_allows_is_an_error(tmp_path, limit, fine):
    items = [Item(f"{number}.png", png(number)) for number in range(9)]
    items += [Item("bad.png", b"no"), *(Finding(f".{number}", "ignored", "hidden") for number in range(9))]
    catalog, _ = ingest.load_chunks(tmp_path, run(tmp_path, items)[0])
    said = rf"^data\.max_rejected is {limit:g}, but 1 of 10 images \(10\.0 %\) cannot be used; repair or remove them"
    with contextlib.nullcontext() if fine else pytest.raises(ScanError, match=said):
        ingest.check_rejected(catalog, change(DATA, max_rejected=limit), HOME)
