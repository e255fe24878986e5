"""TensorBoard: completions as text."""

from __future__ import annotations

from typing import Any

from local_distill.monitor.trackers.readable import markdown
from local_distill.monitor.trackers.sinks import COMPLETIONS, Start, TrackerSink
from local_distill.runs.evaluations import Evaluation


class TensorBoardSink(TrackerSink):
    """See TrackerSink."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """What a crashed run logged after its last checkpoint is about to be logged again."""
        return {} if start.resumed_step is None else {"purge_step": start.resumed_step + 1}

    def _log_completions(self, evaluation: Evaluation) -> None:
        self._tracker.log({COMPLETIONS: markdown(evaluation)}, step=evaluation.step)
