"""SwanLab: a table of completions, and a page of them in colours; its files are in the run's folder."""

from __future__ import annotations

import sys
from typing import Any

from local_distill.monitor.trackers.readable import COLUMNS, page, rows
from local_distill.monitor.trackers.sinks import COMPLETIONS, LOG_DIR, PER_TOKEN, Start, TrackerSink
from local_distill.monitor.trackers.wandb import run_id
from local_distill.runs.evaluations import Evaluation

ID_FILE = "swanlab_id"


class SwanLabSink(TrackerSink):
    """See TrackerSink."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """The arguments of swanlab.init; whether it sends anything is SWANLAB_MODE's to say, as SwanLab reads it."""
        import swanlab

        own: dict[str, Any] = {"interactive": False}  # a run does not wait for somebody to type a key
        if sys.stdout.isatty():  # or SwanLab's copy of the output would hold every frame of the progress bar
            own["terminal"] = {"proxy_type": "none"}
        settings = swanlab.Settings(**own)
        online = settings.mode == "online"  # SwanLab cannot look up, offline, what the run has logged so far
        return {
            "name": start.name_or_folder,
            "log_dir": str(start.output_dir / LOG_DIR / "swanlab"),
            "settings": settings,
            **({"id": run_id(start, ID_FILE), "resume": "allow"} if online else {}),
        }

    def _log_completions(self, evaluation: Evaluation) -> None:
        import swanlab

        table = swanlab.echarts.Table().add(list(COLUMNS), rows(evaluation))
        self._tracker.log({COMPLETIONS: table, PER_TOKEN: swanlab.Html(page(evaluation))}, step=evaluation.step)

    def _finish(self) -> None:
        """The run counts as crashed when an exception is on its way out."""
        error = sys.exc_info()[1]
        if error is None:
            self._tracker.finish()
        else:
            self._tracker.tracker.finish(state="crashed", error=type(error).__name__)
