"""Where answers are shown while they are written: a terminal, with colours if it has them, or plain lines.

Whatever a model wrote is untrusted: it is shown only through ``harmless``, and never as markup.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from local_distill.monitor.colours import colour_of, in_text
from local_distill.monitor.terminal import open_console
from local_distill.runs.evaluations import Piece
from local_distill.wording import clean, number

WORST = 8
"""Tokens that /why explains."""
BEFORE = 24
"""Characters of the text before a token that are shown with it."""


ShowToken = Callable[[int, str, float | None], None]
"""Shows the text that a token of the answer in a column completed, with its reverse KL, while it is written."""


class Screen:
    """A session writes to it. numbers: whether each token's reverse KL is written behind it."""

    def __init__(self, console: Console, numbers: bool) -> None:
        self.console = console
        self._numbers = numbers

    def answering(self, names: Sequence[str]) -> AbstractContextManager[ShowToken]:
        """Hold the screen while one answer for each name is written."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Show what is no answer."""
        raise NotImplementedError

    def status(self, text: str) -> None:
        """Say how an answer went, to those who watch."""


class TerminalScreen(Screen):
    """A person watches: one answer flows as it comes, two stand side by side."""

    def note(self, text: str) -> None:
        """Print a dim line."""
        self.console.print(Text(clean(text), style="dim"))

    def status(self, text: str) -> None:
        """Print it as a note."""
        self.note(text)

    @contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[ShowToken]:
        """Let one answer flow, or put several side by side."""
        if len(names) > 1:
            with self._columns(names) as show:
                yield show
            return

        def show_at_once(column: int, text: str, reverse_kl: float | None) -> None:
            del column
            self._write(in_text(text, reverse_kl, self._numbers))

        self._write(Text(f"{names[0]}> ", style="bold"))
        try:
            yield show_at_once
        finally:
            self._write(Text("\n"))

    def _write(self, text: Text) -> None:
        """Go on where the last one ended; the terminal itself wraps the lines."""
        self.console.print(text, end="", soft_wrap=True)

    @contextmanager
    def _columns(self, names: Sequence[str]) -> Iterator[ShowToken]:
        texts = [Text() for _ in names]
        table = Table(*names, box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
        for column in table.columns:
            column.ratio, column.overflow = 1, "fold"
        table.add_row(*texts)

        def show_in_column(column: int, text: str, reverse_kl: float | None) -> None:
            texts[column].append_text(in_text(text, reverse_kl, self._numbers))

        with Live(_Newest(table), console=self.console, refresh_per_second=10) as live:
            try:
                yield show_in_column
            finally:
                live.update(table)


class _Newest:
    """Show the last lines of something that may be higher than the screen."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


class PlainScreen(Screen):
    """A pipe or a file gets one answer a line, its own line ends written as \\n; notes go to standard error."""

    def note(self, text: str) -> None:
        """Print a line on standard error."""
        print(clean(text), file=sys.stderr, flush=True)

    @contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[ShowToken]:
        """Write one line an answer; two are two lines that begin with their names."""
        later = [""] * len(names)

        def show(column: int, text: str, reverse_kl: float | None) -> None:
            shown = in_text(text, reverse_kl, self._numbers).plain.replace("\\", "\\\\").replace("\n", "\\n")
            if column:
                later[column] += shown
            else:
                self._write(shown)

        self._write(f"{names[0]}: " if len(names) > 1 else "")
        try:
            yield show
        finally:
            self._write("".join(f"\n{name}: {line}" for name, line in zip(names[1:], later[1:], strict=True)) + "\n")

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


def open_screen(numbers: bool) -> Screen:
    """Return what suits standard output."""
    console = open_console()
    return TerminalScreen(console, numbers) if console.file.isatty() else PlainScreen(console, numbers)


def worst_tokens(pieces: Sequence[Piece]) -> Table:
    """Show the tokens with the largest reverse KL, each beside the teacher's likeliest tokens there."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("after", "token"):
        table.add_column(heading, overflow="fold")
    for heading in ("reverse KL", "student", "teacher"):
        table.add_column(heading, justify="right")
    table.add_column("the teacher's choices", overflow="fold")
    order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].reverse_kl, i))
    for i in order[:WORST]:
        piece = pieces[i]
        before = "".join(each.text for each in pieces[:i])
        table.add_row(
            Text(_visible(before[-BEFORE:]), style="dim"),
            Text(_visible(piece.text), style=colour_of(piece.reverse_kl)),
            number(piece.reverse_kl),
            _share(piece.student),
            _share(piece.teacher),
            Text("  ".join(f"{_visible(text)} {_share(logprob)}" for text, logprob in piece.top)),
        )
    return table


def _visible(text: str) -> str:
    """Write a text on one line, with spaces at its ends to be seen."""
    shown = clean(text.replace("\n", "⏎"))
    inner = shown.strip(" ")
    if not inner:
        return "␣" * len(shown) or "·"
    start = len(shown) - len(shown.lstrip(" "))
    return "␣" * start + inner + "␣" * (len(shown) - start - len(inner))


def _share(logprob: float) -> str:
    """Write a log-prob as a probability: 12 %, 0.3 %, <0.1 %."""
    percent = 100 * math.exp(logprob)
    return "<0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 1 else f"{percent:.0f} %"
