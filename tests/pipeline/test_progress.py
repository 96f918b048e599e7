"""Progress: what a person sees on a terminal and in a log."""

import io
import re
import sys

import pytest

from pipeline import progress
from pipeline.progress import CountProgress, TrainingProgress, clock


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self):
        return True


def train(epochs=3, done=0, last=3):
    with TrainingProgress("pretext", epochs, done, steps=2) as shown:
        for epoch in range(done + 1, last + 1):
            shown.step_done(500)
            shown.step_done(500)
            shown.epoch_done(epoch, 1 / epoch)
        shown.loop_ended()


def lines(text):
    """Lines of ``text`` with R for each rate and T for each time."""
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    return [re.sub(r"[\d:-]+ left", "T left", re.sub(r"[\d,]+ i", "R i", line.rstrip())) for line in plain.splitlines()]


def test_a_log_has_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(done=1)
    assert lines(capsys.readouterr().err) == [
        "pretext   epoch 1/3  R images/s  T left",
        "pretext   epoch 2/3  R images/s  T left",
        "pretext   epoch 2/3  loss 0.5000  R images/s  T left",
        "pretext   epoch 2/3  loss 0.5000  R images/s  T left",
        "pretext   epoch 3/3  loss 0.5000  R images/s  T left",
        "pretext   epoch 3/3  loss 0.3333  R images/s  T left",
    ]


def test_a_log_has_a_line_now_and_then_and_one_for_the_last_epoch(capsys):
    train()
    assert lines(capsys.readouterr().err) == ["pretext   epoch 3/3  loss 0.3333  R images/s  T left"]


def test_an_early_end_is_said(capsys):
    train(last=2)
    assert capsys.readouterr().err == "pretext   ended early, after epoch 2 of 3\n"


@pytest.mark.parametrize(("total", "of", "left"), [(40, "40", "  T left"), (None, "?", "")])
def test_images_are_counted_with_or_without_a_total(capsys, monkeypatch, total, of, left):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with CountProgress("prepare", total) as shown:
        shown.update(10, 0)
        shown.update(19, 1)
    assert lines(capsys.readouterr().err) == [
        f"prepare   images 10/{of}  0 skipped  R images/s{left}",
        f"prepare   images 20/{of}  1 skipped  R images/s{left}",
    ]


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("TERM", "xterm")
    train()
    last = lines(sys.stderr.getvalue())[-1]
    assert last == f"pretext   {'━' * 28} epoch 3/3  loss 0.3333  R images/s  T left"


@pytest.mark.parametrize(("seconds", "text"), [(65, "1:05"), (3725, "1:02:05"), (59.6, "1:00")])
def test_a_clock_has_hours_only_if_it_needs_them(seconds, text):
    assert clock(seconds) == text
