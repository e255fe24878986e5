"""A run's folder while somebody writes into it."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from local_distill.errors import UserError
from local_distill.report.following import FollowedRun
from local_distill.report.progress import progress_of
from local_distill.report.reading import read_run
from local_distill.runs import jsonl
from local_distill.runs.claim import LOCK, Holder
from local_distill.runs.records import RunFiles
from tests.report.runs import make_evaluation, make_step, write_run


def claim(folder: Path, holder: Holder | None = None) -> None:
    (folder / LOCK).write_text(json.dumps(asdict(holder or Holder.here())))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_what_is_followed_is_what_a_report_reads(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    followed, read = FollowedRun(folder, "run").look(), read_run(folder)
    assert (followed.steps, followed.samples, followed.settings) == (read.steps, read.samples, read.settings)
    assert [str(each) for each in followed.evaluations] == [str(each) for each in read.evaluations]
    assert followed.starts == read.starts


def test_a_run_is_followed_from_before_it_begins(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = tmp_path / "run"
    followed = FollowedRun(folder, "run")
    assert not followed.look().has_begun
    assert progress_of(followed.look()).state == "not begun yet"
    folder.mkdir()
    claim(folder)
    assert "starting" in progress_of(followed.look()).state
    files = RunFiles(folder, None)
    (folder / "config.yaml").write_text("steps: 4\neval_every: 2\neval_prompts: 2\n")
    files.evaluation(make_evaluation(rng, 0, tokens=3))
    assert progress_of(followed.look()).state == "step 1 of 4"
    files.step(1, make_step(rng, 1))
    assert progress_of(followed.look()).state == "step 2 of 4, about 6 s of steps left"
    files.step(2, make_step(rng, 2))
    assert progress_of(followed.look()).doing == "evaluating after step 2 of 4"
    files.evaluation(make_evaluation(rng, 2, tokens=3))
    assert [each.step for each in followed.look().samples] == [0, 2]
    for step in (3, 4):
        files.step(step, make_step(rng, step))
    files.evaluation(make_evaluation(rng, 4, tokens=3))
    assert progress_of(followed.look()).state == "saving what it learned"
    (folder / LOCK).unlink()
    assert progress_of(followed.look()).state == "finished"


def test_a_run_that_was_killed_has_stopped_although_its_lock_is_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    (folder / "config.yaml").write_text("steps: 9\n")
    claim(folder)
    assert progress_of(read_run(folder)).state == "step 3 of 9, about 14 s of steps left"
    claim(folder, Holder(Holder.here().host, os.getpid(), started=1.0))
    assert progress_of(read_run(folder)).state == "stopped after step 2 of 9"
    (folder / LOCK).write_text("{")
    assert not read_run(folder).goes_on


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    followed = FollowedRun(folder, "run")
    before = followed.look()
    append(folder / "metrics.jsonl", '{"step": 3, "lo')
    assert followed.look() is before
    append(folder / "metrics.jsonl", 'ss": 0.5}\n')
    assert followed.look().steps[-1] == {"step": 3, "loss": 0.5}
    assert followed.look().problem == ""


def test_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", steps=50)
    parsed = []
    parse = jsonl._record
    monkeypatch.setattr(jsonl, "_record", lambda line: parsed.append(line) or parse(line))
    followed = FollowedRun(folder, "run")
    before = followed.look()
    parsed.clear()
    assert followed.look() is before
    append(folder / "metrics.jsonl", '{"step": 51, "loss": 0.5}\n')
    after = followed.look()
    assert parsed == ['{"step": 51, "loss": 0.5}']
    assert len(after.steps) == 51
    assert all(one is other for one, other in zip(before.samples, after.samples, strict=True))


def test_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=4)
    followed = FollowedRun(folder, "run")
    assert len(followed.look().steps) == 4
    append(folder / "metrics.jsonl", '{"step": 5, "lo')
    files = RunFiles(folder, keep_through=2)
    assert [each["step"] for each in followed.look().steps] == [1, 2]
    assert [each.step for each in followed.look().samples] == [0, 2]
    files.step(3, {"loss": 9.0})
    assert followed.look().steps[-1] == {"step": 3, "loss": 9.0}


def test_a_file_that_was_written_over_in_place_is_read_anew(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=4)
    followed = FollowedRun(folder, "run")
    followed.look()
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 7.0}\n' + " " * path.stat().st_size + "\n")
    assert [each["loss"] for each in followed.look().steps] == [7.0]


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    followed = FollowedRun(folder, "run")
    followed.look()
    append(folder / "metrics.jsonl", 'no record\n{"step": 3, "loss": 1.0}\n')
    (folder / "config.yaml").write_text("a: [")
    run = followed.look()
    assert run.steps[-1]["step"] == 3
    assert "metrics.jsonl: a line is no JSON record" in run.problem
    assert "config.yaml: cannot be read" in run.problem
    assert run.settings["teacher_model"] == "large", "as it was"
    shutil.rmtree(folder)
    assert not followed.look().has_begun


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "file").write_text("")
    for path, said in ((tmp_path / "runs", "no metrics.jsonl"), (tmp_path / "file", "a file")):
        with pytest.raises(UserError, match=said):
            FollowedRun(path, "run")
