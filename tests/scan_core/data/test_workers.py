"""Decoding processes hold no more memory together than they may, and one that does not come back is ended."""

import io
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from scan_core.data import chunks, decode, ingest, pool, workers
from scan_core.data.decode import Refused, Target, open_image
from scan_core.data.types import Finding, Item, Source
from scan_core.data.workers import LEAST_MEMORY, UNIT, Shared, memory_for_images

TARGET = Target(8, "crop", "array", 10**9)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def items(count=6):
    return [Item(f"{number}.png", encoded(Image.new("RGB", (8, 8), (number, 0, 0)))) for number in range(count)]


def ingested(folder, things, number=2):
    source = Source(read=lambda: iter(things))
    return ingest.load_chunks(folder, ingest.ingest(source, TARGET, folder, number, lambda *_: None))[0]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(workers, "SECONDS_PER_IMAGE", 1.0)
    monkeypatch.setattr(pool, "SECONDS_BETWEEN_LOOKS", 0.05)


def hang(monkeypatch, data, how):
    original = chunks.decode
    monkeypatch.setattr(chunks, "decode", lambda given, target: how() if given == data else original(given, target))


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("how", [stop, lambda: time.sleep(999)], ids=["stopped", "endless"])
@pytest.mark.parametrize("which", [0, 4])
def test_an_image_whose_decoder_does_not_come_back_is_rejected_by_name(tmp_path, monkeypatch, impatient, how, which):
    things = items()
    hang(monkeypatch, things[which].data, how)
    catalog = ingested(tmp_path, things)
    assert catalog.findings == [Finding(f"{which}.png", "rejected", ingest.ENDLESS)]
    assert catalog.names == [item.name for item in things if item is not things[which]]
    assert not multiprocessing.active_children() and "its decoder did not end in 60 s" in ingest.ENDLESS


def test_a_break_does_not_wait_for_what_is_being_decoded(tmp_path, monkeypatch):
    things = items()
    hang(monkeypatch, things[0].data, stop)

    def read():
        yield from things
        time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "CHUNK_ITEMS", 1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ingest.ingest(Source(read=read), TARGET, tmp_path, 4, lambda *_: None)
    assert time.monotonic() - began < 5 and not multiprocessing.active_children()


def worker(shared, size, held, most):
    shared.join()
    for position in range(5):
        shared.begin(0, position)
        shared.take(size)
        with held:
            held.value += size
            most.value = max(most.value, held.value)
        time.sleep(0.01)
        with held:
            held.value -= size
        shared.give_back()


def test_together_they_hold_no_more_than_they_may(monkeypatch):
    monkeypatch.setattr(workers, "memory_for_images", lambda: 10 * UNIT)
    context = multiprocessing.get_context("fork")
    shared, held, most = Shared(context, 4), context.Value("q", 0), context.Value("q", 0)
    processes = [context.Process(target=worker, args=(shared, size * UNIT, held, most)) for size in (4, 5, 7, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 7 * UNIT <= most.value <= 10 * UNIT
    shared.join()
    shared.take(99 * UNIT)  # more than there is: it waits until it is alone, and is not refused


def test_to_wait_for_memory_is_not_to_be_stuck(monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_PER_IMAGE", 0.0)
    shared = Shared(multiprocessing.get_context("fork"), 1)
    shared.join()
    shared.begin(3, 7)
    time.sleep(0.01)
    assert shared.stuck(3) == 7 and shared.stuck(2) is None
    monkeypatch.setattr(shared, "_free", type("Taken", (), {"acquire": lambda _: waited.append(shared.stuck(3))})())
    waited = []
    shared.take(UNIT)
    assert waited == [None]


def test_the_least_is_there_and_no_more_than_half_of_the_machine():
    assert (
        LEAST_MEMORY
        <= memory_for_images()
        <= max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, LEAST_MEMORY)
    )


def test_a_few_bytes_take_no_gigabyte():
    data = encoded(Image.new("RGB", (16000, 12400)), "WEBP", lossless=True, method=0)
    assert len(data) < 100
    with pytest.raises(Refused, match=r"16,000 x 12,400 pixels in \d+ bytes: one color, or made to fill the memory"):
        open_image(data, TARGET)
    assert open_image(encoded(Image.new("1", (4000, 4000)), "PNG"), TARGET).size == (4000, 4000)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_in_strips_is_that_of_the_whole(monkeypatch, mode):
    values = np.random.default_rng(0).integers(0, 256, (37, 23, len(mode)), np.uint8)
    image = Image.fromarray(values, mode)
    whole = decode._over_white(image)
    monkeypatch.setattr(decode, "STRIP", 100)
    assert decode._over_white(image).tobytes() == whole.tobytes()
    alpha = values[..., -1:].astype(float) / 255
    exact = values[..., :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(whole).reshape(exact.shape) - exact).max() <= 1


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("file", ["000000.bin", "000000.npz"])
def test_a_flipped_bit_in_a_decoded_chunk_is_found_and_the_chunk_made_again(tmp_path, monkeypatch, gray, file):
    things = [
        Item(item.name, encoded(Image.open(io.BytesIO(item.data)).convert("L" if gray else "RGB"))) for item in items()
    ]
    ingested(tmp_path, things)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    content = bytearray(whole[file])
    content[len(content) // 3] ^= 8
    (tmp_path / file).write_bytes(content)
    ingested(tmp_path, things)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    monkeypatch.setattr(ingest, "decode_chunk", lambda *_: pytest.fail("what is whole is taken"))
    ingested(tmp_path, things)
