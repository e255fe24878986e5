"""A run in a log: plain lines, one a step, without colour or cursor movement."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO

from local_distill.monitor.course import Course
from local_distill.monitor.silent import Fact, Terminal
from local_distill.process.exit_codes import drop_output
from local_distill.runs.evaluations import Evaluation
from local_distill.wording import clean, number, percent


class PlainTerminal(Terminal):
    """A step is one line, written at once; for log files and pipes.

    Completions are not shown: a log is read line by line, and completions.jsonl has the text. Nor is what is done now.
    """

    def __init__(self, stream: IO[str], total_steps: int) -> None:
        self._stream = LastingStream(stream)
        self._total_steps = total_steps
        self._course = Course()

    def facts(self, facts: Sequence[Fact]) -> None:
        """Write a line for each, the second parts below each other."""
        width = max((len(label) for label, _ in facts), default=0)
        for label, text in facts:
            self.say(f"{label:{width}}  {text}")

    def say(self, text: str) -> None:
        """Write the message on lines of its own."""
        self._stream.write(f"{clean(text)}\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        """Write it as a message that can be searched for."""
        self.say(f"warning: {text}")

    def notice(self, text: str) -> None:
        """Write the line on standard error, past the stream, which may be half through a line of its own."""
        write_past_streams(text)

    def earlier(self, metrics: Sequence[Mapping[str, float]], evaluations: Sequence[Evaluation]) -> None:
        """Take it in."""
        self._course.earlier(metrics, evaluations)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, as long as it needs to be."""
        self._course.step(step, metrics)
        self.say("  ".join([f"step {step}/{self._total_steps}", *self._fields(metrics)]))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Write one line."""
        self._course.evaluation(evaluation)
        fields = (f"{label} {value}".strip() for label, value in self._course.of_evaluation(evaluation))
        self.say("  ".join([f"step {evaluation.step}", *fields]))

    def _fields(self, metrics: Mapping[str, float]) -> Iterator[str]:
        changed = self._course.change_in_training()
        for name, label, write in _STEP:
            if name in metrics and (value := write(metrics[name])):
                yield f"{label} {value}".strip() + (f" ({changed})" if changed and name == "reverse_kl" else "")


class LastingStream:
    """A stream that nobody can break: once it cannot be written any more, what is written to it goes nowhere.

    A full disk, a pipe whose reader has ended, a terminal that is gone: the run is worth more than what it says.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or let go of the stream."""
        return self._or_let_go(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Write what is on its way, or let go of the stream."""
        self._or_let_go(self._stream.flush)

    def _or_let_go(self, act: Callable[[], int | None]) -> int:
        try:
            return act() or 0
        except OSError as error:
            drop_output(self._stream)
            with suppress(OSError):  # the same terminal
                print(
                    f"standard output cannot be written ({error.strerror}); the run goes on in silence, and its files "
                    "have every step",
                    file=sys.stderr,
                )
            return 0


def write_past_streams(text: str) -> None:
    """Write a line on standard error, whatever stream is in the middle of one."""
    with suppress(OSError):
        os.write(2, f"{clean(text)}\n".encode(errors="replace"))


_STEP: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reverse_kl", "reverse KL", number),
    ("loss", "loss", number),
    ("completion_tokens", "length", number),
    ("truncated", "truncated", percent),
    ("skipped", "", lambda value: "update skipped" if value else ""),
    ("tokens_per_second", "", lambda value: f"{number(value)} tok/s"),
    ("seconds/sample", "sampling", lambda value: f"{number(value)} s"),
    ("seconds/score", "scoring", lambda value: f"{number(value)} s"),
    ("seconds/train", "training", lambda value: f"{number(value)} s"),
    ("peak_memory_gib", "peak", lambda value: f"{value:.1f} GiB"),
)
"""A metric, what people call it, and how it is written."""
