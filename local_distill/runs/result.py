"""What ``train`` returns."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from local_distill.runs.evaluations import Evaluation


@dataclass(frozen=True)
class TrainResult:
    """A run has ended in this way.

    folder: of the run. steps: done in all, those of earlier launches included.
    before, after: the evaluation before training and the last one, None where no prompts were held out, or where the
    run's files do not hold it any more; and on all processes but the main one.
    stopped_by: the signal that ended it early, after the checkpoint of the last step was written; else None.
    """

    folder: Path
    steps: int
    before: Evaluation | None = None
    after: Evaluation | None = None
    stopped_by: signal.Signals | None = None

    @property
    def checkpoint(self) -> Path:
        """Return the folder of the student, or of its adapter, after the last step."""
        return self.folder / f"step-{self.steps}"

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as shells and schedulers expect; 0 when the run ended by itself."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by
