"""What has the form of a path is looked for here, before torch is imported, and no hub is asked for it."""

import subprocess
import sys

import pytest

from local_distill.config.places import check_is_there, is_path, look_for_models, look_for_run
from local_distill.config.train_config import parse_config
from local_distill.errors import UserError
from local_distill.wording import did_you_mean
from tests.launching import environment

MODELS = {"student_model": "a/student", "teacher_model": "a/teacher"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/qwen3", "runs/demo/step-3", "full"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "full" / "x").touch()
    (tmp_path / "prompts.txt").write_text("why\n")
    return tmp_path


@pytest.mark.parametrize(
    "path", ["./x", "../x", "/x", "~/x", "~", "x/", "a/b/c", "runs/x", "models/x", "models/qwen3", "."]
)
def test_a_path(path):
    assert is_path(path)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "gpt2", "full", "models", "a.b/c-d"])
def test_what_may_be_a_hub_id(name):
    assert not is_path(name)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("runs/dmeo", "runs/demo"),
        ("runs/demo/step-4", "runs/demo/step-3"),
        ("runs/dmeo/step-3", "runs/demo"),
        ("models/qwen4", "models/qwen3"),
        ("promts.txt", "prompts.txt"),
        ("xyzzy/x", None),
    ],
)
def test_what_lies_beside_it(path, near):
    assert did_you_mean(path) == (f"did you mean {near}? " if near else "")


def test_what_is_here_passes():
    for path in ("runs/demo", "./models/qwen3", "Qwen/Qwen3-8B"):
        check_is_there("--student_model", path)
    look_for_run({**MODELS, "prompts_file": "prompts.txt", "output_dir": "new"})
    look_for_run({**MODELS, "output_dir": "full", "resume": "latest"})
    look_for_run({**MODELS, "teacher_url": "http://x", "teacher_model": "/on/the/server"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"student_model": "./no"}, "--student_model ./no: no such folder; give a local model folder or a hub id"),
        ({"teacher_model": "runs/no/x"}, "--teacher_model runs/no/x: no such folder; "),
        (
            {"init_adapter": "runs/dmeo"},
            "--init_adapter runs/dmeo: no such folder; did you mean runs/demo? give a local",
        ),
        ({"prompts_file": "promts.txt"}, "--prompts_file promts.txt: no such file; did you mean prompts.txt? "),
        ({"dataset": "deepmath", "dataset_path": "no"}, "--dataset_path no: no such file"),
        ({"output_dir": "full"}, "--output_dir full: is not empty; "),
    ],
)
def test_what_is_not_here(given, says, monkeypatch):
    with pytest.raises(UserError) as caught:
        look_for_run({**MODELS, **given})
    assert str(caught.value).startswith(says)
    monkeypatch.setenv("WORLD_SIZE", "2")  # the processes check together, or one would wait for the other
    look_for_run({**MODELS, **given})


def test_mistakes_are_told_without_torch(here):
    """Of both entries: a flag, a value, a file, a folder."""
    program = (
        "import sys\n"
        "from local_distill.commands import main\n"
        "from local_distill.train_on_policy_local import main as documented\n"
        "models = ['--student_model', 'a/b', '--teacher_model', 'c/d']\n"
        "for words in (['--lr', '3'], ['--steps', 'x'], ['--steps', '0'], ['no.yaml'], ['--prompts_file', 'no'],\n"
        "              ['--output_dir', 'full'], ['--student_model', './no']):\n"
        "    assert documented([*models, *words]) == main(['train', *models, *words]) == 2\n"
        "for words in (['plan', '--student_model', './no'], ['eval', './no'], ['chat', 'runs/dmeo'],\n"
        "              ['export', 'runs/dmeo'], ['report', 'runs/dmeo']):\n"
        "    assert main(words) == 2, words\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'huggingface_hub'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment(), cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n", done.stderr
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 19


def test_the_student_as_its_own_teacher_is_a_backend(tmp_path):
    with pytest.raises(UserError, match=r"^--teacher_model self: .* give --teacher_backend self instead"):
        look_for_models({"student_model": "gpt2", "teacher_model": "self"})
    look_for_models({"student_model": "gpt2", "teacher_backend": "self", "use_lora": True})
    (tmp_path / "self").mkdir()
    look_for_models({"student_model": "gpt2", "teacher_model": "self"})


def test_a_mistyped_yaml_file_is_asked_about(here):
    (here / "run.yaml").write_text("batch_size: 2\n")
    with pytest.raises(UserError, match=r"cannot be read \(No such file.*\); did you mean run\.yaml\? give"):
        parse_config(["--config", "run.yml"])
