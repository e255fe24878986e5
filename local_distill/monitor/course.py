"""The course of a run: what it measured so far, what has changed since its start, and both in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from local_distill.runs.evaluations import Evaluation
from local_distill.wording import change, number, percent, share_with_error, with_error

BLOCKS = "▁▂▃▄▅▆▇█"

Metrics = Mapping[str, float]
Field = tuple[str, str]
"""What people call a number, or nothing where it speaks for itself, and how it is written."""


class Course:
    """The reverse KL of a run is kept here, of training and of held-out prompts, step by step."""

    def __init__(self) -> None:
        self.training: dict[int, float] = {}
        """Step (from 1) → reverse KL of its rollouts, which the student wrote before that update."""
        self.held_out: dict[int, Evaluation] = {}
        """Updates done → what held-out prompts said then."""

    def earlier(self, metrics: Sequence[Metrics], evaluations: Sequence[Evaluation]) -> None:
        """Take in what was measured before a run was resumed."""
        for each in metrics:
            self.step(int(each["step"]), each)
        for evaluation in evaluations:
            self.evaluation(evaluation)

    def step(self, step: int, metrics: Metrics) -> None:
        """Take in what a step measured."""
        value = metrics.get("reverse_kl")
        self.training[step] = math.nan if value is None else value  # None: read from a file

    def evaluation(self, evaluation: Evaluation) -> None:
        """Take in what held-out prompts say."""
        self.held_out[evaluation.step] = evaluation

    def change_in_training(self) -> str:
        """Return how the last step's reverse KL differs from the first step's: −63 %; nothing where that is unknown."""
        return _change_since(1, self.training)

    def change_held_out(self) -> str:
        """Return how the last evaluation's reverse KL differs from that before training, or nothing."""
        return _change_since(0, {step: each.reverse_kl for step, each in self.held_out.items()})

    def of_evaluation(self, evaluation: Evaluation, since: str = " since step 0") -> list[Field]:
        """Return what is told of an evaluation, the most important first; before training → now, where both are known.

        It has been taken in. since: what is written behind the change.
        """
        before, changed = self.held_out.get(0), self.change_held_out()
        before = before if changed else None
        shown = [(label, _from_to(write, before, evaluation)) for label, write in EVALUATION if write(evaluation)]
        return [*shown[:1], *([("", f"{changed}{since}")] if changed else []), *shown[1:]]


def sparkline(values: Sequence[float], width: int, top: float) -> str:
    """Return a curve of at most ``width`` characters from 0 to ``top``, a blank where nothing was measured.

    More values than characters are averaged over stretches of the same length.
    """
    cells = min(width, len(values))
    stretches = [values[n * len(values) // cells : (n + 1) * len(values) // cells] for n in range(cells)]
    return "".join(_block([value for value in each if math.isfinite(value)], top) for each in stretches)


def _block(values: Sequence[float], top: float) -> str:
    if not values:
        return " "
    share = sum(values) / len(values) / top if top > 0 else 0.0
    return BLOCKS[max(0, min(len(BLOCKS) - 1, math.ceil(share * len(BLOCKS)) - 1))]


def _change_since(first: int, values: Mapping[int, float]) -> str:
    """Return the change from step ``first`` to the last step; nothing where either is missing or no divergence."""
    if first not in values or len(values) < 2:
        return ""
    before, after = values[first], values[max(values)]
    comparable = before > 0 and math.isfinite(before) and math.isfinite(after)  # an estimate of it can be below 0
    return change(before, after) if comparable else ""


def _from_to(write: Callable[[Evaluation], str], before: Evaluation | None, now: Evaluation) -> str:
    after = write(now)
    earlier = write(before) if before else ""
    return f"{earlier} → {after}" if earlier and earlier != after else after


def _accuracy(evaluation: Evaluation) -> str:
    if math.isnan(evaluation.accuracy):
        return ""
    return share_with_error(evaluation.accuracy, evaluation.accuracy_standard_error)


EVALUATION: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    ("held-out reverse KL", lambda each: with_error(each.reverse_kl, each.standard_error)),
    ("accuracy", _accuracy),
    ("length", lambda each: number(each.length)),
    ("truncated", lambda each: percent(each.truncated)),
)
"""What people call a number of an evaluation, and how it is written; nothing where it was not measured."""
