"""The curves: which metrics are drawn, in which chart, and their numbers in columns."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from local_distill.report.reading import Record, ReportedRun

Column = list[float | None]


@dataclass(frozen=True)
class Line:
    """A metric is drawn in a chart. error: the metric that is its standard error."""

    metric: str
    label: str
    error: str | None = None


@dataclass(frozen=True)
class Chart:
    """Metrics share an axis. unit: what its numbers are in. note: how to read it."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    note: str = ""


CHARTS = (
    Chart(
        "Reverse KL",
        "nats/token",
        (Line("eval/reverse_kl", "held-out", "eval/reverse_kl_se"), Line("reverse_kl", "train")),
        "How far the student is from the teacher on what the student writes; 0 is the teacher itself. "
        "Bars are ± one standard error.",
    ),
    Chart("Loss", "nats/token", (Line("loss", "loss"),), "What --loss minimises."),
    Chart(
        "Entropy",
        "nats/token",
        (Line("entropy", "student"), Line("teacher_entropy", "teacher")),
        "How undecided each model is. A student far below its teacher is collapsing.",
    ),
    Chart(
        "Completion length",
        "tokens",
        (Line("eval/completion_tokens", "held-out"), Line("completion_tokens", "train")),
        "Mean tokens of a completion.",
    ),
    Chart(
        "Truncated",
        "share of completions",
        (Line("eval/truncated", "held-out"), Line("truncated", "train")),
        "Completions that max_new_tokens ended, not a stop token.",
    ),
    Chart("Gradient norm", "norm", (Line("grad_norm", "gradient"),), "Before clipping."),
    Chart("Throughput", "tokens/s", (Line("tokens_per_second", "completion tokens"),), "Over the whole step."),
    Chart(
        "Where the time goes",
        "seconds/step",
        (Line("seconds/sample", "sample"), Line("seconds/score", "score"), Line("seconds/train", "train")),
        "Seconds of each phase of a step.",
    ),
    Chart("Top tokens shared", "share", (Line("top_overlap", "overlap"),), "Of student's and teacher's likeliest."),
    Chart("Learning rate", "rate", (Line("learning_rate", "learning rate"),)),
    Chart("Peak memory", "GiB", (Line("peak_memory_gib", "peak"),), "Of the GPU where there is one, else resident."),
    Chart(
        "Engine gap",
        "nats/token",
        (Line("engine/kl", "KL"),),
        "Between what the tokens were drawn from and what is trained; rounding alone keeps it near 0.",
    ),
)

COUNTED = frozenset(("step", "tokens", "seconds/step"))
"""What the x axis shows already."""


def charts_of(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return the charts that have anything to show; metrics that belong to none get one each, at the end."""
    records = [record for run in runs for record in (*run.steps, *run.evaluations)]
    measured = {name: True for record in records for name, value in record.items() if value}
    known = {name for chart in CHARTS for line in chart.lines for name in (line.metric, line.error)} | COUNTED
    charts = [replace(chart, lines=tuple(line for line in chart.lines if line.metric in measured)) for chart in CHARTS]
    others = [Chart(name, "value", (Line(name, name),)) for name in measured if name not in known]
    return [chart for chart in (*charts, *others) if chart.lines]


def columns_of(run: ReportedRun) -> dict[str, dict[str, Column]]:
    """Return the columns of "train" and of "eval": every metric, "step", and "tokens" and "seconds" since the start.

    A number that is missing or not finite is None.
    """
    steps = [record["step"] for record in run.steps]
    totals = {
        "tokens": list(accumulate((float(record.get("tokens") or 0) for record in run.steps), initial=0.0)),
        "seconds": list(accumulate((float(record.get("seconds/step") or 0) for record in run.steps), initial=0.0)),
    }

    def columns(records: Sequence[Record]) -> dict[str, Column]:
        names = {name: True for record in records for name in record if name not in COUNTED}
        done = [bisect_right(steps, record["step"]) for record in records]  # records of steps, up to each
        return {
            **{name: [finite(record.get(name)) for record in records] for name in names},
            "step": [float(record["step"]) for record in records],
            **{name: [total[n] for n in done] for name, total in totals.items()},
        }

    return {"train": columns(run.steps), "eval": columns(run.evaluations)}


def finite(value: Any) -> float | None:
    """Return a number to six digits, or None for what is not a finite number."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(f"{value:.6g}")
    return None
