"""A run's folder, however the run ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local_distill.errors import UserError
from local_distill.report.reading import read_run, read_runs
from tests.report.runs import records_of, write_run


def test_steps_and_evaluations_are_told_apart(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert [record["step"] for record in run.steps] == [1, 2, 3, 4]
    assert [record["step"] for record in run.evaluations] == [0, 2, 4]
    assert all("loss" in record for record in run.steps)
    assert all("eval/reverse_kl" in record for record in run.evaluations)
    assert [sample.step for sample in run.samples] == [0, 2, 4]
    assert run.has_tokens
    assert run.settings["teacher_model"] == "large"
    assert len(run.starts) == 2


def test_a_killed_run_reads_up_to_its_last_whole_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (folder / name).open("ab") as file:
            file.write('{"step": 5, "text": "天'.encode()[:-1])
    run = read_run(folder)
    assert run.steps[-1]["step"] == 4
    assert run.samples[-1].step == 4


def test_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 9.0}) + "\n")
    run = read_run(folder)
    assert [record["step"] for record in run.steps] == [1, 2, 3, 4]
    assert run.steps[2]["loss"] == 9.0


def test_an_older_run_has_no_tokens_and_no_environment(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = records_of(folder / "completions.jsonl")
    for line in lines:
        for completion in line["completions"]:
            del completion["pieces"]
    (folder / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "environment.json").unlink()
    (folder / "config.yaml").unlink()
    run = read_run(folder)
    assert not run.has_tokens
    assert run.starts == []
    assert run.settings == {}


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    empty = write_run(tmp_path / "empty")
    (empty / "metrics.jsonl").write_text("")
    broken = write_run(tmp_path / "broken")
    (broken / "config.yaml").write_text("a: [")
    listed = write_run(tmp_path / "listed")
    (listed / "environment.json").write_text('{"a": 1}')
    for paths, said in [
        (["absent"], "no such folder"),
        ([str(tmp_path)], "no metrics.jsonl"),
        ([str(empty)], "nothing measured yet"),
        ([str(broken)], "config.yaml: cannot be read"),
        ([str(listed)], "a list of JSON records"),
        ([str(folder), str(folder.parent / "." / "run")], "given twice"),
    ]:
        with pytest.raises(UserError, match=said):
            read_runs(paths)


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [str(write_run(tmp_path / parent / "run")) for parent in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == paths
    assert [run.name for run in read_runs(paths[:1])] == ["run"]
