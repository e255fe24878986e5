"""How far a run is: what it does now, and how long its steps will still take."""

from __future__ import annotations

from dataclasses import dataclass

from local_distill.report.reading import ReportedRun
from local_distill.wording import duration

RECENT = 20
"""Steps whose mean time is that of the next ones."""


@dataclass(frozen=True)
class Progress:
    """A run is this far. steps: how many it will have in all; 0 where it left no word of that.

    doing: what it does now, or how it ended. goes_on: whether somebody is at work on it. left: time that the steps
    to come will take, in words; empty where nobody can tell.
    """

    doing: str
    step: int
    steps: int
    goes_on: bool
    left: str = ""

    @property
    def state(self) -> str:
        """Return all of it in one line."""
        return ", ".join(filter(None, (self.doing, f"about {self.left} of steps left" if self.left else "")))


def progress_of(run: ReportedRun) -> Progress:
    """Return how far a run is, as far as its files tell."""
    done = run.steps[-1]["step"] if run.steps else 0
    steps = run.settings.get("steps")
    steps = steps if isinstance(steps, int) else 0
    if not run.goes_on:
        return Progress(_ended(run, done, steps), done, steps, goes_on=False)
    return Progress(_doing(run, done, steps), done, steps, goes_on=True, left=_left(run, steps - done))


def _ended(run: ReportedRun, done: int, steps: int) -> str:
    if not run.has_begun:
        return "not begun yet"
    return "finished" if done == steps or not steps else f"stopped after step {done} of {steps}"


def _doing(run: ReportedRun, done: int, steps: int) -> str:
    of = f" of {steps}" if steps else ""
    evaluates = bool(run.evaluations or run.settings.get("eval_prompts"))
    evaluated = run.evaluations[-1]["step"] if run.evaluations else None
    if not run.has_begun:
        return "starting: it loads the models" + (", and evaluates the student as it is" if evaluates else "")
    every = run.settings.get("eval_every")
    due = done == steps or (isinstance(every, int) and every > 0 and done % every == 0)
    if evaluates and due and done and evaluated != done:
        return f"evaluating after step {done}{of}"
    return "saving what it learned" if done == steps else f"step {done + 1}{of}"


def _left(run: ReportedRun, steps: int) -> str:
    recent = [float(record.get("seconds/step") or 0) for record in run.steps[-RECENT:]]
    return duration(steps * sum(recent) / len(recent)) if steps > 0 and sum(recent) > 0 else ""
