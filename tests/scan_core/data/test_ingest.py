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
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scan_core.data import chunks, ingest
from scan_core.data.chunks import load_thumbs
from scan_core.data.decode import Target
from scan_core.data.types import Finding, Item, Source
from scan_core.errors import ScanError
from tests.scan_core.data.little_files import settings
from tests.tiny import change, refused

DATA = settings("folder", "images")
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


def source_of(items, pause=None):
    """``pause`` is called before the eleventh of them."""

    def read():
        for number, each in enumerate(items):
            if number == 10 and pause:
                pause()
            yield each

    return Source(read=read)


def run(folder, source=None, workers=1):
    """The number of chunks made in ``folder``, and what was reported."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    source = source or source_of(list(things()))
    return ingest.ingest(source, TARGET, folder, workers, lambda *counts: reports.append(counts)), reports


def loaded(folder, source=None, workers=1):
    """The catalog and the locations of a run."""
    return ingest.load_chunks(folder, run(folder, source, workers)[0])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def noting(monkeypatch, log, what):
    """Workers, which are forks of this process, write ``what`` they see of each chunk that they have decoded."""
    original = ingest.decode_chunk

    def noted(items, findings, target, folder, number):
        counts = original(items, findings, target, folder, number)
        with log.open("a") as file:
            file.writelines(f"{line}\n" for line in what(items, number))
        return counts

    log.touch()
    monkeypatch.setattr(ingest, "decode_chunk", noted)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 6)


@pytest.fixture
def whole(tmp_path):
    """The chunks of an undisturbed run."""
    run(tmp_path / "whole")
    return contents(tmp_path / "whole")


def deadly(monkeypatch, numbers, how=lambda: os._exit(3)):
    """Workers die of some images."""
    bad, original = {png(number) for number in numbers}, chunks.decode
    monkeypatch.setattr(chunks, "decode", lambda data, target: how() if data in bad else original(data, target))


@pytest.mark.parametrize(("stored", "size", "data", "wanted"), [
    ("array", 8, [b""] * 14, [6, 6, 2]),  # by count
    ("array", 64, ["/image"] * 10, [4, 4, 2]),  # by the bytes that they will take
    ("jpeg", 182, ["/image"] * 10, [4, 4, 2]),
    *(("array", 8, [make(size) for size in (20_000, 20_000, 20_000, 99_999, 1, 1)], [3, 1, 2])  # in memory
      for make in (bytes, lambda size: np.zeros(size, np.uint8))),
])  # fmt: skip
def test_pieces_are_cut_by_count_and_by_bytes(monkeypatch, stored, size, data, wanted):
    monkeypatch.setattr(ingest, "CHUNK_BYTES", 4 * 3 * 64**2)
    items = [Item(f"{number}", each) for number, each in enumerate(data)]
    found = ingest.pieces(source_of(items), Target(size, "crop", stored, 10**6))
    assert [len(piece.items) for piece in found] == wanted


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=40))
def test_pieces_hold_everything_once_in_order(drawn):
    everything = [
        Finding(str(number), "rejected", "") if refused else Item(str(number), bytes(size))
        for number, (size, refused) in enumerate(drawn)
    ]
    first, again = (list(ingest.pieces(source_of(everything), TARGET)) for _ in range(2))
    assert first == again
    assert [piece.number for piece in first] == list(range(max(-(-len(drawn) // 6), 1))), "findings count"
    for kind, of in ((Item, "items"), (Finding, "findings")):
        wanted = [each for each in everything if type(each) is kind]
        assert [each for piece in first for each in getattr(piece, of)] == wanted


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
    original = chunks.decode

    def slow(data, target):
        time.sleep(seconds * (data == png(0)))
        return original(data, target)

    monkeypatch.setattr(chunks, "decode", slow)
    run(tmp_path / "other", workers=workers)
    assert contents(tmp_path / "other") == whole


@pytest.mark.slow
def test_with_any_chunks_already_there_the_others_are_made(tmp_path, monkeypatch, whole):
    log = tmp_path / "log"
    noting(monkeypatch, log, lambda items, number: [number])
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


DAMAGE = {  # bytes of a file, or how many of its own, or the file that it is like, or None
    "a cut .bin": {"000002.bin": 150},
    "an empty .bin": {"000002.bin": 0},
    "a longer .bin": {"000002.bin": bytes(9999)},
    "no .bin": {"000002.bin": None},
    "a cut .npz": {"000002.npz": 500},
    "an empty .npz": {"000002.npz": 0},
    "no .npz": {"000002.npz": None},
    "another chunk's": {"000002.bin": "000003.bin", "000002.npz": "000003.npz"},
    "stray .partial": {"000002.partial": b"half"},
    "stray .partial without the rest": {"000002.npz": None, "000002.partial": "000002.npz", "000001.partial": b"half"},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.slow
def test_what_is_not_whole_is_made_again(tmp_path, whole, damage):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in (whole | DAMAGE[damage]).items():
        content = whole[name][:content] if isinstance(content, int) else whole.get(content, content)
        if content is not None:
            (folder / name).write_bytes(content)
    count, _ = run(folder)
    assert {name: data for name, data in contents(folder).items() if ".partial" not in name} == whole
    assert len(ingest.load_chunks(folder, count)[0].names) == TAKEN


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_in_flight_does_not_grow_with_the_source(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 4)
    image, reads, done, most = png(0), 0, 0, 0

    def read():
        nonlocal reads, most
        for number in range(200):
            reads += 1
            most = max(most, reads - done)
            yield Item(f"{number}.png", image)

    def report(taken, refused):
        nonlocal done
        done = taken + refused

    assert ingest.ingest(Source(read=read), TARGET, tmp_path, workers, report) == 50
    assert most <= 4 * (2 * workers + 1)


def test_chunks_without_images_are_chunks(tmp_path):
    items = [Item(f"{number}.txt", b"text") for number in range(7)] + [Item("a.png", png(1))]
    count, reports = run(tmp_path, source_of(items))
    catalog, locations = ingest.load_chunks(tmp_path, count)
    assert (catalog.names, len(catalog.findings), locations.tolist()) == (["a.png"], 7, [[1, 0, 192]])
    assert reports == [(0, 6), (1, 7)]
    assert load_thumbs(tmp_path / "000000.npz").shape == (0, 32, 32, 3)


def test_an_error_in_the_source_ends_the_run_and_the_workers(tmp_path):
    pause = mock.Mock(side_effect=ScanError("the archive is damaged"))
    refused(lambda: run(tmp_path, source_of(things(), pause), workers=2), "the archive is damaged")
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_is_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "decode_chunk", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, workers=2)


def test_an_interrupt_is_not_the_workers(tmp_path, monkeypatch, whole):
    """Ctrl-C reaches them too, and one that waits would end with a traceback of its own."""
    monkeypatch.setattr(ingest, "_decode_without_crashes", None)  # what follows if a worker has ended

    def interrupt():
        time.sleep(0.3)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.1)

    run(tmp_path / "found", source_of(things(), interrupt), workers=2)
    assert contents(tmp_path / "found") == whole


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
    wanted, places = loaded(tmp_path / "wanted", source_of(items))
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
    catalog, _ = loaded(tmp_path, source_of(things(), lambda: time.sleep(0.3)), workers=2)
    assert (len(catalog.names), len(catalog.findings)) == (TAKEN - 1, REFUSED + 1)


def test_a_chunk_that_a_crash_was_found_in_is_not_searched_again(tmp_path, monkeypatch):
    deadly(monkeypatch, [13])
    run(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(ingest, "_decode_without_crashes", None)
    run(tmp_path)
    assert contents(tmp_path) == before


def test_the_search_for_a_crash_leaves_no_chunk_that_looks_whole(tmp_path, monkeypatch):
    """Killed in the middle of it, a run would take a trial of one image for the chunk."""
    log, chunk = tmp_path / "log", tmp_path / "made" / "000000.npz"
    deadly(monkeypatch, [1])
    noting(monkeypatch, log, lambda items, number: [chunk.exists()] * (len(items) == 1))
    run(tmp_path / "made")
    assert log.read_text() == "False\n" * 4, "five items, of which one crashes"


def test_images_that_only_together_end_their_process_are_an_error(tmp_path, monkeypatch):
    original = ingest.decode_chunk
    monkeypatch.setattr(
        ingest, "decode_chunk", lambda items, *rest: os._exit(9) if len(items) > 2 else original(items, *rest)
    )
    with pytest.raises(ScanError, match=r"decoding 5 images, the first of which is a/000\.png, .* memory is enough$"):
        run(tmp_path, workers=2)


@pytest.mark.parametrize(
    ("name", "said"), [("folder", "data.path is images"), ("imagenet", "data.name is imagenet, in /data/sets")]
)
def test_an_empty_source_is_one_empty_chunk_and_an_error(tmp_path, name, said):
    catalog, locations = loaded(tmp_path, source_of([]))
    assert (contents(tmp_path).keys(), locations.shape) == ({"000000.bin", "000000.npz"}, (0, 3))
    with pytest.raises(ScanError, match=rf"^{said}: none of the 0 files there is an image that can be read$"):
        ingest.check_rejected(catalog, change(DATA, name=name), HOME)


@pytest.mark.parametrize(("limit", "fine"), [(0.0, False), (0.09, False), (0.1, True), (0.5, True), (1.0, True)])
def test_more_rejected_than_the_setting_allows_is_an_error(tmp_path, limit, fine):
    items = [Item(f"{number}.png", png(number)) for number in range(9)]
    items += [Item("bad.png", b"no"), *(Finding(f".{number}", "ignored", "hidden") for number in range(9))]
    catalog, _ = loaded(tmp_path, source_of(items))
    said = rf"^data\.max_rejected is {limit:g}, but 1 of 10 images \(10\.0 %\) cannot be used; repair or remove them"
    with contextlib.nullcontext() if fine else pytest.raises(ScanError, match=said):
        ingest.check_rejected(catalog, change(DATA, max_rejected=limit), HOME)
