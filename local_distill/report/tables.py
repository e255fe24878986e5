"""What a page says in words and numbers: how the runs ended, their settings, their completions side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from local_distill.config.builtin import nameless_teacher
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE, recorded_loss
from local_distill.report.progress import Progress, progress_of
from local_distill.report.reading import Record, ReportedRun
from local_distill.wording import change, clean, counted, duration, number, percent, with_error

ABSENT = "–"
UNKNOWN = ""
"""The setting of a run that has not written its settings yet."""
NAMED_APART = ("student_model", "teacher_model", "output_dir")
"""Settings without a default, which every run gives."""


@dataclass(frozen=True)
class Outcome:
    """A run ended like this, as text. before, after: held-out reverse KL ± its standard error, nats/token.

    change: from before to after, in percent. progress: how far it is.
    """

    run: str
    student: str
    teacher: str
    loss: str
    before: str
    after: str
    change: str
    length: str
    truncated: str
    steps: str
    tokens: str
    seconds: str
    rate: str
    progress: Progress


@dataclass(frozen=True)
class Row:
    """A name has a value in each run. default: what it is where nobody said; None where there is no such thing."""

    name: str
    values: tuple[str, ...]
    default: str | None = None

    @property
    def differs(self) -> bool:
        """Return whether the runs differ in it, as far as they have told."""
        return len(set(self.values) - {UNKNOWN}) > 1

    @property
    def given(self) -> bool:
        """Return whether any run has another value than the default."""
        return any(value not in (self.default, UNKNOWN) for value in self.values)


@dataclass(frozen=True)
class Shown:
    """A completion stands on the page like this. when: "before", "after 12 steps"."""

    run: str
    when: str
    text: str
    measured: str


def outcome_of(run: ReportedRun) -> Outcome:
    """Return how the run ended, as far as its files tell."""
    first: Record = next((each for each in run.evaluations if each["step"] == 0), {})
    last = run.evaluations[-1] if run.evaluations else first
    done = run.steps[-1]["step"] if run.steps else 0
    tokens, seconds = (sum(float(step.get(name) or 0) for step in run.steps) for name in ("tokens", "seconds/step"))
    nameless = nameless_teacher(run.settings.get("teacher_backend"))
    teacher = run.settings.get("teacher_model") or nameless or run.settings.get("teacher_url")
    return Outcome(
        run=run.name,
        student=str(run.settings.get("student_model") or ABSENT),
        teacher=str(teacher or ABSENT),
        loss=recorded_loss(run.settings) or ABSENT,
        before=_divergence(first),
        after=_divergence(last) if last is not first else ABSENT,
        change=_change(first.get("eval/reverse_kl"), last.get("eval/reverse_kl")) if last is not first else ABSENT,
        length=_written(last.get("eval/completion_tokens"), number),
        truncated=_written(last.get("eval/truncated"), percent),
        steps=str(done),
        tokens=number(tokens) if tokens >= 1000 else f"{tokens:.0f}",
        seconds=duration(seconds),
        rate=number(tokens / seconds) if seconds else ABSENT,
        progress=progress_of(run),
    )


def _divergence(record: Record) -> str:
    mean, error = record.get("eval/reverse_kl"), record.get("eval/reverse_kl_se")
    return _written(mean, number) if mean is None or error is None else with_error(mean, error)


def _change(before: float | None, after: float | None) -> str:
    return change(before, after) if before and after is not None else ABSENT


def _written(value: float | None, write: Callable[[float], str]) -> str:
    return ABSENT if value is None else write(value)


def settings_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return every setting of the runs, those that somebody gave first."""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    defaults["learning_rate"] = LORA_LEARNING_RATE if runs[0].settings.get("use_lora") else FULL_LEARNING_RATE
    recorded = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [
        Row(
            name,
            tuple(_plain(run.settings.get(name)) if run.settings else UNKNOWN for run in runs),
            _plain(defaults.get(name)),
        )
        for name in dict.fromkeys([*defaults, *recorded])
        if name in recorded
    ]
    return sorted(rows, key=lambda row: (not row.given, row.name not in NAMED_APART))


def environment_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Return what the runs ran on; "old → new" where a run went on with something else."""
    starts = [[dict(_flat(start)) for start in run.starts] for run in runs]
    names = dict.fromkeys(name for run in starts for start in run for name in start)
    return [Row(name, tuple(_over_starts(name, run) for run in starts)) for name in names]


def _over_starts(name: str, starts: Sequence[Mapping[str, str]]) -> str:
    values = groupby(start.get(name, ABSENT) for start in starts)
    return " → ".join(value for value, _ in values) or ABSENT


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values of a record in a record: packages torch, cpu model."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif isinstance(value, list):
            yield prefix + name, "; ".join(_listed(each) for each in value) or ABSENT
        else:
            yield prefix + name, _plain(value)


def _listed(value: Any) -> str:
    return ", ".join(text for _, text in _flat(value)) if isinstance(value, Mapping) else _plain(value)


def completions_by_prompt(runs: Sequence[ReportedRun]) -> dict[str, list[Shown]]:
    """Return for each held-out prompt what each run made of it before its first step and after its last."""
    shown: dict[str, list[Shown]] = {}
    for run in runs:
        for sample in (*run.samples[:1], *run.samples[1:][-1:]):
            when = "before" if sample.step == 0 else f"after {sample.step} step{'s' if sample.step > 1 else ''}"
            for each in sample.completions:
                divergence = ABSENT if math.isnan(each.reverse_kl) else number(each.reverse_kl)
                measured = f"{counted(each.tokens, 'token')}, reverse KL {divergence}"
                shown.setdefault(clean(each.prompt), []).append(Shown(run.name, when, clean(each.text), measured))
    return shown


def _plain(value: Any) -> str:
    """Return a value as it is written in a file of settings."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else clean(str(value))
