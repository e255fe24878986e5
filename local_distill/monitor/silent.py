"""What a run tells people, and the terminal that shows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from local_distill.runs.evaluations import Completion, Evaluation

Fact = tuple[str, str]
"""What it is about, in a word, and what there is to know."""


class Terminal:
    """A run tells people here how it is going; as a context manager, shown from entry to exit.

    This one shows nothing: it is for every process but the main one.
    """

    def facts(self, facts: Sequence[Fact]) -> None:
        """Show what is about to happen, in a few rows."""

    def say(self, text: str) -> None:
        """Show a message."""

    def warn(self, text: str) -> None:
        """Show a message that asks for something to be done, so that it stands out."""

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show what begins, or goes on, now: ``evaluating``, with 5 of 16 done; from any thread.

        total: 0 where nothing is counted. What was shown before is replaced; empty text ends it.
        """

    def notice(self, text: str) -> None:
        """Show one line at once, from the handler of a signal: it may have come in the middle of any other call."""

    def earlier(self, metrics: Sequence[Mapping[str, float]], evaluations: Sequence[Evaluation]) -> None:
        """Learn what was measured before a run was resumed; nothing of it is shown line by line.

        metrics: one for each step, ``step`` among them.
        """

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show what update number ``step`` (from 1) measured; metrics that are absent are left out."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Show the numbers of an evaluation."""

    def completion(self, completion: Completion) -> None:
        """Show a sample of what the student writes, after the numbers of its evaluation."""

    def close(self) -> None:
        """Leave the terminal as it was; messages can still be shown. Closing twice is once."""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
