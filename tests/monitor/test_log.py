"""The run's log, with a tracker that keeps what it is told, and one that fails."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from local_distill.errors import UserError
from local_distill.monitor.log import RunLog, open_run_log
from local_distill.monitor.terminal import PlainTerminal, Terminal
from local_distill.runs.evaluations import Completion
from tests.tracked import COMPLETION, CONFIG, NUMBERS, accelerator, evaluation, run, steps_in


class Recorder(GeneralTracker):  # type: ignore[misc]
    """Keeps what it is given; raises from call number ``fails_at`` on."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self, fails_at: int | None = None, says: str = "the server [bold]is[/bold] gone\nand more") -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []
        self.config: dict[str, Any] = {}
        self.finished = False
        self._fails_at = fails_at
        self._says = says

    @property
    def tracker(self) -> Recorder:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.calls.append((step, values))
        if self._fails_at is not None and len(self.calls) >= self._fails_at:
            raise ConnectionError(self._says)

    def finish(self) -> None:
        self.finished = True


def test_every_sink_gets_the_same_names_and_only_finite_values(tmp_path: Path) -> None:
    recorder, stream = Recorder(), io.StringIO()
    run(open_run_log(accelerator(recorder), PlainTerminal(stream, 3), tmp_path, CONFIG))

    assert recorder.calls[0] == (0, NUMBERS)
    assert recorder.calls[1] == (1, {"reverse_kl": 1.0, "seconds/sample": 1.5})
    assert [step for step, _ in recorder.calls] == [0, 1, 2, 3, 3]
    assert recorder.finished
    assert recorder.config == CONFIG | {"dataset": "None", "betas": "(0.9, 0.95)", "dir": "x"}

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"step": 0, **NUMBERS}
    assert lines[1] == {"step": 1, "reverse_kl": 1.0, "loss": None, "seconds/sample": 1.5}
    assert len(stream.getvalue().splitlines()) == 5


def test_a_tracker_that_raises_is_left_behind_with_one_warning(tmp_path: Path) -> None:
    failing, healthy, stream = Recorder(fails_at=2), Recorder(), io.StringIO()
    built = accelerator(failing, healthy)
    run(open_run_log(built, PlainTerminal(stream, 3), tmp_path, CONFIG))
    built.end_training()

    assert len(failing.calls) == 2
    assert not failing.finished
    assert [step for step, _ in healthy.calls] == [0, 1, 2, 3, 3]
    assert steps_in(tmp_path / "metrics.jsonl") == [0, 1, 2, 3, 3]
    warnings = [line for line in stream.getvalue().splitlines() if "failed" in line]
    assert warnings == [
        "warning: recorder has failed (ConnectionError: the server [bold]is[/bold] gone); "
        "the run goes on without it, and metrics.jsonl has every step"
    ]


def test_a_tracker_that_cannot_finish_does_not_hide_how_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, stream = Recorder(), Recorder(), io.StringIO()
    monkeypatch.setattr(first, "finish", lambda: 1 / 0)
    built = accelerator(first, second)
    with open_run_log(built, PlainTerminal(stream, 3), tmp_path, CONFIG) as log:
        log.step(1, {"reverse_kl": 1.0})
    built.end_training()
    assert second.finished
    assert "recorder has failed (ZeroDivisionError: division by zero)" in stream.getvalue()


def test_a_tracker_that_does_not_start_is_a_mistake_of_the_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = accelerator("tensorboard")
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"--trackers: tensorboard: could not be started: ZeroDivisionError"):
        open_run_log(built, Terminal(), tmp_path, CONFIG)


def test_a_tracker_that_takes_ctrl_c_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SwanLab does: it would leave the run at the first Ctrl-C, which asks for a checkpoint."""
    ours = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Recorder, "start", lambda _: signal.signal(signal.SIGINT, signal.SIG_IGN), raising=False)
    try:
        open_run_log(accelerator(Recorder()), Terminal(), tmp_path, CONFIG).close()
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, ours)


def test_trackers_are_shown_no_password(tmp_path: Path) -> None:
    recorder = Recorder(fails_at=1, says="http://me:secret@host/ is gone")
    config, stream = {"teacher_url": "http://me:secret@host:8000,http://host2/?api_key=secret"}, io.StringIO()
    run(open_run_log(accelerator(recorder), PlainTerminal(stream, 3), tmp_path, config))
    assert recorder.config == {"teacher_url": "http://***@host:8000,http://host2/?api_key=***"}
    assert "http://***@host/ is gone" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_other_processes_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    built = accelerator(recorder)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    run(open_run_log(built, Terminal(), tmp_path, CONFIG))
    assert recorder.calls == []
    assert list(tmp_path.iterdir()) == []


def test_people_see_the_first_completion_of_an_evaluation() -> None:
    seen: list[str] = []

    class Watcher(Terminal):
        def completion(self, completion: Completion) -> None:
            seen.append(completion.text)

    RunLog(Watcher()).evaluation(evaluation(0))
    assert seen == [COMPLETION.text]


def test_a_resumed_run_continues_its_files(tmp_path: Path) -> None:
    run(open_run_log(accelerator(), Terminal(), tmp_path, CONFIG), last=5)
    run(open_run_log(accelerator(), Terminal(), tmp_path, CONFIG, resumed_step=3), first=4, last=6)
    assert steps_in(tmp_path / "metrics.jsonl") == [0, 1, 2, 3, 4, 5, 6, 6]
    assert steps_in(tmp_path / "completions.jsonl") == [0, 6]


def test_no_file_of_a_tracker_without_one(tmp_path: Path) -> None:
    open_run_log(accelerator(), Terminal(), tmp_path, CONFIG).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completions.jsonl", "metrics.jsonl"]
