"""Where a run's numbers go: the terminal, the JSONL files and accelerate's experiment trackers.

The files are the record: when they cannot be written the run stops. A tracker is a convenience: when
it fails, it is left behind with one warning.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from local_distill.errors import UserError
from local_distill.monitor.silent import Fact, Terminal
from local_distill.monitor.trackers.sinks import LOG_DIR, SINKS, Sink, Start, TrackerSink, first_line
from local_distill.passwords import without_passwords
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE
from local_distill.runs.records import RunFiles, is_step, read_evaluations, read_metrics

DEFAULT_PROJECT = "local-distill"


class RunLog:
    """Everything that is told about a run goes through here, to the terminal and every sink.

    As a context manager: the terminal's bar is shown from entry to exit, and exit closes everything.
    """

    def __init__(self, terminal: Terminal, sinks: Sequence[Sink] = ()) -> None:
        self._terminal = terminal
        self._sinks: tuple[Sink, ...] = (terminal, *sinks)

    def say(self, text: str) -> None:
        """Tell people, and nobody else."""
        self._terminal.say(text)

    def facts(self, facts: Sequence[Fact]) -> None:
        """Tell people what is about to happen."""
        self._terminal.facts(facts)

    def warn(self, text: str) -> None:
        """Tell people what asks for something to be done."""
        self._terminal.warn(text)

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell people what begins, or goes on, now; see ``Terminal.doing``."""
        self._terminal.doing(what, done, total)

    def notice(self, text: str) -> None:
        """Tell people at once, from a signal's handler; see ``Terminal.notice``."""
        self._terminal.notice(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell what update number ``step`` (from 1) measured."""
        for sink in self._sinks:
            sink.step(step, metrics)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Tell what held-out prompts say after ``evaluation.step`` updates; people see one of them, always the same."""
        for sink in self._sinks:
            sink.evaluation(evaluation)
        for completion in evaluation.completions[:1]:
            self._terminal.completion(completion)

    def close(self) -> None:
        """Close the terminal first, so that trackers say goodbye below the bar; then all the rest."""
        with ExitStack() as closing:
            for sink in reversed(self._sinks):
                closing.callback(sink.close)

    def __enter__(self) -> RunLog:
        self._terminal.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_run_log(
    accelerator: Accelerator,
    terminal: Terminal,
    output_dir: Path,
    config: Mapping[str, Any],
    *,
    resumed_step: int | None = None,
    wandb_project: str | None = None,
    wandb_name: str | None = None,
    wandb_mode: str = "online",
    watchers: Sequence[Sink] = (),
) -> RunLog:
    """Return the log of a run; on processes other than the main one, a log that goes nowhere.

    accelerator: built with ``log_with=tracker_names(…) or None`` and any ``project_dir``, without which it refuses
        tensorboard; the trackers' files go into ``output_dir``. terminal: from open_terminal.
    output_dir: the run's folder, which exists. config: the settings that trackers show.
    resumed_step: updates done when a resumed run starts again; None for a new run. watchers: who looks on, when all
        is written down.

    Raises UserError when a tracker does not start, or when the files of another run are in the way.
    """
    if not accelerator.is_main_process:
        return RunLog(terminal)
    files = RunFiles(output_dir, resumed_step)
    if resumed_step:
        steps = [record for record in read_metrics(output_dir / METRICS_FILE) if is_step(record)]
        terminal.earlier(steps, read_evaluations(output_dir / COMPLETIONS_FILE))
    names = [str(tracker) for tracker in accelerator.log_with]
    start = Start(output_dir, wandb_name, wandb_mode, resumed_step)
    accelerator.project_configuration.logging_dir = str(output_dir / LOG_DIR)
    try:
        with _keeping_signal_handlers():
            settings = {name: SINKS[name].settings(start) for name in names if name in SINKS}
            accelerator.init_trackers(wandb_project or DEFAULT_PROJECT, _plain(config), settings)
    except Exception as error:
        raise UserError(f"--trackers: {', '.join(names)}: could not be started: {first_line(error)}") from error
    # They are ours from here on: accelerator.end_training must not run into one that has failed.
    trackers, accelerator.trackers = accelerator.trackers, []
    sinks = [SINKS.get(tracker.name, TrackerSink)(tracker, terminal.warn) for tracker in trackers]
    return RunLog(terminal, [files, *sinks, *watchers])


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Keep Ctrl-C ours: SwanLab's start takes it, and would leave the run at the first one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # None was not set from Python, and cannot be set again
                    signal.signal(number, handler)


def _plain(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the config in types that every tracker takes: None, tuples and paths become text; no passwords."""
    return {
        name: value if isinstance(value, (int, float)) else without_passwords(str(value))
        for name, value in config.items()
    }
