"""Where a run's numbers go: the terminal, the JSONL files and accelerate's experiment trackers.

The files are the record: when they cannot be written the run stops. A tracker is a convenience: when
it fails, it is left behind with one warning.
"""

from __future__ import annotations

import difflib
import math
import netrc
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from local_distill.engine_gap import GapWatch
from local_distill.errors import UserError
from local_distill.records import RunFiles, evaluation_metrics
from local_distill.terminal import Terminal
from local_distill.types import Evaluation
from local_distill.wording import clean

DEFAULT_PROJECT = "local-distill"
LOG_DIR = "logs"  # in the run's folder, for trackers that write files: tensorboard, aim
WANDB_ID_FILE = "wandb_id"

_KNOWN = tuple(name for name in LoggerType.list() if name != LoggerType.ALL.value)
_PACKAGES = {"comet_ml": "comet-ml"}  # where pip calls it something else
_WANDB_CLOUD = "api.wandb.ai"  # netrc files name it even after the service moved to another host


def tracker_names(wandb_project: str | None, trackers: str | None, wandb_mode: str = "online") -> list[str]:
    """The trackers to hand to ``Accelerator(log_with=…)``, each of them installed.

    wandb_project, trackers, wandb_mode: as given on the command line; a project means wandb, and
    disabled means no wandb, whoever asked for it.

    Raises UserError for a tracker that accelerate does not know, or whose package is missing.
    """
    listed = [name.strip().lower() for name in (trackers or "").split(",")]
    wanted = dict.fromkeys(["wandb" if wandb_project else "", *listed])  # each once, in order
    names = [name for name in wanted if name and not (name == "wandb" and wandb_mode == "disabled")]
    for name in names:
        _require_known(name)
        _require_installed(name, "--wandb_project" if name == "wandb" and wandb_project else "--trackers")
    return names


def check_wandb(mode: str) -> None:
    """See to it now that wandb can log in later, without asking on the terminal or the network.

    Raises UserError when ``mode`` is online and there is no key to log in with.
    """
    if mode != "online":
        return
    _require_installed("wandb", "--wandb_mode online")
    if not _has_wandb_key():
        raise UserError(
            "--wandb_mode online: no Weights & Biases key found; run `wandb login`, set WANDB_API_KEY, "
            "or use --wandb_mode offline"
        )


def _require_known(name: str) -> None:
    if name in _KNOWN:
        return
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--trackers: {name} is not a tracker; {hint}choose from {', '.join(sorted(_KNOWN))}")


def _require_installed(name: str, flag: str) -> None:
    if LoggerType(name) not in get_available_trackers():
        package = _PACKAGES.get(name, name)
        raise UserError(f"{flag}: the package {package} is not installed; pip install {package}")


def _has_wandb_key() -> bool:
    """Whether wandb finds a key where it looks for one: the environment, its settings files, netrc.

    ``wandb.login(prompt=False)`` answers the same question, but asks the server for the user's name first.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    settings = wandb.setup().settings
    hosts = (urlsplit(settings.base_url).netloc, _WANDB_CLOUD)
    return bool(settings.api_key) or any(_netrc_has(host) for host in hosts)


def _netrc_has(host: str) -> bool:
    named = os.environ.get("NETRC")
    places = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    path = next((place.expanduser() for place in places if place.expanduser().exists()), None)
    if path is None:
        return False
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError) as error:
        raise UserError(f"{path}: cannot be read for a Weights & Biases key: {error}") from error
    return bool(entry and entry[2])


class Sink(Protocol):
    """A place that takes what a run measures. The terminal is one."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """What update number ``step`` (from 1) measured."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """What the held-out prompts say."""

    def close(self) -> None:
        """Nothing comes after this."""


class TrackerSink:
    """One of accelerate's trackers, which cannot stop the run: the first time it raises is its last.

    tracker: an accelerate GeneralTracker. warn: takes the one message about its failure.
    NaN and infinities are left out: a gap in a curve, as null is in metrics.jsonl.
    """

    def __init__(self, tracker: Any, warn: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._warn = warn
        self._working = True

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._try(lambda: self._tracker.log(finite, step=step))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the evaluation's numbers."""
        self.step(evaluation.step, evaluation_metrics(evaluation))

    def close(self) -> None:
        """Let the tracker finish."""
        self._try(self._tracker.finish)

    def _try(self, action: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:  # whatever it is: hours of training matter more than a curve
            self._working = False
            self._warn(
                f"{self._tracker.name} has failed ({_first_line(error)}); "
                "the run goes on without it, and metrics.jsonl has every step"
            )


class WandbSink(TrackerSink):
    """Weights & Biases, which also gets each evaluation's completions, as a table."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the numbers and the completions."""
        super().evaluation(evaluation)
        columns = ["prompt", "completion", "tokens", "finish", "reverse_kl"]
        rows = [[clean(c.prompt), clean(c.text), c.tokens, c.finish, c.reverse_kl] for c in evaluation.completions]
        self._try(lambda: self._tracker.log_table("eval/completions", columns=columns, data=rows, step=evaluation.step))

    def close(self) -> None:
        """Finish the run; it counts as failed when an exception is on its way out."""
        exit_code = 0 if sys.exc_info()[0] is None else 1
        self._try(lambda: self._tracker.tracker.finish(exit_code=exit_code))


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

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """What update number ``step`` (from 1) measured."""
        for sink in self._sinks:
            sink.step(step, metrics)

    def evaluation(self, evaluation: Evaluation) -> None:
        """What the held-out prompts say after ``evaluation.step`` updates; people see one of them, always the same."""
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
) -> RunLog:
    """The log of a run; on processes other than the main one, a log that goes nowhere.

    accelerator: built with ``log_with=tracker_names(…) or None`` and any ``project_dir``, without which it refuses
        tensorboard; the trackers' files go into ``output_dir``. terminal: from open_terminal.
    output_dir: the run's folder, which exists. config: the settings that trackers show.
    resumed_step: updates done when a resumed run starts again; None for a new run.

    Raises UserError when a tracker does not start, or when the files of another run are in the way.
    """
    if not accelerator.is_main_process:
        return RunLog(terminal)
    files = RunFiles(output_dir, resumed_step)
    names = [str(tracker) for tracker in accelerator.log_with]
    settings: dict[str, dict[str, Any]] = {}
    if "wandb" in names:
        settings["wandb"] = _wandb_settings(output_dir, wandb_name, wandb_mode, resumed=resumed_step is not None)
    if resumed_step is not None:  # what a crashed run logged after its last checkpoint is about to be logged again
        settings["tensorboard"] = {"purge_step": resumed_step + 1}
    accelerator.project_configuration.logging_dir = str(output_dir / LOG_DIR)
    try:
        accelerator.init_trackers(wandb_project or DEFAULT_PROJECT, _plain(config), settings)
    except Exception as error:
        raise UserError(f"--trackers: {', '.join(names)}: could not be started: {_first_line(error)}") from error
    # They are ours from here on: accelerator.end_training must not run into one that has failed.
    trackers, accelerator.trackers = accelerator.trackers, []
    kinds = {"wandb": WandbSink}
    sinks = [kinds.get(tracker.name, TrackerSink)(tracker, terminal.say) for tracker in trackers]
    return RunLog(terminal, [files, *sinks, GapWatch(terminal.say)])


def _wandb_settings(output_dir: Path, name: str | None, mode: str, *, resumed: bool) -> dict[str, Any]:
    """The arguments of wandb.init; a resumed run goes on under the id it had, so that its curves do too."""
    settings: dict[str, Any] = {"name": name, "mode": mode, "dir": str(output_dir)}
    if sys.stdout.isatty():  # or wandb's copy of the output would hold every frame of the progress bar
        settings["settings"] = {"console": "off"}
    if mode == "online":  # wandb cannot look up, offline, what the run has logged so far
        id_file = output_dir / WANDB_ID_FILE
        if not (resumed and id_file.exists()):
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        settings |= {"id": id_file.read_text(encoding="utf-8"), "resume": "allow"}
    return settings


def _plain(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The config in the types that every tracker takes: None, tuples and paths become text."""
    return {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in config.items()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
