"""The run's log with the trackers that people really use, and with one that fails."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from local_distill.errors import UserError
from local_distill.terminal import PlainTerminal, SilentTerminal
from local_distill.trackers import choosing
from local_distill.trackers.choosing import check_wandb, tracker_names
from local_distill.tracking import RunLog, open_run_log
from local_distill.types import Completion, Evaluation

CONFIG = {"steps": 3, "learning_rate": 1e-4, "use_lora": True, "dataset": None, "betas": (0.9, 0.95), "dir": Path("x")}
COMPLETION = Completion(
    prompt="Capital of France?", text="\x1b[31mParis \ud83d", tokens=3, finish="stop", reverse_kl=math.nan
)


def evaluation(step: int) -> Evaluation:
    return Evaluation(
        step=step, reverse_kl=1.5, standard_error=0.1, length=3.0, truncated=0.25, completions=(COMPLETION,)
    )


@pytest.fixture
def accelerator(tmp_path: Path) -> Iterator[Callable[..., Accelerator]]:
    """Builds an Accelerator that no other test sees the state of."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    def build(*log_with: Any) -> Accelerator:
        forget()
        return Accelerator(cpu=True, log_with=list(log_with) or None, project_dir=str(tmp_path / "nowhere"))

    yield build
    forget()


class Recorder(GeneralTracker):  # type: ignore[misc]
    """Keeps what it is given; raises from call number ``fails_at`` on."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []
        self.config: dict[str, Any] = {}
        self.finished = False
        self._fails_at = fails_at

    @property
    def tracker(self) -> Recorder:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.calls.append((step, values))
        if self._fails_at is not None and len(self.calls) >= self._fails_at:
            raise ConnectionError("the server [bold]is[/bold] gone\nand more")

    def finish(self) -> None:
        self.finished = True


def run(log: RunLog, first: int = 1, last: int = 3) -> None:
    with log:
        if first == 1:
            log.evaluation(evaluation(0))
        for step in range(first, last + 1):
            log.step(step, {"reverse_kl": 1 / step, "loss": math.nan, "seconds/sample": 1.5})
        log.evaluation(evaluation(last))


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


# --- choosing trackers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "trackers", "mode", "names"),
    [
        (None, None, "online", []),
        (None, "", "online", []),
        ("p", None, "online", ["wandb"]),
        ("p", None, "offline", ["wandb"]),
        ("p", None, "disabled", []),
        ("p", "wandb,tensorboard", "disabled", ["tensorboard"]),
        (None, "tensorboard", "online", ["tensorboard"]),
        (None, " Tensorboard , wandb,, tensorboard ", "online", ["tensorboard", "wandb"]),
        ("p", "tensorboard,wandb", "online", ["wandb", "tensorboard"]),
    ],
)
def test_tracker_names(project: str | None, trackers: str | None, mode: str, names: list[str]) -> None:
    assert tracker_names(project, trackers, mode) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tensorbord", r"^--trackers: tensorbord is not a tracker; did you mean tensorboard\?.*aim.*wandb$"),
        ("xyz", r"^--trackers: xyz is not a tracker; choose from aim, clearml, comet_ml, .*wandb$"),
        ("all", r"--trackers: all is not a tracker"),
    ],
)
def test_an_unknown_tracker(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tracker_names(None, given)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    assert tracker_names(None, "tensorboard") == ["tensorboard"]
    with pytest.raises(UserError, match=r"--trackers: the package comet-ml is not installed; pip install comet-ml"):
        tracker_names(None, "comet_ml")
    with pytest.raises(UserError, match=r"--wandb_project: the package wandb is not installed; pip install wandb"):
        tracker_names("p", None)
    with pytest.raises(UserError, match=r"--wandb_mode online: the package wandb is not installed"):
        check_wandb("online")
    assert tracker_names("p", None, "disabled") == []


# --- the log -------------------------------------------------------------------------------------


def test_every_sink_gets_the_same_names_and_only_finite_values(
    accelerator: Callable[..., Accelerator], tmp_path: Path
) -> None:
    recorder, stream = Recorder(), io.StringIO()
    run(open_run_log(accelerator(recorder), PlainTerminal(stream, 3), tmp_path, CONFIG))

    said = {
        "eval/reverse_kl": 1.5,
        "eval/reverse_kl_se": 0.1,
        "eval/completion_tokens": 3.0,
        "eval/truncated": 0.25,
    }
    assert recorder.calls[0] == (0, said)
    assert recorder.calls[1] == (1, {"reverse_kl": 1.0, "seconds/sample": 1.5})
    assert [step for step, _ in recorder.calls] == [0, 1, 2, 3, 3]
    assert recorder.finished
    assert recorder.config == CONFIG | {"dataset": "None", "betas": "(0.9, 0.95)", "dir": "x"}

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"step": 0, **said}
    assert lines[1] == {"step": 1, "reverse_kl": 1.0, "loss": None, "seconds/sample": 1.5}
    assert len(stream.getvalue().splitlines()) == 5


def test_a_tracker_that_raises_is_left_behind_with_one_warning(
    accelerator: Callable[..., Accelerator], tmp_path: Path
) -> None:
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
        "recorder has failed (ConnectionError: the server [bold]is[/bold] gone); "
        "the run goes on without it, and metrics.jsonl has every step"
    ]


def test_a_tracker_that_cannot_finish_does_not_hide_how_the_run_ended(
    accelerator: Callable[..., Accelerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    accelerator: Callable[..., Accelerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = accelerator("tensorboard")
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"--trackers: tensorboard: could not be started: ZeroDivisionError"):
        open_run_log(built, SilentTerminal(), tmp_path, CONFIG)


def test_other_processes_log_nothing(
    accelerator: Callable[..., Accelerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    built = accelerator(recorder)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    run(open_run_log(built, SilentTerminal(), tmp_path, CONFIG))
    assert recorder.calls == []
    assert list(tmp_path.iterdir()) == []


def test_people_see_the_first_completion_of_an_evaluation() -> None:
    seen: list[str] = []

    class Watcher(SilentTerminal):
        def completion(self, completion: Completion) -> None:
            seen.append(completion.text)

    RunLog(Watcher()).evaluation(evaluation(0))
    assert seen == [COMPLETION.text]


def test_a_resumed_run_continues_its_files(accelerator: Callable[..., Accelerator], tmp_path: Path) -> None:
    run(open_run_log(accelerator(), SilentTerminal(), tmp_path, CONFIG), last=5)
    run(open_run_log(accelerator(), SilentTerminal(), tmp_path, CONFIG, resumed_step=3), first=4, last=6)
    assert steps_in(tmp_path / "metrics.jsonl") == [0, 1, 2, 3, 4, 5, 6, 6]
    assert steps_in(tmp_path / "completions.jsonl") == [0, 6]


# --- real trackers -------------------------------------------------------------------------------


def test_tensorboard(accelerator: Callable[..., Accelerator], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(open_run_log(accelerator("tensorboard"), SilentTerminal(), tmp_path, CONFIG), last=5)
    log = open_run_log(accelerator("tensorboard"), SilentTerminal(), tmp_path, CONFIG, resumed_step=3)
    run(log, first=4, last=6)

    events = EventAccumulator(str(tmp_path / "logs" / "local-distill")).Reload()
    curve = {event.step: event.value for event in events.Scalars("reverse_kl")}
    assert curve == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert len(events.Scalars("reverse_kl")) == 6  # steps 4 and 5 of the first part are gone
    assert [event.step for event in events.Scalars("eval/reverse_kl")] == [0, 6]
    assert "loss" not in events.Tags()["scalars"]  # it was never finite
    (settings, *_) = (tmp_path / "logs" / "local-distill").glob("*/hparams.yml")
    assert "learning_rate: 0.0001" in settings.read_text()


def wandb_records(folder: Path) -> list[Any]:
    """The records of the one offline run in ``folder``, whose file is LevelDB's log format after seven bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes a little later than it answers
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, parts, records = path.read_bytes(), 7, b"", []
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left  # a header does not straddle blocks
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_offline_resumed_and_failing(accelerator: Callable[..., Accelerator], tmp_path: Path) -> None:
    log = open_run_log(
        accelerator("wandb"),
        SilentTerminal(),
        tmp_path,
        CONFIG,
        resumed_step=40,
        wandb_project="project",
        wandb_name="name",
        wandb_mode="offline",
    )

    def crash() -> None:
        with log:
            log.step(41, {"reverse_kl": 1.25, "loss": math.nan, "seconds/sample": 1.5})
            log.evaluation(evaluation(41))
            log.step(42, {"reverse_kl": 1.125})
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        crash()

    records = wandb_records(tmp_path)
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.project, started.display_name) == ("project", "name")
    config = {item.key: json.loads(item.value_json) for record in records for item in record.config.update}
    assert config == CONFIG | {"dataset": "None", "betas": "(0.9, 0.95)", "dir": "x"}

    history = {
        record.history.step.num: {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        for record in records
        if record.WhichOneof("record_type") == "history"
    }
    assert sorted(history) == [41, 42]
    shown = {name: value for name, value in history[41].items() if not name.startswith(("_", "eval/completions/"))}
    assert shown == {
        "reverse_kl": 1.25,
        "seconds/sample": 1.5,
        "eval/reverse_kl": 1.5,
        "eval/reverse_kl_se": 0.1,
        "eval/completion_tokens": 3.0,
        "eval/truncated": 0.25,
    }
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/eval/completions_*.table.json")
    ((prompt, text, *_),) = json.loads(table.read_text(encoding="utf-8"))["data"]
    assert (prompt, text) == ("Capital of France?", "Paris \ufffd")

    (end,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert end.exit_code == 1  # a run that crashed is not "finished"


def test_a_resumed_run_keeps_its_wandb_id(
    accelerator: Callable[..., Accelerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *args: given.append(args[3]["wandb"]))
    (other := tmp_path / "other").mkdir()
    for folder, resumed_step in ((tmp_path, None), (tmp_path, 1), (other, 1)):
        open_run_log(accelerator("wandb"), SilentTerminal(), folder, CONFIG, resumed_step=resumed_step).close()
    first, resumed, another = given
    assert first == {"name": None, "mode": "online", "dir": str(tmp_path), "id": first["id"], "resume": "allow"}
    assert resumed == first
    assert another["id"] != first["id"]


def test_no_file_of_wandbs_without_wandb(accelerator: Callable[..., Accelerator], tmp_path: Path) -> None:
    open_run_log(accelerator(), SilentTerminal(), tmp_path, CONFIG).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completions.jsonl", "metrics.jsonl"]
