"""Where a run's numbers go: what all of accelerate's trackers do alike, and what four do in ways of their own.

Each library is imported when its run starts, for it need not be installed.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from local_distill.errors import with_type
from local_distill.monitor.trackers.readable import COLUMNS, coloured, markdown, page, rows
from local_distill.passwords import without_passwords
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.records import evaluation_metrics

LOG_DIR = "logs"  # in the run's folder, for trackers that write files
COMPLETIONS = "eval/completions"
"""The table of completions that people read."""
PER_TOKEN = "eval/per_token"
"""The same completions in colours, one token at a time, where a tracker shows HTML outside of tables."""
TRACKIO_FOLDER = "TRACKIO_DIR"
WANDB_ID_FILE = "wandb_id"
SWANLAB_ID_FILE = "swanlab_id"


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


class WandbSink(TrackerSink):
    """Weights & Biases shows a table of completions with a cell in colours; a resumed run goes on under its own id."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """Return the arguments of wandb.init; a resumed run goes on under its id, so that its curves do too."""
        settings: dict[str, Any] = {"name": start.name, "mode": start.wandb_mode, "dir": str(start.output_dir)}
        if sys.stdout.isatty():  # or wandb's copy of the output would hold every frame of the progress bar
            settings["settings"] = {"console": "off"}
        if start.wandb_mode == "online":  # wandb cannot look up, offline, what the run has logged so far
            settings |= {"id": run_id(start, WANDB_ID_FILE), "resume": "allow"}
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
        """Finish; the run counts as failed when an exception is on its way out."""
        self._tracker.tracker.finish(exit_code=0 if sys.exc_info()[0] is None else 1)


def run_id(start: Start, file: str) -> str:
    """Return the id that a service knows the run by, made for a new run and kept in its folder."""
    path = start.output_dir / file
    if not (start.resumed and path.exists()):
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


class TensorBoardSink(TrackerSink):
    """TensorBoard shows completions as text."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """Drop what a crashed run logged after its last checkpoint: it is about to be logged again."""
        return {} if start.resumed_step is None else {"purge_step": start.resumed_step + 1}

    def _log_completions(self, evaluation: Evaluation) -> None:
        self._tracker.log({COMPLETIONS: markdown(evaluation)}, step=evaluation.step)


class TrackioSink(TrackerSink):
    """Trackio shows a table of completions, and a page of them in colours; its database is in the run's folder."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """Return the arguments of trackio.init.

        Trackio takes its folder from the environment alone, when it is imported: the user's, else one in the run's.
        """
        os.environ.setdefault(TRACKIO_FOLDER, str(start.output_dir.resolve() / LOG_DIR / "trackio"))
        return {"name": start.name_or_folder, "resume": "allow" if start.resumed else "never", "embed": False}

    def _log_completions(self, evaluation: Evaluation) -> None:
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=rows(evaluation))
        self._tracker.log({COMPLETIONS: table, PER_TOKEN: trackio.Html(page(evaluation))}, step=evaluation.step)

    def _finish(self) -> None:
        """Finish with Trackio's own word, which also forgets the run: it would be finished again at exit."""
        import trackio

        trackio.finish()


class SwanLabSink(TrackerSink):
    """SwanLab shows a table of completions, and a page of them in colours; its files are in the run's folder."""

    @staticmethod
    def settings(start: Start) -> dict[str, Any]:
        """Return the arguments of swanlab.init; whether it sends anything is SWANLAB_MODE's to say."""
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
            **({"id": run_id(start, SWANLAB_ID_FILE), "resume": "allow"} if online else {}),
        }

    def _log_completions(self, evaluation: Evaluation) -> None:
        import swanlab

        table = swanlab.echarts.Table().add(list(COLUMNS), rows(evaluation))
        self._tracker.log({COMPLETIONS: table, PER_TOKEN: swanlab.Html(page(evaluation))}, step=evaluation.step)

    def _finish(self) -> None:
        """Finish; the run counts as crashed when an exception is on its way out."""
        error = sys.exc_info()[1]
        if error is None:
            self._tracker.finish()
        else:
            self._tracker.tracker.finish(state="crashed", error=type(error).__name__)


SINKS: dict[str, type[TrackerSink]] = {
    "wandb": WandbSink,
    "tensorboard": TensorBoardSink,
    "trackio": TrackioSink,
    "swanlab": SwanLabSink,
}
"""Trackers with a way of their own, by accelerate's names; the others get the numbers alone."""
