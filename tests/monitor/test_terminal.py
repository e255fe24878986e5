"""What people see, and that a model cannot write anything else onto their screen."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from local_distill.monitor import region
from local_distill.monitor.course import Course, sparkline
from local_distill.monitor.plain import LastingStream
from local_distill.monitor.terminal import (
    LiveTerminal,
    PlainTerminal,
    Terminal,
    open_console,
    open_terminal,
)
from local_distill.runs.evaluations import Completion, Evaluation, Piece

METRICS = {
    "reverse_kl": 1.2345,
    "loss": -0.0123,
    "grad_norm": 0.5,
    "learning_rate": 1e-4,
    "completion_tokens": 1234.5,
    "truncated": 1.0,
    "tokens": 39504.0,
    "tokens_per_second": 12345.0,
    "seconds/sample": 123.4,
    "seconds/score": 1.1,
    "seconds/train": 2.4,
    "seconds/step": 127.0,
    "peak_memory_gib": 0.81,
    "skipped": 0.0,
}
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m[bold red]hi[/bold red] [link=http://x]y[/link]\x08\r\u202eend"


def completion(text: str, prompt: str = "Why is the sky blue?") -> Completion:
    return Completion(prompt=prompt, text=text, tokens=128, finish="length", reverse_kl=1.5)


def evaluation(*completions: Completion) -> Evaluation:
    return Evaluation(
        step=25, reverse_kl=2.345, standard_error=0.081, length=48.2, truncated=0.125, completions=completions
    )


def live(width: int, height: int = 40) -> tuple[LiveTerminal, io.StringIO]:
    screen = io.StringIO()
    environment = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    console = Console(
        file=screen, width=width, height=height, force_terminal=True, highlight=False, _environ=environment
    )
    return LiveTerminal(console, total_steps=100, first_step=10), screen


def lines_of(screen: io.StringIO) -> list[str]:
    """All that was drawn, one frame after the other, without colours and cursor movements."""
    frames = screen.getvalue().replace("\x1b[2K", "\n")  # a line is erased to be drawn anew
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\r", "", frames).split("\n")


def test_plain_lines_exactly() -> None:
    stream = io.StringIO()
    terminal = PlainTerminal(stream, total_steps=100)
    with terminal:
        terminal.say("student: [bold]106 M[/bold] parameters")
        terminal.evaluation(evaluation(completion("unseen")))
        terminal.completion(completion("unseen"))
        terminal.step(11, METRICS)
        terminal.step(12, METRICS | {"reverse_kl": math.nan, "skipped": 1.0})
        terminal.step(13, {"reverse_kl": 0.5})
    assert stream.getvalue() == (
        "student: [bold]106 M[/bold] parameters\n"
        "step 25  held-out reverse KL 2.35 ± 0.081  length 48.2  truncated 12 %\n"
        "step 11/100  reverse KL 1.23  loss -0.0123  length 1.23k  truncated 100 %  "
        "12.3k tok/s  sampling 123 s  scoring 1.10 s  training 2.40 s  peak 0.8 GiB\n"
        "step 12/100  reverse KL nan  loss -0.0123  length 1.23k  truncated 100 %  update skipped  "
        "12.3k tok/s  sampling 123 s  scoring 1.10 s  training 2.40 s  peak 0.8 GiB\n"
        "step 13/100  reverse KL 0.500\n"
    )


def test_plain_lines_are_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        PlainTerminal(stream, total_steps=100).step(11, METRICS)
        assert path.read_text(encoding="utf-8").startswith("step 11/100")


def test_a_log_tells_what_has_changed() -> None:
    stream = io.StringIO()
    terminal = PlainTerminal(stream, total_steps=9)
    terminal.facts([("student", "a\x1b[2Jb"), ("lr", "1e-4")])
    terminal.warn("the disk is nearly full; make room")
    terminal.evaluation(replace(evaluation(), step=0, reverse_kl=4.0))
    terminal.step(1, {"reverse_kl": 2.0})
    terminal.step(2, {"reverse_kl": 0.5})
    terminal.evaluation(replace(evaluation(), step=2, reverse_kl=1.0, truncated=0.5))
    terminal.step(3, {"reverse_kl": math.nan})
    assert stream.getvalue().splitlines() == [
        "student  ab",
        "lr       1e-4",
        "warning: the disk is nearly full; make room",
        "step 0  held-out reverse KL 4.00 ± 0.081  length 48.2  truncated 12 %",
        "step 1/9  reverse KL 2.00",
        "step 2/9  reverse KL 0.500 (−75 %)",
        "step 2  held-out reverse KL 4.00 ± 0.081 → 1.00 ± 0.081  −75 % since step 0  length 48.2  "
        "truncated 12 % → 50 %",
        "step 3/9  reverse KL nan",
    ]


def test_a_resumed_run_is_compared_with_its_own_start() -> None:
    stream = io.StringIO()
    screen = live(80)
    for terminal in (PlainTerminal(stream, total_steps=9), screen[0]):
        first = replace(evaluation(completion("at first")), step=0, reverse_kl=4.0)
        with terminal:
            terminal.earlier([{"step": 1, "reverse_kl": 2.0}, {"step": 2, "reverse_kl": None}], [first])
            terminal.step(3, {"reverse_kl": 1.0})
            terminal.evaluation(replace(evaluation(), step=3, reverse_kl=2.0))
            terminal.completion(completion("now"))
            screen[0]._live.refresh()
    assert "step 3/9  reverse KL 1.00 (−50 %)" in stream.getvalue()
    drawn = "\n".join(lines_of(screen[1]))
    assert "→ 2.00 ± 0.081  −50 %" in drawn
    assert "2.00 ± 0.081  −50 % since step 0" in drawn
    assert "step 0     at first" in drawn
    assert "step 3     now" in drawn


@pytest.mark.parametrize("change", ["a start that is not known", "a start below 0"])
def test_no_change_is_told_where_there_is_none_to_tell(change: str) -> None:
    course = Course()
    course.step(1 if "below" in change else 2, {"reverse_kl": -0.1})
    course.step(3, {"reverse_kl": 1.0})
    assert course.change_in_training() == ""


def test_a_sparkline_has_its_foot_at_zero_and_averages_what_does_not_fit() -> None:
    assert sparkline([4.0, 2.0, math.nan, 0.0, -1.0], 10, 4.0) == "█▄ ▁▁"
    assert sparkline([4.0, 4.0, 2.0, 2.0, 0.0, 0.0], 3, 4.0) == "█▄▁"
    assert sparkline([0.0, 0.0], 3, 0.0) == "▁▁"
    assert sparkline([], 3, 0.0) == ""


WIDE = "天空是蓝色的，因为阳光被空气散射。👩\u200d🚀" * 40


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_terminal_fits_its_width(width: int) -> None:
    terminal, screen = live(width)
    with terminal:
        terminal.facts([("student", "models/" + "x" * 100), ("steps", "12 " * 60)])
        terminal.say("checkpoint saved")
        terminal.warn("the disk is nearly full; " * 6)
        terminal.evaluation(replace(evaluation(completion(WIDE)), step=0, reverse_kl=4.0))
        terminal.completion(completion(WIDE, prompt=WIDE))
        terminal.step(1, METRICS | {"reverse_kl": 4.0})
        terminal.step(2, METRICS | {"skipped": 1.0})
        terminal.evaluation(evaluation())
        terminal.completion(completion("Because of [bold]Rayleigh[/bold] scattering.\n" * 40, prompt=WIDE))
        terminal.doing("evaluating", 5, 16)
        terminal.notice("finishing step 2; again to quit now")
        terminal._live.refresh()
    lines, kl = lines_of(screen), "" if width == 60 else " reverse KL"
    assert max(map(cell_len, lines)) <= width
    for told in ("checkpoint saved", "evaluating 5/16", "finishing step 2", "Because of [bold]Rayleigh"):
        assert any(told in line for line in lines), told
    assert any(re.fullmatch(r"step   1/100  reverse KL   4.00 {10}length 1.23k.*", line) for line in lines)
    assert any(re.fullmatch(r"step   2/100  reverse KL   1.23   −69 %  update skipped.*", line) for line in lines)
    assert any(f"held-out{kl} 4.00 ± 0.081 → 2.35 ± 0.081  −41 %" in line for line in lines)
    assert any("lr 1.00e-04" in line for line in lines) == (width == 120)
    assert sum("天空" in line for line in lines) > 2

    *_, bar, held_out, training, shares, end = lines
    assert end == ""
    assert re.fullmatch(r"step +[╸╺━]+ +2/100  \d s, about 3 h .* left *", bar)
    assert re.fullmatch(r"held-out +█▅ .* 2.35 ± 0.081  −41 % since step 0 *", held_out)
    assert re.fullmatch(r"training +█▃ .* 1.23 {10}−69 % since step 1 *", training)
    assert re.fullmatch(r"time +sampling 97 %  scoring 1 %  training 2 %  of 127.*", shares)


def test_a_sample_is_coloured_by_disagreement_and_only_where_there_is_room() -> None:
    pieces = (Piece("Hi", -1.0, -1.0, 0.0), Piece("\n[red]\x1b[2J", -1.0, -9.0, 9.0))
    sample = replace(completion("Hi"), pieces=pieces)
    for height, shown in ((24, True), (12, False)):
        terminal, screen = live(80, height)
        with terminal:
            terminal.completion(sample)
            terminal._live.refresh()
        assert ("Hi\x1b[38;2;220;30;60m⏎[red]\x1b[0m" in screen.getvalue()) == shown


def test_what_has_not_changed_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of long completions took 15 ms, four times a second."""
    drawn = []
    monkeypatch.setattr(region, "on_one_line", lambda pieces: drawn.append(pieces) or Text("Hi"))
    terminal, screen = live(80)
    terminal._live.auto_refresh = False
    sample = replace(completion("Hi"), pieces=(Piece("Hi", -1.0, -1.0, 0.0),))
    with terminal:
        terminal.completion(sample)
        for step in range(1, 9):
            terminal.step(step, METRICS)
            terminal.doing("sampling")
            terminal._live.refresh()
        assert len(drawn) == 1
        terminal.evaluation(evaluation())
        terminal.completion(sample)
        terminal._live.refresh()
        assert len(drawn) == 3, "before training and now"
        terminal._console.width = 60
        terminal._live.refresh()
        assert len(drawn) == 5
    assert "8/100" in lines_of(screen)[-5]


@pytest.mark.parametrize(("width", "height"), [(20, 24), (5, 3)])
def test_the_smallest_window_does_not_end_the_run(width: int, height: int) -> None:
    terminal, _ = live(width, height)
    with terminal:
        terminal.facts([("student", "x" * 30)])
        terminal.step(1, METRICS)
        terminal.evaluation(evaluation())
        terminal.completion(completion(WIDE))
        terminal.doing("saving")
        terminal._live.refresh()


@pytest.mark.parametrize(("opened", "error"), [(os.pipe, "Broken pipe"), (os.openpty, "Input/output error")])
@pytest.mark.parametrize("kind", [PlainTerminal, LiveTerminal])
def test_what_breaks_the_terminal_does_not_end_the_run(
    kind: type, opened: Callable[[], tuple[int, int]], error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pipe whose reader has ended; a terminal whose window was closed."""
    reading, writing = opened()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        broken = Console(file=cast(IO[str], LastingStream(stream)), force_terminal=True, _environ={})
        terminal = PlainTerminal(stream, 10) if kind is PlainTerminal else LiveTerminal(broken, 10, 0)
        with terminal:
            terminal.say("hello")
            terminal.step(1, METRICS)
            terminal.evaluation(evaluation())
            terminal.doing("saving")
    assert capfd.readouterr().err.count(f"standard output cannot be written ({error}); the run goes on") == 1


def test_what_is_done_now_is_below_the_bar_and_replaced_by_what_comes_next() -> None:
    terminal, screen = live(80)
    with terminal:
        terminal.doing("loading the teacher")
        terminal._live.refresh()
        terminal.doing("evaluating", 5, 16)
        terminal._live.refresh()
        assert re.fullmatch(r"now +\S evaluating 5/16  0 s *", lines_of(screen)[-1])
    assert any("loading the teacher" in line for line in lines_of(screen))
    assert "evaluating" not in lines_of(screen)[-1], "it is over when the bar is"


def test_a_signal_is_answered_below_the_bar_and_past_the_streams_where_there_is_none(capfd) -> None:
    terminal, screen = live(80)
    with terminal:
        terminal.notice("finishing step 5")
        terminal._live.refresh()
        assert lines_of(screen)[-1].strip() == "finishing step 5"
    assert capfd.readouterr().err == ""
    terminal.notice("the bar is gone")
    stream = io.StringIO()
    PlainTerminal(stream, total_steps=100).notice("in a log")
    Terminal().notice("on another process")
    assert (capfd.readouterr().err, stream.getvalue()) == ("the bar is gone\nin a log\n", "")


def test_a_resumed_bar_starts_where_the_run_does() -> None:
    terminal, screen = live(80)
    with terminal:
        pass
    assert "10/100" in lines_of(screen)[-2]


def test_messages_can_be_shown_before_and_after_the_bar() -> None:
    terminal, screen = live(80)
    terminal.say("loading")
    with terminal:
        terminal.step(11, METRICS)
    terminal.close()
    terminal.say("saved")
    lines = lines_of(screen)
    assert (lines[0], lines[-2]) == ("loading", "saved")


def test_a_model_cannot_write_escapes_or_markup_onto_the_screen() -> None:
    shown = []
    for terminal, screen in ((PlainTerminal(io.StringIO(), 100), None), live(80)):
        with terminal:
            terminal.say(HOSTILE)
            terminal.completion(completion(HOSTILE, prompt=HOSTILE))
        shown.append((screen or terminal._stream).getvalue())
    for output in shown:
        assert "[bold red]hi[/bold red] [link=http://x]y[/link]" in output
        assert not re.search(r"\x1b\[2J|\x1b\]|\x9b|\x07|\x08|\u202e|owned", output)


def test_no_terminal_for_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(100, 0, is_main_process=False)
    with terminal:
        terminal.say("hello")
        terminal.step(1, METRICS)
        terminal.evaluation(evaluation())
        terminal.completion(completion("text"))
    assert type(terminal) is Terminal
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("force_color", ["", "1"])
def test_plain_lines_where_output_is_no_terminal(
    force_color: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force_color)  # as many CI systems do
    with open_terminal(100, 0, is_main_process=True) as terminal:
        terminal.step(1, {"reverse_kl": 1.0})
    assert capsys.readouterr().out == "step 1/100  reverse KL 1.00\n"


@pytest.mark.parametrize(("term", "kind"), [("xterm-256color", LiveTerminal), ("dumb", PlainTerminal)])
def test_a_live_bar_on_a_real_terminal(term: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    _, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert isinstance(open_terminal(100, 0, is_main_process=True), kind)


def test_an_encoding_without_the_character_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    PlainTerminal(open_console().file, 100).say("天 ± \ud83d")
    assert raw.getvalue() == b"? ? ?\n"
