"""Trackio: a table of completions, and a page of them in colours; its database is in the run's folder."""

from __future__ import annotations

import os
from typing import Any

from local_distill.monitor.trackers.readable import COLUMNS, page, rows
from local_distill.monitor.trackers.sinks import COMPLETIONS, LOG_DIR, PER_TOKEN, Start, TrackerSink
from local_distill.runs.evaluations import Evaluation

FOLDER_VARIABLE = "TRACKIO_DIR"


class TrackioSink(TrackerSink):
    """See TrackerSink."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """The arguments of trackio.init.

        Trackio takes its folder from the environment alone, when it is imported: the user's, else one in the run's.
        """
        os.environ.setdefault(FOLDER_VARIABLE, str(start.output_dir.resolve() / LOG_DIR / "trackio"))
        return {"name": start.name_or_folder, "resume": "allow" if start.resumed else "never", "embed": False}

    def _log_completions(self, evaluation: Evaluation) -> None:
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=rows(evaluation))
        self._tracker.log({COMPLETIONS: table, PER_TOKEN: trackio.Html(page(evaluation))}, step=evaluation.step)

    def _finish(self) -> None:
        """Trackio's own word for it also forgets the run, which would be finished again at exit."""
        import trackio

        trackio.finish()
