"""What a terminal shows before a run has its screen."""

from __future__ import annotations

import pytest

from local_distill.monitor.working import working


def test_a_run_says_what_takes_its_first_seconds(run_command, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    argv = ["--student_model", folders["student"], "--teacher_model", folders["other_tokenizer"]]
    code, _, err = run_command(argv)
    assert code == 2
    first, second, mistake = (part for part in err.replace("\r", "").split("\x1b[2K") if part)
    assert (first, second) == ("loading torch and transformers …", "reading the models' files and the prompts …")
    assert mistake.startswith("error: --teacher_model")


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("RANK", "1")])
def test_nothing_is_said_to_a_log_and_by_other_processes(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv(name, value)
    with working("reading") as show:
        show("something else")
    assert capsys.readouterr().err == ""
