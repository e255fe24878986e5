"""Trackio without a network, its database read back by Trackio."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_distill.monitor.log import open_run_log
from local_distill.monitor.terminal import Terminal
from local_distill.monitor.trackers.readable import COLUMNS, page, rows
from tests.tracked import CONFIG, NUMBERS, accelerator, evaluation, run


@pytest.fixture(autouse=True)
def _fresh_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It decides where its files are when it is imported; and nobody is logged in."""
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _forget()
    yield
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]


def logged(run_name: str) -> dict[int, dict[str, Any]]:
    """What the database says of each step."""
    from trackio.sqlite_storage import SQLiteStorage

    steps: dict[int, dict[str, Any]] = {}
    for record in SQLiteStorage.get_logs("project", run_name):
        steps.setdefault(record["step"], {}).update(record)
    return {step: {k: v for k, v in record.items() if k not in ("step", "timestamp")} for step, record in steps.items()}


def test_a_run_and_its_continuation_are_in_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run-7"
    folder.mkdir()
    run(open_run_log(accelerator("trackio"), Terminal(), folder, CONFIG, wandb_project="project"), last=5)
    log = open_run_log(accelerator("trackio"), Terminal(), folder, CONFIG, wandb_project="project", resumed_step=5)
    run(log, first=6, last=6)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-7"]  # nothing at home
    steps = logged("run-7")
    assert sorted(steps) == list(range(7))
    assert steps[1] == {"reverse_kl": 1.0, "seconds/sample": 1.5}
    table, picture = steps[0].pop("eval/completions"), steps[0].pop("eval/per_token")
    assert steps[0] == NUMBERS
    assert table["_value"] == [dict(zip(COLUMNS, row, strict=True)) for row in rows(evaluation(0))]
    assert page(evaluation(0)) in (folder / "logs/trackio/media" / picture["file_path"]).read_text(encoding="utf-8")


def test_the_users_own_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all runs"))
    folder = tmp_path / "run"
    folder.mkdir()
    log = open_run_log(accelerator("trackio"), Terminal(), folder, CONFIG, wandb_project="project", wandb_name="first")
    run(log, last=1)
    assert (tmp_path / "all runs" / "project.db").exists()
    assert not (folder / "logs").exists()
    assert logged("first")[1]["reverse_kl"] == 1.0
