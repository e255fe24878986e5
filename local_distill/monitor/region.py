"""The region at the bottom of a terminal: how far a run is, where it came from, and what it does now."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import Segment
from rich.spinner import Spinner
from rich.style import Style
from rich.text import Text

from local_distill.monitor.colours import on_one_line
from local_distill.monitor.course import Course, sparkline
from local_distill.runs.evaluations import Completion
from local_distill.wording import clean, duration, number, percent, with_error

LABEL, GAP = 9, 2
"""Characters of the column of labels, and between columns."""
NARROWEST, WIDEST = 8, 60
"""Characters of the bar and the curves."""
ROOM_FOR_A_SAMPLE, ROOM_FOR_MORE_OF_IT = 20, 32
"""Lines that a terminal must have."""
PHASES = {"sampling": "seconds/sample", "scoring": "seconds/score", "training": "seconds/train"}


class Curve(NamedTuple):
    """A curve of reverse KL. value: the last one, in words. since: how it has changed."""

    label: str
    values: Sequence[float]
    value: str
    since: str


class Region:
    """What is drawn is set by the run's own thread, and read by the one that draws: each value is replaced whole."""

    def __init__(self, course: Course, total_steps: int, first_step: int) -> None:
        self.notice = ""
        self._course = course
        self._total, self._done, self._first = total_steps, first_step, first_step
        self._began = time.monotonic()
        self._steps: tuple[float, float] | None = None  # when the first one began, and when the last one ended
        self._now: tuple[str, int, int] = ("", 0, 0)
        self._since = self._began
        self._seconds: Mapping[str, float] = {}
        self._samples: tuple[tuple[int, Completion], ...] = ()
        self._right = 0  # characters of the last column
        self._curves: tuple[Curve, ...] = ()
        self._versions = 0, 0  # of the curves, and of the samples
        self._drawn: dict[str, tuple[tuple[object, ...], list[Segment]]] = {}
        self._spinner = {ascii_only: Spinner("line" if ascii_only else "dots") for ascii_only in (False, True)}

    def doing(self, what: str, done: int, total: int) -> None:
        """Show this as what is done now; empty text is nothing."""
        if what != self._now[0]:
            self._since = time.monotonic()
        self._now = clean(what), done, total

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the step as done; the course has it."""
        now = time.monotonic()
        began = self._steps[0] if self._steps else now - metrics.get("seconds/step", 0.0)
        self._done, self._steps, self._seconds = step, (began, now), dict(metrics)
        self.measured()

    def measured(self) -> None:
        """Draw the curves anew: the course has another value. What an evaluation takes counts as its step's."""
        if self._steps:
            self._steps = self._steps[0], time.monotonic()
        held_out, training = list(self._course.held_out.values()), list(self._course.training.values())
        curves: list[Curve] = []
        if held_out:
            last, since = held_out[-1], self._course.change_held_out()
            value = with_error(last.reverse_kl, last.standard_error)
            values = [each.reverse_kl for each in held_out]
            curves.append(Curve("held-out", values, value, since and f"{since} since step 0"))
        if training:
            since = self._course.change_in_training()
            curves.append(Curve("training", training, number(training[-1]), since and f"{since} since step 1"))
        self._curves, self._versions = tuple(curves), (self._versions[0] + 1, self._versions[1])

    def completion(self, step: int, completion: Completion) -> None:
        """Show the sample after ``step`` updates below the first one of the same prompt."""
        first = self._samples[:1]
        same = first and first[0][1].prompt == completion.prompt
        self._show((*(first if same else ()), (step, completion)))

    def end(self) -> None:
        """Show what will stay on the screen: nothing is done any more."""
        self._now, self.notice = ("", 0, 0), ""
        self._show(())

    def _show(self, samples: tuple[tuple[int, Completion], ...]) -> None:
        self._samples, self._versions = samples, (self._versions[0], self._versions[1] + 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what changes by the second; the rest is drawn when it has changed, and kept."""
        progress = self._progress()
        self._right = max(self._right, len(progress), *(self._beside_curve(each).cell_len for each in self._curves))
        middle = max(NARROWEST, min(WIDEST, options.max_width - LABEL - 2 * GAP - self._right))
        width, height, phase = options.max_width, console.height, self._now[0] if self._now[0] in PHASES else ""

        def drawn_once(name: str, rows: Iterator[Text], *key: object) -> Sequence[Segment]:
            if name not in self._drawn or self._drawn[name][0] != key:
                self._drawn[name] = key, [segment for row in rows for segment in console.render(row, options)]
            return self._drawn[name][1]

        yield Rule(style="dim")
        yield from self._bar(progress, middle, console, options)
        numbers = self._numbers(options.ascii_only, middle, phase)
        yield from drawn_once("numbers", numbers, self._versions[0], width, middle, phase)
        if self._now[0]:
            yield _row("now", self._doing(options.ascii_only))
        yield from drawn_once("sample", self._sample(console, width), self._versions[1], width, height)
        if self.notice:
            yield _row("", Text(clean(self.notice), style="bold yellow"))

    def _bar(self, progress: str, middle: int, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        yield Segment("step".ljust(LABEL + GAP), Style(dim=True))
        yield from console.render(ProgressBar(self._total, self._done, middle), options)
        yield Segment(f"{' ' * GAP}{progress}"[: max(0, options.max_width - LABEL - GAP - middle)])
        yield Segment.line()

    def _numbers(self, ascii_only: bool, middle: int, phase: str) -> Iterator[Text]:
        """Yield the curves, with what they say to their right, and where the time goes."""
        top = max((value for curve in self._curves for value in curve.values if math.isfinite(value)), default=0.0)
        for curve in self._curves:
            drawn = "" if ascii_only else sparkline(curve.values, middle, top)
            row = Text.assemble((drawn, "cyan" if curve.label == "held-out" else "blue"))
            row.pad_right(middle - len(drawn) + GAP)
            yield _row(curve.label, row.append_text(self._beside_curve(curve)))
        if self._seconds.get("seconds/step"):
            yield _row("time", self._shares(phase))

    def _beside_curve(self, curve: Curve) -> Text:
        value = curve.value.ljust(max(len(each.value) for each in self._curves) if curve.since else 0)
        return Text.assemble(value, " " * GAP if curve.since else "", (curve.since, style_of(curve.since)))

    def _progress(self) -> str:
        now = time.monotonic()
        text = f"{self._done}/{self._total}  {duration(now - self._began)}"
        if self._steps is None or self._done >= self._total:
            return text
        began, ended = self._steps
        each = (ended - began) / max(1, self._done - self._first)
        left = each * (self._total - self._done) - (now - ended)
        return f"{text}, about {duration(max(0.0, left))} left"

    def _shares(self, now: str) -> Text:
        """Return the phases of the last step with their shares of its time; what goes on now stands out."""
        whole = self._seconds["seconds/step"]
        parts = [
            Text(f"{phase} {percent(self._seconds[name] / whole)}", style="bold" if phase == now else "")
            for phase, name in PHASES.items()
            if name in self._seconds
        ]
        return Text("  ").join([*parts, Text(f"of {number(whole)} s a step", style="dim")])

    def _doing(self, ascii_only: bool) -> Text:
        what, done, total = self._now
        counted = f"{what} {done}/{total}" if total else what
        frame = self._spinner[ascii_only].render(time.monotonic())
        assert isinstance(frame, Text)  # of a spinner without text
        return Text.assemble(frame, f" {counted}  {duration(time.monotonic() - self._since)}")

    def _sample(self, console: Console, width: int) -> Iterator[Text]:
        """Yield a prompt and what it was answered, before training and now; nothing where there is no room."""
        if not self._samples or console.height < ROOM_FOR_A_SAMPLE:
            return
        lines = 3 if console.height >= ROOM_FOR_MORE_OF_IT else 2
        prompt = " ".join(clean(self._samples[-1][1].prompt).split())
        yield _row("prompt", Text(prompt, style="italic"))
        for step, completion in self._samples:
            pieces = completion.pieces
            text = on_one_line(pieces) if pieces else Text(clean(completion.text.replace("\n", "⏎")))
            for place, line in enumerate(_first_lines(text, console, width - LABEL - GAP, lines)):
                yield _row("" if place else f"step {step}", line)


def style_of(changed: str) -> str:
    """Return the colour of a change: less divergence is what a run is for."""
    return "green" if changed.startswith("−") else "red"


def _row(label: str, what: Text) -> Text:
    """Return one line: what does not fit is cut."""
    row = Text.assemble((label.ljust(LABEL + GAP), "dim"), what)
    row.no_wrap, row.overflow = True, "ellipsis"
    return row


def _first_lines(text: Text, console: Console, width: int, lines: int) -> Sequence[Text]:
    """Return the first lines of a text that is wrapped to a width; an ellipsis stands for the others."""
    text = text[len(text.plain) - len(text.plain.lstrip()) :]
    found = text.wrap(console, max(1, width))
    shown = found[:lines]
    if len(found) > lines:
        shown[-1].append("…")
        if shown[-1].cell_len > width:
            shown[-1].right_crop(2)
            shown[-1].append("…")
    return shown
