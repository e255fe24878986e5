"""The region at the bottom of a terminal: how far a run is, where it came from, and what it does now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
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
        self._curves: tuple[tuple[str, Sequence[float], str, str], ...] = ()
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
        curves = []
        if held_out:
            last, since = held_out[-1], self._course.change_held_out()
            value = with_error(last.reverse_kl, last.standard_error)
            values = [each.reverse_kl for each in held_out]
            curves.append(("held-out", values, value, since and f"{since} since step 0"))
        if training:
            since = self._course.change_in_training()
            curves.append(("training", training, number(training[-1]), since and f"{since} since step 1"))
        self._curves = tuple(curves)

    def completion(self, step: int, completion: Completion) -> None:
        """Show the sample after ``step`` updates below the first one of the same prompt."""
        first = self._samples[:1]
        same = first and first[0][1].prompt == completion.prompt
        self._samples = (*(first if same else ()), (step, completion))

    def end(self) -> None:
        """Show what will stay on the screen: nothing is done any more."""
        self._now, self.notice, self._samples = ("", 0, 0), "", ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="dim")
        yield self._numbers(options)
        if self._seconds.get("seconds/step"):
            shares = self._shares()
            shares.no_wrap, shares.overflow = True, "ellipsis"
            yield self._row("time", shares, options)
        if self._now[0]:
            yield self._row("now", self._doing(options.ascii_only), options)
        if self._samples and console.height >= ROOM_FOR_A_SAMPLE:
            yield from self._sample(console, options)
        if self.notice:
            yield self._row("", Text(clean(self.notice), style="bold yellow"), options)

    def _numbers(self, options: ConsoleOptions) -> Table:
        """Return the bar and the curves, with what they say to their right."""
        width = options.max_width
        named = width >= 90  # so that it fits
        rows = [
            (label, values, Text.assemble((f"{'reverse KL ' if named else ''}", "dim"), value), since)
            for label, values, value, since in self._curves
        ]
        right = [Text(self._progress()), *(_side_by_side(value, since, rows) for *_, value, since in rows)]
        self._right = max(self._right, *(text.cell_len for text in right))  # so that curves keep their width
        middle = max(NARROWEST, min(WIDEST, width - LABEL - 2 * GAP - self._right))
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(width=LABEL, style="dim", no_wrap=True)
        grid.add_column(width=middle, no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("step", ProgressBar(self._total, self._done, middle), right[0])
        top = max((value for _, values, *_ in rows for value in values if value == value), default=0.0)
        for (label, values, *_), text in zip(rows, right[1:], strict=True):
            curve = "" if options.ascii_only else sparkline(values, middle, top)
            grid.add_row(label, Text(curve, style="cyan" if label == "held-out" else "blue"), text)
        return grid

    def _progress(self) -> str:
        now = time.monotonic()
        text = f"{self._done}/{self._total}  {duration(now - self._began)}"
        if self._steps is None or self._done >= self._total:
            return text
        began, ended = self._steps
        each = (ended - began) / max(1, self._done - self._first)
        left = each * (self._total - self._done) - (now - ended)
        return f"{text}, about {duration(max(0.0, left))} left"

    def _shares(self) -> Text:
        """Return the phases of the last step with their shares of its time; what goes on now stands out."""
        whole = self._seconds["seconds/step"]
        parts = [
            Text(f"{phase} {percent(self._seconds[name] / whole)}", style="bold" if phase == self._now[0] else "")
            for phase, name in PHASES.items()
            if name in self._seconds
        ]
        return Text("  ").join([*parts, Text(f"of {number(whole)} s a step", style="dim")])

    def _doing(self, ascii_only: bool) -> RenderableType:
        what, done, total = self._now
        spinner = self._spinner[ascii_only]
        counted = f"{what} {done}/{total}" if total else what
        spinner.update(text=f"{counted}  {duration(time.monotonic() - self._since)}")
        return spinner

    def _sample(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        lines, width = (3 if console.height >= ROOM_FOR_MORE_OF_IT else 2), options.max_width - LABEL - GAP
        prompt = " ".join(clean(self._samples[-1][1].prompt).split())
        yield self._row("prompt", Text(prompt, style="italic", no_wrap=True, overflow="ellipsis"), options)
        for step, completion in self._samples:
            pieces = completion.pieces
            text = on_one_line(pieces) if pieces else Text(clean(completion.text.replace("\n", "⏎")))
            yield self._row(f"step {step}", _first_lines(text, console, width, lines), options)

    def _row(self, label: str, what: RenderableType, options: ConsoleOptions) -> Table:
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_column(width=LABEL, style="dim", no_wrap=True)
        grid.add_column(width=max(1, options.max_width - LABEL - GAP), overflow="fold")
        grid.add_row(label, what)
        return grid


def style_of(changed: str) -> str:
    """Return the colour of a change: less divergence is what a run is for."""
    return "green" if changed.startswith("−") else "red"


def _side_by_side(value: Text, since: str, rows: Sequence[tuple[str, Sequence[float], Text, str]]) -> Text:
    """Return a value and what has changed, below those of the other rows."""
    widest = max(text.cell_len for *_, text, _ in rows)
    return Text.assemble(value, " " * (widest - value.cell_len + GAP if since else 0), (since, style_of(since)))


def _first_lines(text: Text, console: Console, width: int, lines: int) -> Text:
    """Return the first lines of a text that is wrapped to a width; an ellipsis stands for the others."""
    text = text[len(text.plain) - len(text.plain.lstrip()) :]
    found = text.wrap(console, width)
    shown = found[:lines]
    if len(found) > lines:
        shown[-1].append("…")
        if shown[-1].cell_len > width:
            shown[-1].right_crop(2)
            shown[-1].append("…")
    return Text("\n").join(shown)
