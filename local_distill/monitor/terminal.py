"""What a person watches while a run goes on: a live bar, plain lines in a log, or nothing.

Whatever a model wrote is untrusted: it reaches a terminal only through ``clean``, and never as markup.
Knows nothing of files or experiment trackers.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from local_distill.process.exit_codes import drop_output
from local_distill.runs.evaluations import Completion, Evaluation
from local_distill.wording import clean, number, percent, share_with_error, shorten, with_error


class Terminal:
    """A run tells people here how it is going; as a context manager, shown from entry to exit.

    This one shows nothing: it is for every process but the main one.
    """

    def say(self, text: str) -> None:
        """Show a message."""

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show what begins, or goes on, now: ``evaluating``, with 5 of 16 done; from any thread.

        total: 0 where nothing is counted. What was shown before is replaced; empty text ends it.
        """

    def notice(self, text: str) -> None:
        """Show one line at once, from the handler of a signal: it may have come in the middle of any other call."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show what update number ``step`` (from 1) measured; metrics that are absent are left out."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Show the numbers of an evaluation."""

    def completion(self, completion: Completion) -> None:
        """Show a sample of what the student writes."""

    def close(self) -> None:
        """Leave the terminal as it was; messages can still be shown. Closing twice is once."""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_terminal(total_steps: int, first_step: int, is_main_process: bool) -> Terminal:
    """Return the terminal that suits this process: a live bar, plain lines where output goes to a file, else nothing.

    total_steps: steps of the whole run. first_step: steps already done, above 0 in a resumed run.
    """
    if not is_main_process:
        return Terminal()
    console = open_console()
    # is_interactive believes FORCE_COLOR; a bar would still fill a log file with cursor movements
    if console.is_interactive and console.file.isatty():
        return LiveTerminal(console, total_steps, first_step)
    return PlainTerminal(console.file, total_steps)


def open_console() -> Console:
    """Return standard output, where a character that the encoding lacks becomes "?" instead of ending the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


class PlainTerminal(Terminal):
    """A step is one line without colour or cursor movement, written at once; for log files and pipes.

    Completions are not shown: a log is read line by line, and completions.jsonl has the text.
    """

    def __init__(self, stream: IO[str], total_steps: int) -> None:
        self._stream = stream
        self._total_steps = total_steps

    def say(self, text: str) -> None:
        """Write the message on lines of its own."""
        try:
            print(clean(text), file=self._stream, flush=True)
        except OSError as error:  # a full disk, or a pipe whose reader has ended: the run is worth more than its log
            drop_output(self._stream)
            print(
                f"standard output cannot be written ({error.strerror}); the run goes on in silence, and its files have "
                "every step",
                file=sys.stderr,
            )

    def notice(self, text: str) -> None:
        """Write the line on standard error, past the stream, which may be half through a line of its own."""
        _write_past_streams(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, as long as it needs to be."""
        shown = [f"{label} {value}".strip() for row in _FIELD_ROWS for label, value in _fields(row, metrics)]
        self.say("  ".join([f"step {step}/{self._total_steps}", *shown]))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Write one line."""
        self.say(_in_words(evaluation))


class LiveTerminal(Terminal):
    """A progress bar over the newest metrics stays at the bottom of the terminal; all else scrolls by above."""

    def __init__(self, console: Console, total_steps: int, first_step: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("[dim]elapsed"),
            TimeRemainingColumn(),
            TextColumn("[dim]left"),
            console=console,
            expand=True,
            speed_estimate_period=math.inf,  # one step can take longer than the 30 s that rich looks back
        )
        self._task = self._progress.add_task("", start=False, total=total_steps, completed=first_step)
        self._metrics: tuple[Text, ...] = ()
        self._doing = self._notice = ""
        self._live = Live(get_renderable=self._shown, console=console, refresh_per_second=4)

    def __enter__(self) -> Terminal:
        self._progress.start_task(self._task)
        self._live.start(refresh=True)
        return self

    def say(self, text: str) -> None:
        """Print the message above the bar."""
        self._console.print(Text(clean(text)))

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show it below the bar, from its next frame on."""
        self._doing = f"{what} {done}/{total}" if total else what

    def notice(self, text: str) -> None:
        """Show it below the bar, from its next frame on: another thread draws that, whatever this one is in."""
        if self._live.is_started:
            self._notice = text
        else:
            _write_past_streams(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, and show these metrics in place of the step's before."""
        self._progress.update(self._task, completed=step)
        self._metrics = tuple(_row(fields, metrics) for fields in _FIELD_ROWS)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Print one line above the bar."""
        self._console.print(Text(_in_words(evaluation), style="cyan"))

    def completion(self, completion: Completion) -> None:
        """Print a panel above the bar: the prompt, and what the student made of it."""
        prompt = Text(shorten(completion.prompt, characters=300, lines=4), style="dim")
        text = Text(shorten(completion.text, characters=800, lines=12))
        panel = Panel(
            Group(prompt, Text(), text),
            title="sample",
            title_align="left",
            subtitle=f"{completion.tokens} tokens, ended by {_ENDED_BY[completion.finish]}, "
            f"reverse KL {number(completion.reverse_kl)}",
            subtitle_align="right",
            border_style="dim",
        )
        self._console.print(panel)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._doing = ""
        self._live.stop()

    def _shown(self) -> Group:
        doing, notice = Text(clean(self._doing), style="dim"), Text(clean(self._notice), style="bold")
        return Group(self._progress, *self._metrics, *filter(None, (doing, notice)))


def _write_past_streams(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{clean(text)}\n".encode(errors="replace"))


_ENDED_BY = {"stop": "a stop token", "length": "the length limit"}

_Field = tuple[str, str, Callable[[float], str]]  # metric, what people call it, how it is written

_FIELD_ROWS: tuple[tuple[_Field, ...], ...] = (
    (
        ("reverse_kl", "reverse KL", number),
        ("loss", "loss", number),
        ("completion_tokens", "length", number),
        ("truncated", "truncated", percent),
        ("skipped", "", lambda value: "update skipped" if value else ""),
    ),
    (
        ("tokens_per_second", "", lambda value: f"{number(value)} tok/s"),
        ("seconds/sample", "sampling", lambda value: f"{number(value)} s"),
        ("seconds/score", "scoring", lambda value: f"{number(value)} s"),
        ("seconds/train", "training", lambda value: f"{number(value)} s"),
        ("peak_memory_gib", "peak", lambda value: f"{value:.1f} GiB"),
    ),
)


def _fields(row: tuple[_Field, ...], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return (label, value) of the metrics that are there and have something to say."""
    return [(label, value) for name, label, write in row if name in metrics and (value := write(metrics[name]))]


def _row(row: tuple[_Field, ...], metrics: Mapping[str, float]) -> Text:
    """Return a row; two such rows fit 80 columns, whatever the values."""
    parts = [Text.assemble((label, "dim"), " " if label else "", value) for label, value in _fields(row, metrics)]
    return Text("  ").join(parts)


def _in_words(evaluation: Evaluation) -> str:
    reverse_kl = with_error(evaluation.reverse_kl, evaluation.standard_error)
    accuracy = ""
    if not math.isnan(evaluation.accuracy):
        accuracy = f"accuracy {share_with_error(evaluation.accuracy, evaluation.accuracy_standard_error)}  "
    return (
        f"step {evaluation.step}  held-out reverse KL {reverse_kl}  {accuracy}length {number(evaluation.length)}  "
        f"truncated {percent(evaluation.truncated)}"
    )
