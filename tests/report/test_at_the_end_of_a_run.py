"""Every run leaves its report, and no report costs a run."""

from __future__ import annotations

import json

import pytest

from local_distill.report import page

SMALL = ["--steps", "2", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "6", "--eval_prompts", "2"]


@pytest.fixture
def arguments(folders):
    return ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"]), *SMALL]


def test_a_run_leaves_its_report_and_names_it(arguments, run_command, tmp_path):
    code, out, _ = run_command([*arguments, "--output_dir", "run"])
    assert code == 0
    assert "report: run/report.html" in out.splitlines()
    written = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    data = json.loads(written.partition('type="application/json">')[2].partition("</script>")[0])
    (run,) = data["curves"]["runs"]
    assert run["train"]["step"] == [1, 2]
    assert "finished" in written, "although its folder is let go last"
    (evaluations,) = data["evaluations"]["runs"]
    assert [each["step"] for each in evaluations] == [0, 2], "with every token"
    assert evaluations[0]["completions"][0]["top"][0], "and the teacher's choices"


def test_a_report_that_fails_changes_nothing_about_the_run(arguments, run_command, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("whatever it is")

    monkeypatch.setattr(page, "render", broken)
    code, out, err = run_command([*arguments, "--output_dir", "run"])
    assert code == 0, err
    (told,) = [line for line in out.splitlines() if line.startswith("report: ")]
    assert "local-distill report run" in told
    assert (tmp_path / "run" / "summary.json").is_file()
