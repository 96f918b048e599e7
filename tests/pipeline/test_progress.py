"""Progress: what a person sees on a terminal and in a log."""

import contextlib
import importlib
import io
import re
import sys
import time

import pytest
from typer.testing import CliRunner

from pipeline import command, progress
from pipeline.cli.app import app as scan
from pipeline.progress import CountProgress, TrainingProgress, alive, clock, say


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


# --- A sign of life


def on_terminal(monkeypatch):
    """Not a fixture, because pytest sets standard error anew after those."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    return sys.stderr


def wait_for(text, terminal):
    deadline = time.monotonic() + 20
    while text not in terminal.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def screen(text):
    """The lines that a terminal is left with, if each text is shorter than its line."""
    shown = [""]
    for part in re.findall(r"\r|\n|\x1b\[K|\x1b\[[\d;?]*[A-Za-z]|[^\r\n\x1b]+", text):
        if part == "\n":
            shown.append("")
        elif part == "\x1b[K":
            shown[-1] = ""  # only from a line's start here
        elif part[0] not in "\r\x1b":
            shown[-1] = part + shown[-1][len(part) :]
    return shown


def test_a_terminal_shows_at_once_what_runs_and_nothing_of_it_stays(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with alive("evaluate"):
        wait_for("\r", terminal)
        assert screen(terminal.getvalue()) == ["evaluate  … 0:00"]
        say("a note")
        assert screen(terminal.getvalue()) == ["a note", ""]
    say("done")
    assert screen(terminal.getvalue()) == ["a note", "done", ""] and terminal.getvalue().endswith("\x1b[Kdone\n")


def test_the_time_goes_on(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with alive("evaluate"):
        wait_for("… 0:01", terminal)


def test_a_bar_takes_its_place_and_an_inner_call_shows_nothing(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with alive("evaluate"), alive("read"), CountProgress("prepare", 40):
        before = terminal.getvalue().count("…")
        time.sleep(2.1)
        assert terminal.getvalue().count("…") == before and "read" not in terminal.getvalue()


def test_a_log_has_no_sign_of_life(capsys):
    with alive("evaluate"):
        say("a note")
    assert capsys.readouterr().err == "a note\n"


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """What ``alive`` is called with, in a folder where nothing has run."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def note(what):
        calls.append(what)
        return contextlib.nullcontext()

    for name in ("command", "cli.sort", "cli.predict", "cli.compare", "cli.model"):
        monkeypatch.setattr(importlib.import_module(f"pipeline.{name}"), "alive", note)
    return calls


@pytest.mark.parametrize("words", [
    "sort x", "sort x --undo", "predict x", "compare a b",
    "model export x.onnx",
])  # fmt: skip
def test_a_command_says_at_once_that_it_runs(noted, words):
    CliRunner().invoke(scan, words.split())
    assert noted[:1] == ["export" if "export" in words else words.split()[0]]


def test_a_stage_says_at_once_that_it_runs_and_only_its_first_process(noted, monkeypatch):
    stage = command.command("evaluate", lambda stage: None)
    CliRunner().invoke(stage)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    CliRunner().invoke(stage)
    assert noted == ["evaluate"]


@pytest.mark.parametrize(("seconds", "text"), [(65, "1:05"), (3725, "1:02:05"), (59.6, "1:00")])
def test_a_clock_has_hours_only_if_it_needs_them(seconds, text):
    assert clock(seconds) == text
