"""Tasks of lm-evaluation-harness, by the real library, with a task and its data in a local folder."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from local_distill.commands import main
from tests.tiny_models import make_tokenizer

pytest.importorskip("lm_eval", reason="make test-harness installs it")

CHOICE = """\
task: sky
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SAYING = """\
task: saying
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{said}}}}"
generation_kwargs: {{until: ["<|endoftext|>"], do_sample: false, max_gen_toks: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = ["why is the sky", "what is tea", "how quick is a", "why rain", "the lazy"]
CHOICES = ["blue", "dog", "rain"]


@pytest.fixture
def tasks(folders, tmp_path, monkeypatch):
    """A folder with two tasks; and the accuracy that the log-probs of the choices give, by transformers alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders["student"]).eval(), make_tokenizer()
    rows, right = [], 0
    for place, question in enumerate(QUESTIONS):
        scores = []
        for choice in CHOICES:
            prompt, whole = (tokenizer(text)["input_ids"] for text in (question, f"{question} {choice}"))
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
            scores.append(sum(float(logprobs[i - 1, whole[i]]) for i in range(len(prompt), len(whole))))
        right += max(range(3), key=scores.__getitem__) == place % 3
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=0
        )
        text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).split("<|endoftext|>")[0]
        rows.append(
            {"question": question, "choices": CHOICES, "answer": place % 3, "said": text if place < 2 else "zebra"}
        )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, text in (("sky", CHOICE), ("saying", SAYING)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(data=tmp_path / "data.jsonl"))
    return right / 5


def test_its_numbers_are_those_of_transformers_alone(folders, tasks, tmp_path, capsys):
    words = ["eval", str(folders["student"]), str(folders["teacher"]), "--tasks", "sky,saying", "--tasks_path", "tasks"]
    assert main([*words, "--output", "out"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["harness"]
    student = found[str(folders["student"])]
    assert student["sky"]["acc"]["mean"] == pytest.approx(tasks)
    assert student["sky"]["acc"]["se"] == pytest.approx(math.sqrt(tasks * (1 - tasks) / 4))
    assert student["saying"]["exact_match"]["mean"] == pytest.approx(0.4)
    assert set(found) == {str(folders["student"]), str(folders["teacher"])}
    assert "saying exact_match" in capsys.readouterr().out


def test_an_unknown_task_is_a_mistake_of_the_user(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(folders["student"]), "--tasks", "no_such_task", "--output", "out"]) == 2
    assert "--tasks: no_such_task is not known to lm-evaluation-harness" in capsys.readouterr().err
