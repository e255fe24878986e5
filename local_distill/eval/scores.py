"""From answers to numbers, each model's and what differs between two; and the numbers on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_distill.eval.harness import Harness
from local_distill.eval.output_folder import OutputFolder
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
from local_distill.eval.tasks import Task
from local_distill.wording import clean, number, percent, share_with_error, shorten_middle, with_error

ACCURACY, REVERSE_KL = "accuracy", "reverse_kl"
LABELS = {REVERSE_KL: "reverse KL"}
UNITS = "reverse KL in nats per token; ± one standard error"
CHANGES = "\nchange from the first model, paired by question; p two-sided"
WIDTH, LABEL, GAP, SHORTEST = 80, 22, 3, 13
"""Characters: of a table of two or three models, its first column, what lies between columns, the narrowest column."""


@dataclass(frozen=True)
class Measured:
    """A model did this on one task.

    right: of each question, how many of its ``samples`` answers are; empty without answers.
    totals: of each prompt, its completion's reverse KL; empty without a teacher.
    length, truncated: of the answers; of the scored completions where there are none.
    """

    questions: int
    samples: int
    right: tuple[int, ...]
    totals: tuple[Total, ...]
    length: Estimate
    truncated: Estimate

    @property
    def any_right(self) -> list[float]:
        """Return pass@k of each question, k the number of samples."""
        return [pass_at_k(n, self.samples, self.samples) for n in self.right]

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Return every number that has an error and can be compared, by its name for people."""
        found: dict[str, Estimate] = {}
        if self.right:
            found[ACCURACY] = mean_over_questions([n / self.samples for n in self.right])
            if self.samples > 1:
                found[f"pass@{self.samples}"] = mean_over_questions(self.any_right)
        if self.totals:
            found[REVERSE_KL] = mean_per_token(self.totals)
        return found

    def minus(self, before: Measured) -> dict[str, Difference]:
        """Return how far each metric is above that of another model on the same task, paired by question."""
        found: dict[str, Difference] = {}
        if self.right:
            found[ACCURACY] = paired_difference(before.right, self.right, self.samples)
            if self.samples > 1:
                hits, later = ([round(hit) for hit in each.any_right] for each in (before, self))
                found[f"pass@{self.samples}"] = paired_difference(hits, later, 1)
        if self.totals:
            found[REVERSE_KL] = paired_ratios(before.totals, self.totals)
        return found


@dataclass(frozen=True)
class Results:
    """An evaluation has these numbers, by model and task.

    differences: of all models but the first from the first, by metric as well.
    """

    measured: Mapping[str, Mapping[str, Measured]]
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    on_harness: Harness


def judge(inputs: EvalInputs, output: OutputFolder, on_harness: Harness) -> Results:
    """Measure each model by what is in the output folder, where all answers are, and compare it with the first."""
    names = [subject.name for subject in inputs.subjects]
    measured = {name: {task.name: measure(name, task, inputs, output) for task in inputs.tasks} for name in names}
    differences = {
        name: {task: measured[name][task].minus(before) for task, before in measured[names[0]].items()}
        for name in names[1:]
    }
    return Results(measured, differences, on_harness)


def measure(model: str, task: Task, inputs: EvalInputs, output: OutputFolder) -> Measured:
    """Return the numbers of one model on one task."""
    samples, questions = inputs.settings.samples, range(len(task.questions))
    answers = [
        [output.answers.found[model, task.name, q, m] for m in range(samples)]
        for q in (questions if task.verified else ())
    ]
    scored = [output.scored.found[model, task.name, q, 0] for q in (questions if inputs.settings.measures_kl else ())]
    told = [[(a.tokens, a.finish) for a in each] for each in answers] or [[(s.tokens, s.finish)] for s in scored]
    return Measured(
        len(questions),
        samples,
        right=tuple(sum(answer.correct for answer in each) for each in answers),
        totals=tuple(Total(each.reverse_kl, each.tokens) for each in scored),
        length=mean_over_questions([sum(tokens for tokens, _ in each) / len(each) for each in told]),
        truncated=mean_over_questions([sum(end == "length" for _, end in each) / len(each) for each in told]),
    )


def to_record(inputs: EvalInputs, results: Results) -> dict[str, Any]:
    """Return what results.json holds."""
    return {
        "settings": inputs.fixed,
        "models": {
            model: {name: _task_record(task) for name, task in tasks.items()}
            for model, tasks in results.measured.items()
        },
        "differences": [
            {
                "model": model,
                "baseline": next(iter(results.measured)),
                "task": task,
                "metric": metric,
                "difference": difference.mean,
                "standard_error": difference.standard_error,
                "p_value": difference.p_value,
            }
            for model, tasks in results.differences.items()
            for task, metrics in tasks.items()
            for metric, difference in metrics.items()
        ],
        "harness": {
            model: {
                task: {metric: {"mean": found.mean, "se": found.standard_error} for metric, found in metrics.items()}
                for task, metrics in tasks.items()
            }
            for model, tasks in results.on_harness.items()
            if tasks
        },
    }


def _task_record(task: Measured) -> dict[str, Any]:
    numbers = {**task.metrics, "length": task.length, "truncated": task.truncated}
    record: dict[str, Any] = {"questions": task.questions, "samples": task.samples}
    for name, estimate in numbers.items():
        record[name] = estimate.mean
        if not math.isnan(estimate.standard_error):  # one question cannot tell
            record[f"{name}_se"] = estimate.standard_error
    return record


def show(console: Console, inputs: EvalInputs, results: Results) -> None:
    """Print a table for each task, a column for each model, with its change from the first under each number."""
    shown = short_names(results.measured, (WIDTH - LABEL) // max(2, len(results.measured)) - GAP)
    for name, model in zip(shown, results.measured, strict=True):
        if name != model:
            console.print(Text(f"{name}  {clean(model)}"), soft_wrap=True)
    for task in inputs.tasks:
        samples = inputs.settings.samples
        each = f", {samples} answers each" if task.verified and samples > 1 else ""
        console.print(_of_task(f"{clean(task.name)}: {len(task.questions)} questions{each}", task.name, shown, results))
    if any(results.on_harness.values()):
        console.print(_of_harness(shown, results))
    if inputs.tasks:
        console.print(Text(f"{UNITS}{CHANGES if results.differences else ''}", style="dim"))


def short_names(models: Iterable[str], characters: int) -> list[str]:
    """Return names of at most so many characters, cut in the middle; with numbers before them if two are alike."""
    full = [clean(model) for model in models]
    short = [shorten_middle(name, max(SHORTEST, characters)) for name in full]
    if len(set(short)) == len(short):
        return short
    return [f"{n} {shorten_middle(name, max(SHORTEST, characters) - 2)}" for n, name in enumerate(full, start=1)]


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table("", title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _of_task(title: str, task: str, names: Sequence[str], results: Results) -> Table:
    table = _table(title, names)
    found = {model: tasks[task] for model, tasks in results.measured.items()}
    changes = [tasks[task] for tasks in results.differences.values()]
    for metric in next(iter(found.values())).metrics:
        table.add_row(LABELS.get(metric, metric), *(_estimate(metric, each.metrics[metric]) for each in found.values()))
        if changes:
            table.add_row("  change", "", *(_difference(metric, each[metric]) for each in changes))
            table.add_row("  p", "", *(p_in_words(each[metric].p_value) for each in changes))
    table.add_row("length (tokens)", *(number(each.length.mean) for each in found.values()))
    table.add_row("truncated", *(percent(each.truncated.mean) for each in found.values()))
    return table


def _of_harness(names: Sequence[str], results: Results) -> Table:
    table = _table("lm-evaluation-harness", names)
    each = [results.on_harness.get(model, {}) for model in results.measured]
    rows = {(task, metric): None for tasks in each for task in tasks for metric in tasks[task]}
    for task, metric in rows:
        found = [tasks.get(task, {}).get(metric) for tasks in each]
        table.add_row(f"{task} {metric}", *(with_error(*number) if number else "–" for number in found))
    return table


def _estimate(metric: str, estimate: Estimate) -> str:
    return with_error(*estimate) if metric == REVERSE_KL else share_with_error(*estimate)


def _difference(metric: str, difference: Difference) -> str:
    mean, error, _ = difference
    if metric == REVERSE_KL:
        return f"{'+' if mean > 0 else ''}{with_error(mean, error)}"
    return f"{100 * mean:+.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def p_in_words(p: float) -> str:
    """Write a p-value: 0.034, < 0.001; – where there is none."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
