"""Ctrl-C at every place of a run: it is answered at once, nothing is lost, and the run goes on bit for bit."""

import os
import signal

import pytest

from local_distill.monitor.plain import PlainTerminal
from local_distill.process import interruption
from tests.test_train_command import metrics, same_files

SMALL = [
    "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "8", "--max_prompt_tokens", "90", "--save_every", "0",
    "--learning_rate", "3e-3", "--eval_every", "2", "--eval_prompts", "3", "--steps", "4",
]  # fmt: skip
LEAVING = "leaving the evaluation and saving; Ctrl-C again to quit now"
BASELINE = "evaluating before training"
PLACES = [  # what is said to be done, which of the times that it is said; what is answered; the step that is saved
    (BASELINE, 0, LEAVING, 0),
    (f"{BASELINE}: scoring", 0, LEAVING, 0),
    ("sampling", 0, "finishing step 1; Ctrl-C again to quit now", 1),
    ("training", 2, "finishing step 3; Ctrl-C again to quit now", 3),
    ("evaluating", 1, LEAVING, 2),
    ("evaluating: scoring", 1, LEAVING, 4),
]


@pytest.fixture
def pair(folders):
    return ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"]), *SMALL]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """The folder of a run that nobody stopped."""
    from local_distill.config.train_config import parse_config
    from local_distill.train_on_policy_local import train

    folder = tmp_path_factory.mktemp("whole") / "run"
    models = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
    train(parse_config([*models, *SMALL, "--output_dir", str(folder)]))
    return folder


def signal_when(monkeypatch, what, time, *numbers):
    """Signals to this process when a run says for the time that it does this; the first is 0."""
    times = []

    def doing(_, now, *__):
        if now == what:
            times.append(now)
            if len(times) == time + 1:
                for number in numbers:
                    os.kill(os.getpid(), number)

    monkeypatch.setattr(PlainTerminal, "doing", doing)


@pytest.mark.parametrize(("what", "time", "answer", "saved"), PLACES)
def test_it_is_answered_at_once_and_the_run_goes_on_bit_for_bit(
    pair, whole, run_command, tmp_path, monkeypatch, what, time, answer, saved
):
    answers = []
    with monkeypatch.context() as patched:
        patched.setattr(PlainTerminal, "notice", lambda _, text: answers.append(text))
        signal_when(patched, what, time, signal.SIGINT)
        code, out, _ = run_command([*pair, "--output_dir", "run"])
    assert (code, answers) == (130, [answer])
    assert f"stopped by SIGINT after step {saved}, which is saved in run" in out
    assert ("report: " in out) == (saved > 0), "nothing to report of before anything was measured"
    assert "could not" not in out
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == [f"step-{saved}"]
    code, _, err = run_command([*pair, "--output_dir", "run", "--resume"])
    assert (code, err) == (0, "")
    same_files(tmp_path / "run" / "step-4", whole / "step-4")
    assert metrics(tmp_path / "run") == metrics(whole)
    assert (tmp_path / "run" / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


def test_a_second_one_quits_at_once_and_says_how_to_go_on(pair, run_command, monkeypatch):
    monkeypatch.setattr(interruption, "SAME_KEY", -1.0)
    arguments = [*pair, "--save_every", "1", "--output_dir", "run"]
    signal_when(monkeypatch, "training", 2, signal.SIGINT, signal.SIGINT)
    code, _, err = run_command(arguments)
    assert code == 130
    assert err.startswith("stopped by SIGINT at once; the last good checkpoint is run/step-2")
    assert "Traceback" not in err
    assert "--config run/config.yaml --resume" in err


def test_one_that_comes_when_all_is_done_changes_nothing(pair, run_command, monkeypatch):
    signal_when(monkeypatch, "saving", 0, signal.SIGINT)
    code, out, _ = run_command([*pair, "--output_dir", "run"])
    assert code == 0
    assert "summary" in out


def test_a_run_that_goes_on_elsewhere_is_saved_there_too(pair, run_command, tmp_path, monkeypatch):
    assert run_command([*pair, "--steps", "2", "--output_dir", "run"])[0] == 0
    signal_when(monkeypatch, "evaluating", 0, signal.SIGINT)
    code, _, _ = run_command([*pair, "--output_dir", "other", "--resume", "run/step-2"])
    assert code == 130
    assert (tmp_path / "other" / "step-2" / "manifest.json").is_file()
