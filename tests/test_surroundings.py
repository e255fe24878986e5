"""Where a command is started, and what the environment says: it runs all the same, or one line says what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_distill.errors import UserError
from local_distill.models.loading_errors import OWN, check_caches

ROOT = Path(__file__).parents[1]
OPTIONAL = ("vllm", "bitsandbytes", "lm_eval", "scipy", "sklearn", "kernels", "liger_kernel", "mlflow")
"""Not installed, most of them: a folder alone is then found as a package without code."""


@pytest.fixture
def python(tmp_path):
    """``python …`` as another user's, with the working folder of the test: exit code, standard output and error."""

    def run(*words, **variables):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **variables}
        words = [sys.executable, *map(str, words)]
        ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    return run


@pytest.fixture
def training(folders, tmp_path):
    """The words of a run of one step on rows of a file, which need the library of data sets."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "why"}\n{"prompt": "how"}\n')
    return [
        "-m", "local_distill", "train", "--student_model", folders["student"], "--teacher_model", folders["teacher"],
        "--dataset", "rows.jsonl", "--prompt_column", "prompt", "--output_dir", "run", "--use_lora", "--lora_r", "2",
        "--steps", "1", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--eval_prompts", "0",
    ]  # fmt: skip


def hide(folder, *names):
    """Packages of these names in the folder, which end whoever imports them."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise SystemExit('{name} of the working folder')\n")


def test_folders_with_names_of_packages_are_not_taken_for_them(python, training, tmp_path):
    for name in OPTIONAL:
        (tmp_path / name).mkdir()
    hide(tmp_path, "datasets", "peft", "wandb", "torch", "yaml")
    code, _, err = python(*training)
    assert code == 0, err
    assert (tmp_path / "run" / "step-1" / "adapter_model.safetensors").is_file()


ASK = "import sys; from local_distill.packages import installed; print([installed(name) for name in sys.argv[1:]])"


def test_a_folder_without_code_is_no_package(python, tmp_path):
    for name in ("vllm", "peft"):
        (tmp_path / name).mkdir()
    assert python("-c", ASK, "vllm", "peft", "no_such_package") == (0, "[False, True, False]\n", "")


@pytest.mark.parametrize("file", ["peft/__init__.py", "peft.py"])
def test_what_hides_a_package_is_named(python, tmp_path, file):
    """From Python itself, in a notebook say, where the program cannot leave the working folder out."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    code, _, err = python("-c", ASK, "peft")
    assert code == 1
    hiding = tmp_path / file.removesuffix("/__init__.py")
    assert err.splitlines()[-1] == (
        f"local_distill.errors.UserError: {hiding}: is taken for the package peft, for Python looks in the working "
        "folder first; rename it, or start elsewhere"
    )


@pytest.mark.parametrize("file", ["vllm/__init__.py", "vllm.py"])
def test_code_of_that_name_is_not_the_package_either(python, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert python("-c", ASK, "vllm")[1] == "[False]\n"


def test_a_cache_that_cannot_be_written_is_named(python, training, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    code, _, err = python(*training, HF_HOME=str(folder))
    assert code == 2
    assert err == f"error: HF_HOME {folder}: cannot be written (Not a directory); set HF_HOME to a folder that can be\n"


@pytest.mark.parametrize("variable", OWN)
def test_the_variable_is_that_of_the_cache_and_the_cause_may_be_wrapped(tmp_path, monkeypatch, variable):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="Not a directory") as failed:
        (tmp_path / "file" / "cache" / "models--a").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{variable} .*file/cache: cannot be written"):
        check_caches(_wrapped(failed.value))


def _wrapped(error):
    try:
        raise RuntimeError("of a library") from error
    except RuntimeError as wrapper:
        return wrapper


def test_other_errors_are_not_those_of_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileNotFoundError) as failed:
        (tmp_path / "absent" / "rows.jsonl").read_text()
    check_caches(failed.value)
