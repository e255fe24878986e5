"""``train --dry_run``: all is checked, what would be done is shown, nothing is loaded and nothing is written."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from local_distill import dry_run
from local_distill.config.train_config import TrainConfig, parse_settings
from local_distill.models.files import ModelFiles
from tests.launching import free_port

SMALL = ["--steps", "6", "--batch_size", "2", "--group_size", "3", "--max_new_tokens", "8", "--dry_run"]


@pytest.fixture
def looked(run_command, folders, monkeypatch, tmp_path):
    """The command with --dry_run: (code, out, err); it may load no weights."""

    def load(files, *_, **__):
        raise AssertionError(f"weights of {files.path} were loaded")

    monkeypatch.setattr(ModelFiles, "load", load)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "prompts.txt").write_text("why\nhow\nwhat is red\nwhere is blue\n")

    def run(*words, student="student"):
        models = ["--student_model", folders[student], "--teacher_model", folders["teacher"]]
        return run_command([*models, "--prompts_file", "prompts.txt", *SMALL, *words])

    return run


def rows(out):
    """What stands behind a name of the table, on its first line."""
    return {match[1]: match[2] for match in re.finditer(r"^  (\w[\w ]*?) {2,}(\S.*?)\s*$", out, re.M)}


def test_it_shows_all_and_writes_nothing(looked, tmp_path):
    code, out, err = looked("--output_dir", "new")
    assert (code, err) == (0, "")
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.txt"]
    headings = ["models", "prompts", "prompt 1", "prompt 2", "prompt 3", "schedule", "memory"]
    assert [line.split("  ")[0] for line in out.splitlines() if line.split("  ")[0] in headings] == headings
    shown = rows(out)
    assert shown["folder"] == "new"
    assert shown["a step"] == "2 prompts × 3 rollouts = 6 completions of at most 8 tokens"
    assert shown["steps"] == "6; 6 updates"
    assert shown["passes"] == "12 prompts are dealt from 3: 4 passes"
    assert shown["evaluates"] == "before the first, and after step 6, on 1 held-out prompt"
    assert shown["loss"].startswith("reverse_kl over every token, exact")
    assert shown["plan"].startswith("fits: ")
    assert "3 prompts to train on and 1 held out, from the 4 of prompts.txt" in out
    assert max(map(len, out.splitlines())) <= 80
    assert out.rstrip().endswith("begins.")


def test_a_prompt_is_shown_as_the_models_read_it(looked):
    _, out, _ = looked("--system_prompt", "Be brief.", student="chat")
    prompt = re.search(r"^prompt 1 .*?(?=^prompt 2)", out, re.M | re.S)[0]
    text, _, tokens = prompt.partition("▶ the student goes on here")
    assert "Be brief." in text
    assert re.search(r"why|how|red|blue", text)
    ids = re.findall(r"(\d+):\S", tokens)
    assert len(ids) >= 8
    assert prompt.count("\n") > 3


def test_of_a_long_prompt_the_beginning_and_the_end_are_shown():
    pieces = ["<s>", *(f"w{n} " for n in range(900)), "<end>\n"]
    text = dry_run._rendered(pieces, [True, *[False] * 900, True]).plain
    assert text.startswith("<s>w0 w1 ")
    assert "characters …" in text
    assert text.endswith("w899 <end>\n▶ the student goes on here")
    assert len(text) < 1400
    tokens = list(dry_run._tokens(range(len(pieces)), pieces))
    assert (tokens[0], tokens[-1]) == ("0:<s>", "901:<end>⏎")
    assert len(tokens) == dry_run.FIRST_TOKENS + dry_run.LAST_TOKENS + 1


def test_a_run_that_would_be_gone_on_with_is_left_as_it_is(runs, run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    before = {path: path.stat().st_mtime_ns for path in (runs / "full").rglob("*")}
    again = ["--config", runs / "full" / "config.yaml", "--steps", "5", "--resume", "--dry_run"]
    code, out, err = run_command(again)
    assert (code, err) == (0, "")
    assert rows(out)["steps"] == "3 of 5, after step 2; 3 updates"
    assert "going on from" in out
    assert {path: path.stat().st_mtime_ns for path in (runs / "full").rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--student_model", "./no"], "--student_model ./no: no such folder"),
        (["--max_new_tokens", "128"], "--max_new_tokens: 128 given"),
        (["--resume", "--output_dir", "absent"], "--resume: no checkpoint in absent"),
        (["--output_dir", "prompts.txt"], "--output_dir prompts.txt: a file"),
        (["--output_dir", "prompts.txt/x"], "--output_dir prompts.txt/x: a file"),
    ],
)
def test_the_first_mistake(looked, tmp_path, words, said):
    code, out, err = looked(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.txt"]


def test_servers_are_asked(looked):
    url = f"http://127.0.0.1:{free_port()}"
    code, _, err = looked("--teacher_url", url, "--teacher_model", "", "--server_patience", "0")
    assert code == 2
    assert err.startswith(f"error: --teacher_url {url}")


def test_one_process_alone_shows_it(monkeypatch):
    shown = []
    monkeypatch.setattr(dry_run, "_ask_servers", lambda _: None)
    monkeypatch.setattr(dry_run, "show", lambda launch, _: shown.append(launch))
    for is_main in (False, True):
        process = SimpleNamespace(is_main_process=is_main, end_training=lambda: None)
        launch = SimpleNamespace(accelerator=process, closing=nullcontext())
        monkeypatch.setattr(dry_run, "check", lambda *_, launch=launch: launch)
        dry_run.look(None)
        assert len(shown) == is_main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "1e-05 at every step"),
        (["--lr_scheduler", "linear", "--steps", "4"], "1e-05 at step 1, 2.5e-06 at step 4"),
        (["--warmup_steps", "2", "--steps", "4"], "5e-06 at step 1, 1e-05 at step 2, 1e-05 at step 4"),
    ],
)
def test_the_learning_rate_over_the_run(words, said):
    config = parse_settings(["--student_model", "a", "--teacher_model", "b", *words]).config
    assert dry_run.rates_in_words(config).endswith(said)


@pytest.mark.parametrize(
    ("first", "steps", "every", "said"),
    [
        (0, 100, 25, "steps 25, 50, 75, 100"),
        (50, 100, 25, "steps 75, 100"),
        (0, 3, 0, "step 3"),
        (0, 100, 10, "every 10 steps and at the end, 10 times"),
        (0, 20, 1, "every step"),
    ],
)
def test_when_it_evaluates_and_saves(first, steps, every, said):
    assert dry_run.steps_in_words(first, steps, every) == said


def test_the_run_itself_knows_nothing_of_it():
    settings = parse_settings(["--student_model", "a", "--teacher_model", "b", "--dry_run"])
    assert settings.dry_run
    assert type(settings.config) is TrainConfig
    assert not hasattr(settings.config, "dry_run")
