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
        "nats per token",
        (
            Line("eval/reverse_kl", "held-out reverse KL", "eval/reverse_kl_se"),
            Line("reverse_kl", "reverse KL in training"),
        ),
        "How far the student is from the teacher on what the student writes; 0 is the teacher itself. "
        "Bars are ± one standard error.",
    ),
    Chart(
        "Right answers",
        "share",
        (Line("eval/accuracy", "on held-out prompts", "eval/accuracy_se"),),
        "Of the held-out prompts that have an answer to check. Bars are ± one standard error.",
    ),
    Chart("Loss", "nats per token", (Line("loss", "loss"),), "What training makes smaller (--loss)."),
    Chart(
        "Entropy",
        "nats per token",
        (Line("entropy", "student"), Line("teacher_entropy", "teacher")),
        "How undecided each model is. A student far below its teacher is collapsing.",
    ),
    Chart(
        "Completion length",
        "tokens",
        (Line("eval/completion_tokens", "on held-out prompts"), Line("completion_tokens", "in training")),
        "Mean tokens of a completion.",
    ),
    Chart(
        "Cut off at the length limit",
        "share of completions",
        (Line("eval/truncated", "on held-out prompts"), Line("truncated", "in training")),
        "Completions that --max_new_tokens ended, not a stop token.",
    ),
    Chart("Gradient norm", "norm", (Line("grad_norm", "gradient"),), "Before clipping."),
    Chart("Speed", "tokens per second", (Line("tokens_per_second", "completion tokens"),), "Over the whole step."),
    Chart(
        "Where the time goes",
        "seconds per step",
        (
            Line("seconds/sample", "the student samples"),
            Line("seconds/score", "the teacher scores"),
            Line("seconds/train", "training"),
        ),
        "Seconds of each phase of a step.",
    ),
    Chart(
        "Top tokens shared",
        "share",
        (Line("top_overlap", "shared"),),
        "Of the teacher's likeliest tokens, those that are among the student's likeliest.",
    ),
    Chart("Learning rate", "rate", (Line("learning_rate", "learning rate"),)),
    Chart("Peak memory", "GiB", (Line("peak_memory_gib", "peak"),), "Of the GPU where there is one, else of RAM."),
    Chart(
        "Sampler against training",
        "nats per token",
        (Line("engine/kl", "KL"),),
        "Between what the tokens were drawn from and what is trained; rounding alone keeps it near 0.",
    ),
    Chart(
        "Largest disagreement of the sampler",
        "ratio of probabilities",
        (Line("engine/max_ratio", "largest of the step"),),
    ),
    Chart("Skipped updates", "updates", (Line("skipped", "skipped"),), "Left out because they were not finite."),
    Chart(
        "Age of the samples",
        "updates",
        (Line("staleness", "mean"),),
        "Updates that the student had made since a sample was drawn.",
    ),
    Chart(
        "Weight of the samples",
        "ratio of probabilities",
        (
            Line("ratio/mean", "mean"),
            Line("ratio/effective", "effective share"),
            Line("ratio/clipped", "clipped share"),
        ),
        "Of a token's probability now to that of its draw; 1 where samples are the student's own.",
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
    others = [Chart(in_words(name), "value", (Line(name, in_words(name)),)) for name in measured if name not in known]
    return [chart for chart in (*charts, *others) if chart.lines]


def in_words(metric: str) -> str:
    """Return a metric that nobody here knows as words: "Some score on held-out prompts" for eval/some_score."""
    words = metric.replace("_", " ")
    if words.startswith("eval/"):
        words = f"{words.removeprefix('eval/')} on held-out prompts"
    words = words.replace("/", ": ")
    return words[:1].upper() + words[1:]


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
