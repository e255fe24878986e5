"""A run's folder → what there is to tell of it.

A run that was killed, resumed, or written by an older version reads as well: what is missing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_distill.errors import UserError
from local_distill.runs.claim import is_claimed
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE, check_kinds, read_settings, read_starts
from local_distill.runs.records import is_step, read_evaluations, read_metrics

Record = dict[str, Any]


class NothingMeasuredError(UserError):
    """A run has no step and no evaluation yet, so that there is nothing to report."""


@dataclass(frozen=True)
class ReportedRun:
    """The files of one run say this.

    steps: the metrics of each training step, by "step"; evaluations: those on held-out prompts, "eval/…".
    samples: the evaluations of completions.jsonl, with their completions. settings: of config.yaml.
    starts: what it ran on, each time that it was started; empty where the run left no word of that.
    goes_on: whether a process is at work in the folder. problem: what of its files could not be read, in a sentence.
    """

    name: str
    path: Path
    steps: Sequence[Record]
    evaluations: Sequence[Record]
    samples: Sequence[Evaluation]
    settings: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    goes_on: bool = False
    problem: str = ""

    @property
    def has_tokens(self) -> bool:
        """Return whether its completions were written token by token."""
        return any(completion.pieces for sample in self.samples for completion in sample.completions)

    @property
    def has_begun(self) -> bool:
        """Return whether anything was measured."""
        return bool(self.steps or self.evaluations)

    @property
    def is_open(self) -> bool:
        """Return whether there may be more of it."""
        return self.goes_on or not self.has_begun


def read_runs(paths: Sequence[str]) -> list[ReportedRun]:
    """Return the runs in these folders. Raises UserError for a folder that is no run, or is given twice."""
    return [read_run(folder, name) for folder, name in named(paths)]


def named(paths: Sequence[str]) -> list[tuple[Path, str]]:
    """Return each folder of a run with the name it has on a page. Raises UserError for one that is given twice."""
    folders = [Path(path).expanduser() for path in paths]
    for folder in folders:
        if sum(folder.resolve() == other.resolve() for other in folders) > 1:
            raise UserError(f"{folder}: given twice; name each run once")
    last_parts = [folder.resolve().name for folder in folders]
    unambiguous = len(set(last_parts)) == len(folders)
    return list(zip(folders, last_parts if unambiguous else map(str, folders), strict=True))


def read_run(folder: Path, name: str | None = None) -> ReportedRun:
    """Return the run in ``folder``. Raises UserError when it is none, or when one of its files cannot be read."""
    if not (folder / METRICS_FILE).exists():
        what = f"no {METRICS_FILE} in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder of a run, such as runs/<date-time>")
    check_kinds(folder)
    metrics = read_metrics(folder / METRICS_FILE)
    if not metrics:
        raise NothingMeasuredError(f"{folder / METRICS_FILE}: nothing measured yet; wait for the run's first step")
    completions = folder / COMPLETIONS_FILE
    return reported(
        folder,
        name or folder.resolve().name,
        metrics,
        read_evaluations(completions) if completions.exists() else [],
        settings=read_settings(folder),
        starts=read_starts(folder),
        goes_on=is_claimed(folder),
    )


def reported(
    folder: Path, name: str, metrics: Sequence[Record], evaluations: Sequence[Evaluation], **more: Any
) -> ReportedRun:
    """Return a run whose files hold these records. Of two about the same step and the same thing, the later counts."""
    last = {(record["step"], is_step(record)): record for record in metrics}
    ordered = sorted(last.values(), key=lambda record: record["step"])
    samples = {each.step: each for each in evaluations}
    return ReportedRun(
        name=name,
        path=folder,
        steps=[record for record in ordered if is_step(record)],
        evaluations=[record for record in ordered if not is_step(record)],
        samples=sorted(samples.values(), key=lambda each: each.step),
        **more,
    )
