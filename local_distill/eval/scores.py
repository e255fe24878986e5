"""From answers to numbers, each model's and what differs between two; and the numbers on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_distill.eval.answers import Answer, Divergence, OutputFolder
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
from local_distill.wording import clean, number, percent, share_with_error, with_error

ACCURACY, REVERSE_KL = "accuracy", "reverse_kl"
LABELS = {REVERSE_KL: "reverse KL (nats/token)"}


@dataclass(frozen=True)
class Measured:
    """What one model did on one task.

    right: of each question, how many of its ``samples`` answers are; empty without answers.
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
        """Return every number that has an error and can be compared."""
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
        """Return pass@k of each question, k the number of samples."""
        return [pass_at_k(n, self.samples, self.samples) for n in self.right]


@dataclass(frozen=True)
class Compared:
    """How far a model's metric is above the first model's, paired by question."""

    model: str
    baseline: str
    task: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class ModelResults:
    """What one model did on all tasks, by their names."""

    model: str
    tasks: Mapping[str, Measured] = field(default_factory=dict)


def measure(model: str, inputs: EvalInputs, output: OutputFolder) -> ModelResults:
    """Return the numbers of one model, of which all answers are in the output folder."""
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
    """Return after − before of every metric of every task."""
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
    """Return what results.json holds."""
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


def show(
    console: Console, inputs: EvalInputs, measured: Sequence[ModelResults], compared: Sequence[Compared],
    on_harness: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Print the models by number, then a table for each task, with each model's difference from the first behind it."""
    for place, model in enumerate(measured, start=1):
        console.print(Text(f"{place}  {clean(model.model)}"), soft_wrap=True)
    for task in inputs.tasks:
        samples = inputs.settings.samples
        each = f", {samples} answers each" if task.verified and samples > 1 else ""
        console.print(
            _of_task(f"{clean(task.name)}: {len(task.questions)} questions{each}", task.name, measured, compared)
        )
    if any(on_harness.values()):
        console.print(_of_harness(on_harness))
    if compared:
        console.print(Text("± standard error; differences are paired by question, p two-sided", style="dim"))


def _of_task(title: str, task: str, measured: Sequence[ModelResults], compared: Sequence[Compared]) -> Table:
    table = Table("", title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place in range(1, len(measured) + 1):
        table.add_column(str(place), justify="right")
        if place > 1:
            table.add_column(f"{place} − 1", justify="right")
    first = measured[0].tasks[task]
    for metric in first.metrics:
        cells = [_estimate(metric, first.metrics[metric])]
        for model in measured[1:]:
            found = next(c for c in compared if (c.model, c.task, c.metric) == (model.model, task, metric))
            cells += [_estimate(metric, model.tasks[task].metrics[metric]), _difference(metric, found.difference)]
        table.add_row(LABELS.get(metric, metric), *cells)
    tasks = [model.tasks[task] for model in measured]
    for label, cells in (
        ("length (tokens)", [number(each.length.mean) for each in tasks]),
        ("truncated", [percent(each.truncated.mean) for each in tasks]),
    ):
        table.add_row(label, cells[0], *(part for cell in cells[1:] for part in (cell, "")))  # of differences, none
    return table


def _of_harness(on_harness: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("", title="lm-evaluation-harness", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place in range(1, len(on_harness) + 1):
        table.add_column(str(place), justify="right")
    rows = {(task, metric): None for tasks in on_harness.values() for task in tasks for metric in tasks[task]}
    for task, metric in rows:
        found = [tasks.get(task, {}).get(metric) for tasks in on_harness.values()]
        table.add_row(f"{task} {metric}", *(with_error(each["mean"], each["se"]) if each else "–" for each in found))
    return table


def _estimate(metric: str, estimate: Estimate) -> str:
    if metric == REVERSE_KL:
        return with_error(*estimate)
    return share_with_error(*estimate)


def _difference(metric: str, difference: Difference) -> str:
    mean, error, p = difference
    if metric == REVERSE_KL:
        shown = f"{'+' if mean > 0 else ''}{with_error(mean, error)}"
    else:
        shown = f"{100 * mean:+.1f} ± {100 * error:.1f}"
    return f"{shown}, {p_in_words(p)}"


def p_in_words(p: float) -> str:
    """Write a p-value: p 0.034, p < 0.001."""
    if math.isnan(p):
        return "p –"
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.0995 else f"p {p:.2f}"
