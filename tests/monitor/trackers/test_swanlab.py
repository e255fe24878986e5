"""SwanLab offline, its file read back by SwanLab."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from local_distill.errors import UserError
from local_distill.monitor.log import open_run_log
from local_distill.monitor.terminal import Terminal
from local_distill.monitor.trackers.readable import COLUMNS, page, rows
from tests.tracked import CONFIG, NUMBERS, accelerator, evaluation, run


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def records(folder: Path) -> list[Any]:
    """The records of the one run in ``folder``."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.glob("logs/swanlab/run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(str(path))
    found = []
    while (record := reader.scan()) is not None:
        found.append(Record.FromString(record))
    return found


def test_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run-7"
    folder.mkdir()
    ours = signal.getsignal(signal.SIGINT)
    log = open_run_log(accelerator("swanlab"), Terminal(), folder, CONFIG, wandb_project="project")
    assert signal.getsignal(signal.SIGINT) is ours
    run(log)
    assert signal.getsignal(signal.SIGINT) is ours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-7"]  # nothing at home, nothing where it started

    found = records(folder)
    (started,) = (record.start for record in found if record.HasField("start"))
    assert (started.project, started.name) == ("project", "run-7")
    scalars = [record.scalar for record in found if record.HasField("scalar")]
    assert {(s.step, s.key): s.value.number for s in scalars} == pytest.approx(
        {(step, name): value for step in (0, 3) for name, value in NUMBERS.items()}
        | {(step, "reverse_kl"): 1 / step for step in (1, 2, 3)}
        | {(step, "seconds/sample"): 1.5 for step in (1, 2, 3)}
    )
    media = [record.media for record in found if record.HasField("media")]
    assert [(m.step, m.key) for m in media] == [
        (step, f"eval/{n}") for step in (0, 3) for n in ("completions", "per_token")
    ]
    table, picture = (next(folder.glob(f"logs/swanlab/run-*/media/*/{m.value.items[0].filename}")) for m in media[:2])
    shown = [dict(zip(COLUMNS, row, strict=True)) for row in rows(evaluation(0))]
    assert json.loads(table.read_text(encoding="utf-8"))["rowData"] == shown
    assert picture.read_text(encoding="utf-8") == page(evaluation(0))
    (config,) = folder.glob("logs/swanlab/run-*/files/config.yaml")
    assert "learning_rate" in config.read_text(encoding="utf-8")


def test_a_run_that_ends_in_an_error_has_crashed(tmp_path: Path) -> None:
    log = open_run_log(accelerator("swanlab"), Terminal(), tmp_path, CONFIG)

    def crash() -> None:
        with log:
            log.step(1, {"reverse_kl": 1.25})
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        crash()
    (end,) = (record.finish for record in records(tmp_path) if record.HasField("finish"))
    assert end.error == "RuntimeError"
    assert "RUN_STATE_CRASHED" in str(end)


def test_nobody_is_asked_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "online")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"--trackers: swanlab: could not be started: .*no API key") as raised:
        open_run_log(accelerator("swanlab"), Terminal(), tmp_path, CONFIG)
    assert "\n" not in str(raised.value)


def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "online")
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *args: given.append(args[3]["swanlab"]))
    for resumed_step in (None, 1):
        open_run_log(accelerator("swanlab"), Terminal(), tmp_path, CONFIG, resumed_step=resumed_step).close()
    first, resumed = given
    assert first["id"] == resumed["id"]
    assert first["resume"] == resumed["resume"] == "allow"
