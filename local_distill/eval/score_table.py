"""The numbers of an evaluation, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_distill.eval.questions_and_model import EvalInputs
from local_distill.eval.results import REVERSE_KL, Compared, Measured, ModelResults
from local_distill.eval.statistics import Difference, Estimate
from local_distill.wording import clean, number, percent, share_with_error, with_error

LABELS = {REVERSE_KL: "reverse KL (nats/token)"}


def show(
    console: Console, inputs: EvalInputs, measured: Sequence[ModelResults], compared: Sequence[Compared],
    on_harness: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """The models by number, then a table for each task: side by side, the difference from the first behind each."""
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
    table.add_row("length (tokens)", *_plain([model.tasks[task] for model in measured], _length))
    table.add_row("truncated", *_plain([model.tasks[task] for model in measured], _truncated))
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


def _plain(tasks: Sequence[Measured], write: Any) -> list[str]:
    """A cell for each model; none for the differences."""
    cells = [write(task) for task in tasks]
    return [cells[0], *(cell for each in cells[1:] for cell in (each, ""))]


def _length(task: Measured) -> str:
    return number(task.length.mean)


def _truncated(task: Measured) -> str:
    return percent(task.truncated.mean)


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
    """p 0.034, p < 0.001."""
    if math.isnan(p):
        return "p –"
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.0995 else f"p {p:.2f}"
