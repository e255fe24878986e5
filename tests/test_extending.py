"""docs/extending.md is true: what it shows trains, and no file of the package is touched."""

import math
import re
from pathlib import Path

import pytest

from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.prompts import open_prompts
from local_distill.train_on_policy_local import main as train
from tests.launching import metrics

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The page's modules in a folder that Python looks into, which is the working folder as well."""
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", re.findall(r"^    (--.*)$", PAGE.read_text(encoding="utf-8"), re.M))
def test_what_the_page_shows_trains_two_steps(words, modules, folders):
    small = [
        "--batch_size", "2", "--group_size", "2", "--max_new_tokens", "6", "--steps", "2", "--eval_prompts", "2",
        "--dtype", "fp32",
    ]  # fmt: skip
    models = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"])]
    assert train([*models, *small, *words.split(), "--output_dir", str(modules / "run")]) == 0
    found = [step for step in metrics(modules / "run") if "loss" in step]
    assert len(found) == 2
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in found)
    assert all(abs(step.get("engine/kl", 0.0)) < 1e-5 for step in found)


@pytest.mark.usefixtures("modules")
def test_paths_and_hub_ids_are_no_modules(tmp_path):
    for name in (r"C:\data\prompts.jsonl", "C:prompts", "owner/name", "https://host/data"):
        with pytest.raises(UserError, match=r"no such file|unknown data set|needs --prompt_column"):
            open_prompts(TrainFields(dataset=name))
    (tmp_path / "my_prompts:SUMS").mkdir()
    with pytest.raises(UserError, match=r"needs data files|cannot be loaded|prompt_column"):
        open_prompts(TrainFields(dataset="my_prompts:SUMS"))


@pytest.mark.usefixtures("modules")
def test_a_source_that_is_none_is_one_line():
    with pytest.raises(UserError, match=r"^--dataset my_prompts:sums: a function, needs to be a PromptRecord"):
        open_prompts(TrainFields(dataset="my_prompts:sums"))


def test_the_chinese_page_has_the_same_code_headings_and_rows():
    english, chinese = (page.read_text(encoding="utf-8") for page in (PAGE, PAGE.parent / "zh" / PAGE.name))

    def code(text):
        return re.findall(r"```python\n.*?```|^    --.*?$", text, re.M | re.S)

    assert code(english) == code(chinese)
    for kind in (r"^#+ ", r"^\| "):
        assert len(re.findall(kind, english, re.M)) == len(re.findall(kind, chinese, re.M))
    assert re.findall(r"`[\w/]+\.py`", english) == re.findall(r"`[\w/]+\.py`", chinese)
