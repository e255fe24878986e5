"""Where a run's numbers go, and what all of accelerate's trackers do alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from local_distill.errors import with_type
from local_distill.passwords import without_passwords
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.records import evaluation_metrics

LOG_DIR = "logs"  # in the run's folder, for trackers that write files
COMPLETIONS = "eval/completions"
"""The table of completions that people read."""
PER_TOKEN = "eval/per_token"
"""The same completions in colours, one token at a time, where a tracker shows HTML outside of tables."""


class Sink(Protocol):
    """A sink takes what a run measures. The terminal is one."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take what update number ``step`` (from 1) measured."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Take what the held-out prompts say."""

    def close(self) -> None:
        """End; nothing comes after this."""


@dataclass(frozen=True)
class Start:
    """A tracker is started with these.

    output_dir: the run's folder. name: of the run, as the user gave it. wandb_mode: online or offline.
    resumed_step: updates done when a resumed run starts again; None for a new run.
    """

    output_dir: Path
    name: str | None = None
    wandb_mode: str = "online"
    resumed_step: int | None = None

    @property
    def resumed(self) -> bool:
        """Return whether this goes on with a run that was started before."""
        return self.resumed_step is not None

    @property
    def name_or_folder(self) -> str:
        """Return the run's name, for trackers that would invent one."""
        return self.name or self.output_dir.resolve().name


class TrackerSink:
    """A tracker of accelerate's cannot stop the run: the first time it raises is its last.

    tracker: an accelerate GeneralTracker. warn: takes the one message about its failure.
    NaN and infinities are left out: a gap in a curve, as null is in metrics.jsonl.
    """

    def __init__(self, tracker: Any, warn: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._warn = warn
        self._working = True

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """Return what the tracker's own start-up takes beside the project."""
        del start
        return {}

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._try(lambda: self._tracker.log(finite, step=step))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the evaluation's numbers and its completions."""
        self.step(evaluation.step, evaluation_metrics(evaluation))
        if evaluation.completions:
            self._try(lambda: self._log_completions(evaluation))

    def close(self) -> None:
        """Let the tracker finish."""
        self._try(self._finish)

    def _log_completions(self, evaluation: Evaluation) -> None:
        """Do nothing, where it is not known how this tracker shows completions."""

    def _finish(self) -> None:
        self._tracker.finish()

    def _try(self, action: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:  # whatever it is: hours of training matter more than a curve
            self._working = False
            self._warn(
                f"{self._tracker.name} has failed ({first_line(error)}); "
                "the run goes on without it, and metrics.jsonl has every step"
            )


def first_line(error: Exception) -> str:
    """Return what an exception says, in one line that shows no password."""
    return without_passwords(with_type(error))
