"""Accuracy inside training: of the very samples that the reverse KL is measured on."""

import json
import math
import sys
from dataclasses import replace

import pytest

from local_distill.batch import Prompt
from local_distill.eval import held_out
from local_distill.eval.held_out import DRAW, verifier_of
from local_distill.eval.statistics import mean_over_questions
from local_distill.eval.verifying import ContainsVerifier
from local_distill.monitor.summary import write_summary
from local_distill.monitor.terminal import PlainTerminal
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.records import RunFiles, evaluation_metrics, read_evaluations
from tests.eval.test_held_out import evaluator
from tests.tiny_models import llama_config, make_model, make_tokenizer

PROMPTS = [Prompt((5 + i, 6, 7 + 2 * i), f"prompt {i}", f"test:{i}") for i in range(6)]
MEASURED = Evaluation(10, 1.5, 0.1, 40.0, 0.25, (), accuracy=0.375, accuracy_standard_error=0.125)
NOT_MEASURED = Evaluation(10, 1.5, 0.1, 40.0, 0.25, ())


def test_the_samples_of_the_reverse_kl_are_compared_with_the_answers_there_are():
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    _, sampler = evaluator(student, teacher)
    tokenizer = make_tokenizer()
    said = [
        tokenizer.decode(r.completion, skip_special_tokens=True) for r in sampler.sample(list(enumerate(PROMPTS)), DRAW)
    ]
    answers = [said[0], "zebra", said[2], None, "lion", said[5]]
    prompts = [replace(prompt, answer=answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    verifier = ContainsVerifier()
    expected = [verifier.verdict(s, a).correct for s, a in zip(said, answers, strict=True) if a is not None]
    assert sum(expected) in (2, 3)  # what was said may have no words
    held, _ = evaluator(student, teacher, prompts)
    found, without = replace(held, verifier=verifier).evaluate(0), held.evaluate(0)
    assert (found.accuracy, found.accuracy_standard_error) == pytest.approx(mean_over_questions(expected))
    assert found.reverse_kl == without.reverse_kl
    assert math.isnan(without.accuracy)


def with_answers(*answers):
    return [replace(prompt, answer=answer) for prompt, answer in zip(PROMPTS, answers, strict=False)]


def test_prompts_without_answers_are_not_worth_a_word():
    said = []
    assert verifier_of(PROMPTS, said.append) == (tuple(PROMPTS), None)
    assert said == []


def test_answers_that_cannot_be_read_do_not_count():
    said = []
    kept, verifier = verifier_of(with_answers("1", "???", "x^2", None), said.append)
    verifier.close()
    assert [prompt.answer for prompt in kept] == ["1", None, "x^2", None]
    assert said == []


def test_too_few_answers_are_said_aloud():
    said = []
    prompts = with_answers("1", "???", None, None)
    assert verifier_of(prompts, said.append) == (tuple(prompts), None)
    assert said == [
        "2 of 4 held-out prompts have answers, but eval/accuracy is not measured: 1 of them can be verified, at least "
        "half of the prompts must"
    ]


def test_a_missing_package_is_said_aloud(monkeypatch):
    monkeypatch.setattr(held_out, "math_verify_is_here", lambda: False)
    said = []
    assert verifier_of(with_answers("1", "2"), said.append)[1] is None
    assert "pip install 'local-distill[eval]'" in said[0]


def test_files_and_people_are_told_where_there_is_one(tmp_path, capsys):
    assert evaluation_metrics(MEASURED)["eval/accuracy"] == 0.375
    assert evaluation_metrics(MEASURED)["eval/accuracy_se"] == 0.125
    assert "eval/accuracy" not in evaluation_metrics(NOT_MEASURED)
    files = RunFiles(tmp_path, None)
    files.evaluation(MEASURED)
    files.evaluation(NOT_MEASURED)
    files.close()
    first, second = read_evaluations(tmp_path / "completions.jsonl")
    assert first == MEASURED
    assert math.isnan(second.accuracy)

    PlainTerminal(sys.stdout, 100).evaluation(MEASURED)
    PlainTerminal(sys.stdout, 100).evaluation(NOT_MEASURED)
    with_one, without = capsys.readouterr().out.splitlines()
    assert "accuracy 37.5 % ± 12.5" in with_one
    assert "accuracy" not in without
    assert (
        "| accuracy (verified) | – | 37.5 % ± 12.5 |" in write_summary(tmp_path, NOT_MEASURED, MEASURED, {}).read_text()
    )
    assert "accuracy" not in write_summary(tmp_path, NOT_MEASURED, NOT_MEASURED, {}).read_text()


def test_a_file_of_an_older_run_has_none(tmp_path):
    record = {"step": 1, "reverse_kl": 1.0, "standard_error": 0.1, "length": 3.0, "truncated": 0.0, "completions": []}
    (tmp_path / "completions.jsonl").write_text(json.dumps(record) + "\n")
    (found,) = read_evaluations(tmp_path / "completions.jsonl")
    assert math.isnan(found.accuracy)


def test_a_whole_run_measures_it_at_each_evaluation(folders, run_command, tmp_path):
    rows = [{"prompt": f"{i} plus {i} is", "answer": str(2 * i)} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, _ = run_command([
        "--student_model", folders["student"], "--teacher_model", folders["teacher"], "--prompts_file", "sums.jsonl",
        "--steps", "1", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "6", "--max_prompt_tokens", "90",
        "--eval_prompts", "4", "--output_dir", "run",
    ])  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["eval/accuracy"] for line in lines if "eval/reverse_kl" in line]
    assert len(shares) == 2
    assert all(share in (0.0, 0.25, 0.5, 0.75, 1.0) for share in shares)
    assert "accuracy (verified)" in printed
