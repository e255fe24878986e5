"""Answers survive a crash, and those to other questions are not taken for these."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest

from local_distill.errors import UserError
from local_distill.eval.output_folder import Answer, open_output

FIXED = {"dataset": "gsm8k", "samples": 1, "limit": None}
ANSWER = Answer("m", "gsm8k", 0, 0, "gsm8k[0]", "1+1?", "2 \ud83d \u2028", "2", "2", True, 3, "stop", "hf")


def opened(given, fixed):
    """The folder, left to others again."""
    with ExitStack() as holding:
        return open_output(given, fixed, holding)


def test_answers_are_read_back_as_they_were(tmp_path):
    answers = [ANSWER, replace(ANSWER, question=1, correct=False, finish="length")]
    opened(str(tmp_path / "out"), FIXED).answers.add(answers)
    found = opened(str(tmp_path / "out"), FIXED).answers.found
    assert list(found.values()) == answers
    assert found["m", "gsm8k", 1, 0] == answers[1]


def test_a_line_that_was_cut_short_is_removed(tmp_path):
    opened(str(tmp_path), FIXED).answers.add([ANSWER, replace(ANSWER, question=1)])
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    again = opened(str(tmp_path), FIXED)
    assert list(again.answers.found) == [("m", "gsm8k", 0, 0)]
    again.answers.add([replace(ANSWER, question=1)])
    assert file.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    opened(str(tmp_path), FIXED).answers.add([ANSWER])
    file = tmp_path / "answers.jsonl"
    file.write_text('{"model": 1}\n' + file.read_text())
    with pytest.raises(UserError, match=r"answers.jsonl:1: not a line of this file"):
        opened(str(tmp_path), FIXED)


@pytest.mark.parametrize("change", [{"samples": 2}, {"limit": 5}, {"dataset": "math500"}])
def test_other_settings_are_refused(tmp_path, change):
    opened(str(tmp_path), FIXED)
    (name,) = change
    with pytest.raises(UserError, match=f"has answers with {name} .*; give the same settings, or another folder"):
        opened(str(tmp_path), {**FIXED, **change})


def test_answers_of_nobody_knows_what_are_refused(tmp_path):
    opened(str(tmp_path), FIXED).answers.add([ANSWER])
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match=r"has answers but no settings.json"):
        opened(str(tmp_path), FIXED)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*cannot be used"):
        opened(str(tmp_path / "file"), FIXED)


def test_results_are_json_without_nan(tmp_path):
    output = opened(str(tmp_path), FIXED)
    output.write_results({"accuracy_se": float("nan")})
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy_se": None}


def test_without_a_folder_each_evaluation_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (first, second) = (opened(None, FIXED).path for _ in range(2))
    assert first != second
    assert first.parent.name == second.parent.name == "evals"
