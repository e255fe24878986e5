"""environment.json: what it says of this machine, and that it says nothing secret."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from local_distill.errors import UserError
from local_distill.passwords import command_line
from local_distill.runs.environment import write_environment


def starts(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))


def test_what_a_run_ran_on(tmp_path: Path) -> None:
    write_environment(tmp_path, processes=4, resumed=False)
    (start,) = starts(tmp_path)
    assert start["processes"] == 4
    assert start["python"] == platform.python_version()
    assert start["packages"]["torch"] == version("torch")
    assert start["packages"]["local-distill"] == version("local-distill")
    assert "vllm" not in start["packages"]  # not installed here
    assert start["cpu"]["threads"] == psutil.cpu_count()
    assert start["cpu"]["model"]
    assert start["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_graphics_processors_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA A800-SXM4-80GB", total_memory=79.25 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    write_environment(tmp_path, processes=2, resumed=False)
    assert starts(tmp_path)[0]["devices"] == [{"name": "NVIDIA A800-SXM4-80GB", "memory_gib": 79.2}] * 2


def test_each_start_is_kept_and_a_new_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for processes, resumed in ((1, False), (2, True), (3, True)):
        write_environment(tmp_path, processes, resumed)
    assert [start["processes"] for start in starts(tmp_path)] == [1, 2, 3]
    write_environment(tmp_path, 4, resumed=False)
    assert [start["processes"] for start in starts(tmp_path)] == [4]

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_environment(tmp_path, 5, resumed=True)
    assert [start["processes"] for start in starts(tmp_path)] == [4]


@pytest.mark.parametrize("damaged", ['[{"time": ', '{"time": 1}'])
def test_a_damaged_file_is_named_not_overwritten(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(damaged, encoding="utf-8")
    with pytest.raises(UserError, match=r"environment\.json: not a list of JSON records"):
        write_environment(tmp_path, 1, resumed=True)
    assert (tmp_path / "environment.json").read_text(encoding="utf-8") == damaged


def test_a_run_from_before_this_file_begins_it(tmp_path: Path) -> None:
    write_environment(tmp_path, 1, resumed=True)
    assert len(starts(tmp_path)) == 1


def test_the_command_is_one_that_a_shell_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line(["python", "a b", "--url=http://x:secret@h"]) == "python 'a b' '--url=http://***@h'"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "local_distill", "--teacher_url", "http://x:secret@h"])
    monkeypatch.setenv("WANDB_API_KEY", "a key of somebody's")
    text = write_environment(tmp_path, 1, resumed=False).read_text(encoding="utf-8")
    assert "local_distill" in text
    assert "secret" not in text
    assert "a key of somebody's" not in text
