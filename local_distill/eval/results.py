"""From answers to numbers: each model's, and what differs between two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local_distill.eval.output import Answer, Divergence, OutputFolder
from local_distill.eval.questions_and_model import EvalInputs
from local_distill.eval.statistics import (
    Difference,
    Estimate,
    Total,
    mean_over_questions,
    mean_per_token,
    paired_difference,
    paired_ratios,
    pass_at_k,
)

ACCURACY, REVERSE_KL = "accuracy", "reverse_kl"


@dataclass(frozen=True)
class Measured:
    """One model on one task. right: of each question, how many of its ``samples`` answers are; empty without answers.

    totals: of each prompt, its completion's reverse KL; empty without a teacher. metrics: by name, for people.
    length, truncated: of the answers; of the scored completions where there are none.
    """

    model: str
    task: str
    questions: int
    samples: int
    right: tuple[int, ...]
    totals: tuple[Total, ...]
    length: Estimate
    truncated: Estimate

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Every number that has an error and can be compared."""
        found: dict[str, Estimate] = {}
        if self.right:
            found[ACCURACY] = mean_over_questions([n / self.samples for n in self.right])
            if self.samples > 1:
                found[f"pass@{self.samples}"] = mean_over_questions(self.any_right)
        if self.totals:
            found[REVERSE_KL] = mean_per_token(self.totals)
        return found

    @property
    def any_right(self) -> list[float]:
        """pass@k of each question, k the number of samples."""
        return [pass_at_k(n, self.samples, self.samples) for n in self.right]


@dataclass(frozen=True)
class Compared:
    """What a model's metric is above the first model's, paired by question."""

    model: str
    baseline: str
    task: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class ModelResults:
    """One model on all tasks, by their names."""

    model: str
    tasks: Mapping[str, Measured] = field(default_factory=dict)


def measure(model: str, inputs: EvalInputs, output: OutputFolder) -> ModelResults:
    """The numbers of one model, of which all answers are in the output folder."""
    samples = inputs.settings.samples
    tasks = {}
    for task in inputs.tasks:
        n = len(task.questions)
        answers = [
            [output.answers.found[model, task.name, q, m] for m in range(samples)]
            for q in (range(n) if task.verified else ())
        ]
        scored = [
            output.divergences.found[model, task.name, q, 0] for q in (range(n) if inputs.settings.measures_kl else ())
        ]
        told: Sequence[Sequence[Answer | Divergence]] = answers or [[each] for each in scored]
        tasks[task.name] = Measured(
            model,
            task.name,
            n,
            samples,
            right=tuple(sum(answer.correct for answer in each) for each in answers),
            totals=tuple(Total(each.reverse_kl, each.tokens) for each in scored),
            length=mean_over_questions([sum(a.tokens for a in each) / len(each) for each in told]),
            truncated=mean_over_questions([sum(a.finish == "length" for a in each) / len(each) for each in told]),
        )
    return ModelResults(model, tasks)


def differences(before: ModelResults, after: ModelResults) -> list[Compared]:
    """After − before of every metric of every task."""
    return [
        Compared(after.model, before.model, name, metric, difference)
        for name in before.tasks
        for metric, difference in _differences(before.tasks[name], after.tasks[name]).items()
    ]


def _differences(before: Measured, after: Measured) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    if before.right:
        found[ACCURACY] = paired_difference(before.right, after.right, before.samples)
        if before.samples > 1:
            hits, later = ([round(hit) for hit in each.any_right] for each in (before, after))
            found[f"pass@{before.samples}"] = paired_difference(hits, later, 1)
    if before.totals:
        found[REVERSE_KL] = paired_ratios(before.totals, after.totals)
    return found


def to_record(
    inputs: EvalInputs, measured: Sequence[ModelResults], compared: Sequence[Compared],
    on_harness: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """results.json."""
    return {
        "settings": inputs.fixed,
        "models": {each.model: {name: _task_record(task) for name, task in each.tasks.items()} for each in measured},
        "differences": [
            {
                "model": each.model,
                "baseline": each.baseline,
                "task": each.task,
                "metric": each.metric,
                "difference": each.difference.mean,
                "standard_error": each.difference.standard_error,
                "p_value": each.difference.p_value,
            }
            for each in compared
        ],
        "harness": {model: dict(tasks) for model, tasks in on_harness.items() if tasks},
    }


def _task_record(task: Measured) -> dict[str, Any]:
    numbers = {**task.metrics, "length": task.length, "truncated": task.truncated}
    record: dict[str, Any] = {"questions": task.questions, "samples": task.samples}
    for name, estimate in numbers.items():
        record[name], record[f"{name}_se"] = estimate.mean, estimate.standard_error
    return record
