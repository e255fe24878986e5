"""The JSONL files, above all what a crash and a resume leave of them."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from local_distill.errors import UserError
from local_distill.runs.evaluations import Completion, Evaluation, Piece
from local_distill.runs.records import JsonlWriter, RunFiles, read_evaluations, read_metrics, training_totals


def evaluation(step: int, text: str = "Paris.", reverse_kl: float = 1.5) -> Evaluation:
    completion = Completion(prompt="Capital of France?", text=text, tokens=3, finish="stop", reverse_kl=reverse_kl)
    return Evaluation(
        step=step, reverse_kl=reverse_kl, standard_error=0.1, length=3.0, truncated=0.25, completions=(completion,)
    )


def write_run(folder: Path, first: int, last: int, keep_through: int | None) -> None:
    """What a run that evaluates every other step writes for steps first..last."""
    files = RunFiles(folder, keep_through)
    if keep_through is None:
        files.evaluation(evaluation(0))
    for step in range(first, last + 1):
        files.step(step, {"reverse_kl": 1 / step, "loss": math.nan if step == 2 else 0.5})
        if step % 2 == 0:
            files.evaluation(evaluation(step, text=f"Paris, said {step} times\n"))
    files.close()


def test_each_record_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write({"step": 1, "loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
    writer.close()


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    with closing(JsonlWriter(tmp_path / "metrics.jsonl")) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": -math.inf, "nested": [{"x": math.inf}, (math.nan,)]})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "grad_norm": None, "nested": [{"x": None}, [None]]}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_resumed_run_leaves_the_files_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    write_run(unbroken, 1, 8, None)
    write_run(broken, 1, 6, None)
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (broken / name).open("ab") as file:
            file.write('{"step": 7, "text": "天'.encode()[:-1])  # cut in the middle of a character
    write_run(broken, 5, 8, keep_through=4)
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()
    assert sorted(path.name for path in broken.iterdir()) == ["completions.jsonl", "metrics.jsonl"]


def test_a_whole_last_line_is_kept_though_its_newline_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    with closing(JsonlWriter(path, keep_through=2)) as writer:
        writer.write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    with closing(JsonlWriter(tmp_path / "metrics.jsonl", keep_through=3)) as writer:
        writer.write({"step": 4})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 4}\n'


def test_a_crash_while_records_are_removed_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        JsonlWriter(path, keep_through=1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damage_elsewhere_than_in_the_last_line_is_named_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON record"):
        JsonlWriter(path, keep_through=1)


@pytest.mark.parametrize("step", ["true", "false", "1.0", '"1"', "-1", "null"])
def test_a_step_that_is_no_whole_number_is_damage(tmp_path: Path, step: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{{"step": {step}}}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON record; repair or remove that line"):
        read_metrics(path)


def test_a_new_run_does_not_write_into_the_files_of_another(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"records of another run.*--resume.*--output_dir"):
        JsonlWriter(path)
    assert path.read_text() == '{"step": 1}\n'


def test_evaluations_come_back_as_they_were(tmp_path: Path) -> None:
    texts = ["plain", "two\nlines\r\n", "\x1b[31mred", "天空 \u2028 🙂", "half a pair \ud83d", '"quoted" \\n']
    written = [evaluation(step, text) for step, text in enumerate(texts)]
    files = RunFiles(tmp_path, None)
    for each in written:
        files.evaluation(each)
    files.close()
    assert read_evaluations(tmp_path / "completions.jsonl") == written


def test_tokens_come_back_as_they_were(tmp_path: Path) -> None:
    pieces = (
        Piece(" sky", -0.5, -2.25, 1.5, ((" sea", -0.25), ("\ufffd", -2.0))),
        Piece("", -1.0, -math.inf, math.inf, (("\ud83d", -math.inf),)),
        Piece("<|im_end|>", -0.125, -0.25, 0.125),
    )
    first = evaluation(0)
    written = replace(first, completions=(replace(first.completions[0], pieces=pieces), *first.completions))
    files = RunFiles(tmp_path, None)
    files.evaluation(written)
    files.close()
    path = tmp_path / "completions.jsonl"
    (whole, none) = json.loads(path.read_text(encoding="utf-8"))["completions"]
    assert whole["pieces"][0] == {
        "text": " sky", "student": -0.5, "teacher": -2.25, "reverse_kl": 1.5, "top": [[" sea", -0.25], ["\ufffd", -2.0]]
    }  # fmt: skip
    assert whole["pieces"][1] == {
        "text": "", "student": -1.0, "teacher": None, "reverse_kl": None, "top": [["\ud83d", None]]
    }  # fmt: skip
    assert none["pieces"] == []
    (read,) = read_evaluations(path)
    assert read.completions[0].pieces[::2] == pieces[::2]
    assert read.completions[0].pieces[1].text == ""
    assert math.isnan(read.completions[0].pieces[1].teacher)
    assert math.isnan(read.completions[0].pieces[1].top[0][1])
    assert read.completions[1] == first.completions[0]


def test_a_file_from_before_tokens_were_kept_is_read(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, None)
    files.evaluation(evaluation(0))
    files.close()
    path = tmp_path / "completions.jsonl"
    record = json.loads(path.read_text(encoding="utf-8"))
    for completion in record["completions"]:
        del completion["pieces"]
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert read_evaluations(path) == [evaluation(0)]


def test_nan_comes_back_as_nan(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, None)
    files.evaluation(evaluation(0, reverse_kl=math.nan))
    files.close()
    (read,) = read_evaluations(tmp_path / "completions.jsonl")
    assert math.isnan(read.reverse_kl)
    assert math.isnan(read.completions[0].reverse_kl)
    assert read.standard_error == 0.1


def test_evaluations_are_named_alike_among_the_metrics(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, None)
    files.evaluation(evaluation(0))
    files.step(1, {"reverse_kl": 2.0, "skipped": 0.0})
    files.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "step": 0,
            "eval/reverse_kl": 1.5,
            "eval/reverse_kl_se": 0.1,
            "eval/completion_tokens": 3.0,
            "eval/truncated": 0.25,
        },
        {"step": 1, "reverse_kl": 2.0, "skipped": 0.0},
    ]


def test_totals_count_training_steps_alone(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, None)
    files.evaluation(evaluation(0))
    files.step(1, {"tokens": 100.0, "seconds/step": 1.5})
    files.step(2, {"tokens": 50.0, "seconds/step": 0.5})
    files.evaluation(evaluation(2))
    files.close()
    assert training_totals(tmp_path / "metrics.jsonl") == (150, 2.0)
