"""Weights & Biases: a table of completions with a cell in colours; a resumed run goes on under its own id."""

from __future__ import annotations

import secrets
import sys
from typing import Any

from local_distill.monitor.trackers.readable import COLUMNS, coloured, rows
from local_distill.monitor.trackers.sinks import COMPLETIONS, Start, TrackerSink
from local_distill.runs.evaluations import Evaluation

ID_FILE = "wandb_id"


class WandbSink(TrackerSink):
    """See TrackerSink."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """The arguments of wandb.init; a resumed run goes on under the id it had, so that its curves do too."""
        settings: dict[str, Any] = {"name": start.name, "mode": start.wandb_mode, "dir": str(start.output_dir)}
        if sys.stdout.isatty():  # or wandb's copy of the output would hold every frame of the progress bar
            settings["settings"] = {"console": "off"}
        if start.wandb_mode == "online":  # wandb cannot look up, offline, what the run has logged so far
            settings |= {"id": run_id(start, ID_FILE), "resume": "allow"}
        return settings

    def _log_completions(self, evaluation: Evaluation) -> None:
        import wandb

        cells = [wandb.Html(coloured(each), inject=False, data_is_not_path=True) for each in evaluation.completions]
        self._tracker.log_table(
            COMPLETIONS,
            columns=[*COLUMNS, "per_token"],
            data=[[*row, cell] for row, cell in zip(rows(evaluation), cells, strict=True)],
            step=evaluation.step,
        )

    def _finish(self) -> None:
        """The run counts as failed when an exception is on its way out."""
        self._tracker.tracker.finish(exit_code=0 if sys.exc_info()[0] is None else 1)


def run_id(start: Start, file: str) -> str:
    """The id that a service knows the run by, made for a new run and kept in its folder."""
    path = start.output_dir / file
    if not (start.resumed and path.exists()):
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")
