"""local-distill init as its user sees it: what it asks, what it writes, and that this runs."""

import json
import re
import shlex

import pytest
import yaml

from local_distill.commands import init, main
from local_distill.config.train_config import TrainConfig, parse_config
from local_distill.first_run import run_file
from local_distill.first_run.run_file import SECTIONS, render
from tests.plan.shapes import save
from tests.tiny_models import llama_config, make_tokenizer


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """``ask(*words)``: the exit code, and what is printed, of init in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["init", *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def models(folders):
    return "--student_model", folders["student"], "--teacher_model", folders["teacher"]


def test_what_it_writes_is_explained_fits_and_runs(ask, folders, tmp_path, run_command):
    code, out, _ = ask(*models(folders), "--max_new_tokens", 6, "--output_dir", "runs/a", "--yes")
    assert code == 0
    assert re.search(r"^fits: fullest phase ", out, re.M)
    text = (tmp_path / "run.yaml").read_text()
    explained(text)
    assert max(map(len, text.splitlines())) <= 100 or str(folders["student"]) in text
    assert main(["plan", "--config", "run.yaml"]) == 0
    config = parse_config(["--config", "run.yaml"])
    assert (config.max_new_tokens, config.output_dir, config.prompts_kind) == (6, "runs/a", "")
    quick = ["--batch_size", 2, "--group_size", 1, "--steps", 2, "--eval_prompts", 0]
    assert run_command(["--config", "run.yaml", *quick])[0] == 0
    assert (tmp_path / "runs" / "a" / "step-2").is_dir()
    commands = re.findall(r"^  (local-distill .*)", out, re.M)
    assert "local-distill train run.yaml" in commands
    assert all(shlex.split(command)[1] in init_commands() for command in commands)


def init_commands():
    from local_distill.commands import COMMANDS

    return COMMANDS


def explained(text):
    """Each setting of the file stands under a comment of its own, and is a setting of a run."""
    lines = text.splitlines()
    settings = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert settings
    for i in settings:
        assert lines[i - 1].startswith("# "), lines[i]
        assert lines[i].partition(":")[0] in TrainConfig.__dataclass_fields__


def test_every_setting_that_it_may_write_has_words():
    names = [name for comments in SECTIONS.values() for name in comments]
    assert set(names) <= set(TrainConfig.__dataclass_fields__)
    values = {"use_lora": True, "learning_rate": 5e-6, "max_new_tokens": 64, "chat_template_kwargs": {"x": False}}
    text = render({name: values.get(name, "on") for name in names}, ["head"], 128, True)
    explained(text)
    found = yaml.safe_load(text)
    assert list(found) == names
    assert found["chat_template_kwargs"] == {"x": False}
    assert float(found["learning_rate"]) == 5e-6
    assert "128 were asked for" in text
    assert max(map(len, text.splitlines())) <= run_file.WIDTH


def test_for_gpus_that_are_not_here(ask, folders, tmp_path, monkeypatch):
    student = tmp_path / "thinking"
    llama_config(layers=1).save_pretrained(student)
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template += "{% if enable_thinking is defined %}{% endif %}"
    tokenizer.save_pretrained(student)
    words = ("--student_model", student, "--teacher_model", folders["teacher"], "--yes", "--max_new_tokens", 8)
    words = (*words, "--gpus", 2, "--gpu_memory", 80)
    code, out, _ = ask(*words)
    assert code == 0
    assert "accelerate launch --multi_gpu --num_processes 2 -m local_distill train run.yaml" in out
    found = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert found["chat_template_kwargs"] == {"enable_thinking": False}
    assert found["batch_size"] == 64
    assert main(["plan", "--config", "run.yaml", "--gpus", "2", "--gpu_memory", "80"]) == 0
    monkeypatch.setattr("local_distill.first_run.settings.ENOUGH_FOR_ANSWERS", 8)
    code, _, _ = ask(*words, "--file", "long.yaml")
    assert code == 0
    assert "chat_template_kwargs" not in yaml.safe_load((tmp_path / "long.yaml").read_text()), "there is room to think"


def test_what_cannot_fit_is_said_with_what_would_help(ask, tmp_path):
    student, teacher = (save(tmp_path / name, size, layers=1) for name, size in (("small", "4B"), ("large", "32B")))
    words = ("--student_model", student, "--teacher_model", teacher, "--yes", "--max_new_tokens", 64)
    code, _, err = ask(*words, "--gpus", 1, "--gpu_memory", 2)
    assert code == 2
    assert "nothing that was tried fits 1 GPU of 2 GB" in err
    assert "served elsewhere" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run.yaml").exists()


def test_questions_are_asked_again_until_they_can_be_answered(ask, folders, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = ["./nowhere", folders["student"], folders["teacher"], "./no.txt", "built-in", "many", "5", "runs/b"]
    given, asked = iter(answers), []

    def answer(question, default):
        asked.append((question, default))
        return str(next(given))

    monkeypatch.setattr("rich.prompt.Prompt.ask", answer)
    code, out, _ = ask()
    assert code == 0
    assert len({question for question, _ in asked}) == 5
    assert asked[0][1] == init.STUDENT
    assert "no such folder" in out
    assert parse_config(["--config", "run.yaml"]).max_new_tokens == 5


def test_a_teacher_may_be_served_elsewhere(ask, folders, tmp_path):
    words = ("--student_model", folders["student"], "--teacher_model", "http://localhost:8000/v1", "--yes")
    code, out, _ = ask(*words, "--prompts", "tulu3")
    assert code == 0
    assert "learns from what http://localhost:8000 serves" in out
    found = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (found["teacher_url"], found["dataset"]) == ("http://localhost:8000", "tulu3")
    assert "teacher_model" not in found


def test_an_adapter_is_repaired_by_what_it_was_put_on(ask, runs, tmp_path):
    adapter = runs / "lora" / "step-2"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    code, out, _ = ask("--student_model", adapter, "--teacher_model", "self", "--yes")
    assert code == 0, out
    found = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert found["teacher_backend"] == "self"
    assert found["init_adapter"] == str(adapter)
    assert found["use_lora"]
    assert "teacher_model" not in found
    parse_config(["--config", "run.yaml"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--student_model: not given, and there is no terminal to ask in; give --student_model, --teacher_model, "),
        (("--student_model", "./nowhere", "--yes"), "--student_model ./nowhere: no such folder"),
        (("--student_model", "STUDENT", "--teacher_model", "self", "--yes"), "would learn from itself"),
        (("--student_model", "STUDENT", "--teacher_model", "http://", "--yes"), "no address of a server"),
        (("--student_model", "STUDENT", "--teacher_model", "STUDENT", "--prompts", "a/b", "--yes"), "--prompt_column"),
        (("--student_model", "STUDENT", "--teacher_model", "STUDENT", "--prompts", "x.csv", "--yes"), "no such file"),
        (("--yes", "--gpu_memory", "0"), "--gpu_memory: 0 given"),
        (("--yes", "--gpus", "0"), "--gpus: 0 given"),
        (("--file", "there.yaml", "--yes"), "--file there.yaml: is there already"),
    ],
)
def test_mistakes_are_one_line(ask, folders, tmp_path, words, said):
    (tmp_path / "there.yaml").write_text("mine")
    code, _, err = ask(*(folders["student"] if word == "STUDENT" else word for word in words))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert (tmp_path / "there.yaml").read_text() == "mine"
