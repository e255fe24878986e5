"""What people really have, through train, eval and chat: bad rows, control tokens, tools, a clock in the template."""

import io
import json
import shutil
import sys

import pytest
import yaml
from transformers import AutoTokenizer

from local_distill.commands import main
from local_distill.inputs import check_inputs
from tests.tiny_models import CHAT_TEMPLATE

SMALL = ["--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--eval_prompts", "2", "--steps", "2"]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ROWS = [
    *({"prompt": f"why {word}"} for word in ("rain", "tea", "sky", "fox", "dog")),
    {"messages": [{"role": "user", "content": None}]},
    {"prompt": "a<|im_end|>b"},
    {"messages": [{"role": "user", "content": "use it"}, CALL, {"role": "tool", "content": "3"}], "tools": TOOLS},
]
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{% endfor %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def model(folders, tmp_path):
    """Makes a model folder with this chat template."""

    def make(template=CHAT_TEMPLATE):
        folder = shutil.copytree(folders["chat"], tmp_path / "model", dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def pair(folder):
    return ["--student_model", folder, "--teacher_model", folder, *SMALL]


def test_a_run_says_what_it_left_out_and_made_of_its_prompts(run_command, model, prompts):
    code, out, err = run_command([*pair(model(WITH_TOOLS)), "--prompts_file", prompts, "--output_dir", "run"])
    assert code == 0, err
    assert "1 of the 8 prompts read is left out: wrong, such as --prompts_file" in out
    assert "1 of the 8 prompts read spells control tokens (<|im_end|>): ordinary text" in out


def test_the_ids_of_a_runs_prompts(model, prompts):
    from local_distill.config.train_config import parse_config

    folder = model(WITH_TOOLS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = check_inputs(parse_config([*pair(folder), "--prompts_file", prompts])).prompts
    ids = {prompt.origin: list(prompt.ids) for prompt in (*source.training, *source.held_out)}
    assert len(ids) == 7
    chat = [{k: v for k, v in message.items() if v is not None} for message in ROWS[7]["messages"]]
    expected = tokenizer.apply_chat_template(chat, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert ids["p.jsonl:8"] == expected
    assert ids["p.jsonl:7"].count(tokenizer.eos_token_id) == 1  # the template's


CLOCK = "{{ strftime_now('%d %B %Y') }}" + CHAT_TEMPLATE


def test_a_run_that_is_gone_on_with_another_day_reads_its_own_date(run_command, model):
    """Bit for bit: what is evaluated at the end is what the unbroken run of that day evaluates."""
    pair_of = [*pair(model(CLOCK)), "--save_every", "1", "--eval_every", "1"]
    code, out, _ = run_command([*pair_of, "--output_dir", "whole", "--template_date", "2020-02-29"])
    assert code == 0
    assert "it is 2020-02-29 there (--template_date)" in out
    code, _, _ = run_command([*pair_of, "--output_dir", "run", "--steps", "1", "--template_date", "2020-02-29"])
    assert code == 0
    code, out, err = run_command([*pair_of, "--output_dir", "run", "--resume"])
    assert code == 0, err
    assert "it is 2020-02-29 there" in out
    assert open("run/completions.jsonl").read() == open("whole/completions.jsonl").read()  # noqa: SIM115, PTH123
    assert yaml.safe_load(open("run/config.yaml"))["template_date"] == "2020-02-29"  # noqa: SIM115, PTH123
    code, _, err = run_command(
        [*pair_of, "--output_dir", "run", "--steps", "3", "--resume", "--template_date", "2021-01-01"]
    )
    assert code == 2
    assert err.startswith("error: --template_date: 2021-01-01 given, but ")


def test_a_run_from_before_these_settings_is_gone_on_with(model, tmp_path):
    """Its checkpoint knows nothing of them."""
    from local_distill.config.train_config import parse_config
    from local_distill.runs.checkpoints import Checkpoint, check_same_run

    settings = check_inputs(parse_config(pair(model()))).fixed_settings
    before = {name: value for name, value in settings.items() if name not in ("keep_control_tokens", "template_date")}
    check_same_run(Checkpoint(tmp_path, 1, before), {**settings, "template_date": "2026-01-01"})


def test_an_evaluation_leaves_out_counts_and_keeps_its_date(model, prompts, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    folder = model("{{ strftime_now('%Y') }}" + WITH_TOOLS)
    asked = ["eval", folder, "--teacher_model", folder, "--prompts_file", prompts, "--max_new_tokens", "3"]
    assert main([*asked, "--output", "out", "--template_date", "2020-02-29"]) == 0
    said = capsys.readouterr().out
    assert "1 question is left out, wrong, such as --prompts_file" in said
    assert "1 questions spell control tokens: ordinary text" in said
    assert main([*asked, "--output", "out"]) == 0
    assert "it is 2020-02-29 there" in capsys.readouterr().out
    assert len((tmp_path / "out" / "reverse_kl.jsonl").read_text().splitlines()) == 7


def test_a_question_that_one_model_cannot_be_asked_is_asked_of_none(model, folders, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    strict = model("{% if 'fox' in messages[0].content %}{{ raise_exception('no foxes') }}{% endif %}" + CHAT_TEMPLATE)
    rows = [{"question": f"why {word}", "answer": "x"} for word in ("fox", "tea", "sky")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(
        ["eval", str(folders["chat"]), strict, "--dataset", "q.jsonl", "--answers", "exact", "--max_new_tokens", "2",
         "--output", "out"]
    )  # fmt: skip
    assert code == 0
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert sorted(answer["origin"] for answer in answers) == ["q.jsonl:2", "q.jsonl:2", "q.jsonl:3", "q.jsonl:3"]
    assert "1 question is left out, wrong, such as q.jsonl:1: the chat template refused" in capsys.readouterr().out


def test_a_chat_says_that_a_control_token_is_text(folders, monkeypatch, capsys):
    def chat(*words):
        monkeypatch.setattr(sys, "stdin", io.StringIO("a<|im_end|>b\n"))
        assert main(["chat", str(folders["chat"]), "--max_new_tokens", "2", *words]) == 0
        return capsys.readouterr()

    assert "<|im_end|>: ordinary text here, unless --keep_control_tokens" in chat().err
    assert chat("--keep_control_tokens").err == ""
