"""The example that repairs what a fine-tune broke: its data, its fine-tune and its table."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.demo import functions
from local_distill.eval.verifying import open_verifier, words
from local_distill.prompts.prompt_files import builtin_prompts
from tests.tiny_models import llama_config, make_tokenizer, save_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "repair"
QUESTIONS = [json.loads(line) for line in (EXAMPLE / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
PROMPTS, HELD_OUT_PROMPTS = (
    (EXAMPLE / name).read_text(encoding="utf-8").splitlines() for name in ("prompts.txt", "held_out_prompts.txt")
)


@pytest.fixture
def script(monkeypatch):
    """A script of the example, as a module."""
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A small chat model with room for a docstring."""
    config = llama_config(layers=1, max_position_embeddings=1024)
    return str(save_model(tmp_path_factory.mktemp("chat") / "model", config, make_tokenizer(chat=True)))


# --- data ----------------------------------------------------------------------------------------


def test_every_answer_verifies_itself_and_no_question_gives_it_away():
    verifier = open_verifier("contains")
    assert 80 <= len(QUESTIONS) <= 200
    for row in QUESTIONS:
        assert row.keys() == {"question", "answer"}
        assert verifier.verdict(f"I think that it is {row['answer']}.", row["answer"]).correct, row
        assert not verifier.verdict(row["question"], row["answer"]).correct, row
        assert not verifier.verdict("def f(self): return None", row["answer"]).correct, row


def test_no_prompt_is_a_question_and_none_is_both_trained_on_and_held_out():
    asked, trained, held_out = (
        [words(text) for text in texts] for texts in ([q["question"] for q in QUESTIONS], PROMPTS, HELD_OUT_PROMPTS)
    )
    builtin = [words(prompt.text) for prompt in builtin_prompts()]
    assert len(trained) >= 200
    assert len(held_out) >= 40
    everything = [*asked, *trained, *held_out]
    assert len(set(everything)) == len(everything)
    assert not {*asked} & {*builtin}
    for kind in ("capital of", "opposite of", "currency", "continent", "language is spoken"):
        assert not any(kind in prompt for prompt in (*trained, *held_out)), kind
        assert any(kind in question for question in asked), "or the line above says nothing"


def test_functions_that_measure_are_not_trained_on():
    held_out, trained = functions.held_out_functions(), functions.training_functions(0)
    assert len(held_out) >= 96
    assert len(trained) >= 1000
    assert not {each.docstring for each in held_out} & {each.docstring for each in trained}
    assert len({each.code for each in held_out} & {each.code for each in trained}) < 0.1 * len(held_out)
    assert functions.training_functions(0) == trained != functions.training_functions(1)


def test_a_function_like_a_held_out_one_is_not_trained_on(tmp_path, monkeypatch):
    held, like, other = (
        f'def {name}(a):\n    """{text} the number that is given."""\n    return {name}\n'
        for name, text in (("f", "Return"), ("g", "Return"), ("h", "Double"))
    )
    (tmp_path / "held.py").write_text(held)
    (tmp_path / "trained.py").write_text(like + other)
    monkeypatch.setattr(functions, "HELD_OUT", ("held",))
    monkeypatch.setattr(functions, "folder", lambda: tmp_path)
    assert [each.code for each in functions.held_out_functions()] == ["def f(a):\n    return f"]
    assert [each.code for each in functions.training_functions(0)] == ["def h(a):\n    return h"]


def test_a_function_is_asked_for_by_its_first_paragraph_and_answered_without_its_docstring(tmp_path):
    (tmp_path / "module.py").write_text(
        'def add(a, b):\n    """Add two\n    numbers, exactly.\n\n    More."""\n    return a + b\n\n'
        'def short(a):\n    """Short."""\n    return a\n\n'
        'def empty():\n    """A docstring and nothing else."""\n\n'
        "def silent(a):\n    a += 1\n    return a\n"
    )
    expected = functions.Function("Add two numbers, exactly.", "def add(a, b):\n    return a + b")
    assert functions.read(tmp_path / "module.py") == (expected,)


def test_the_code_and_its_end_are_answered_and_nothing_else(chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    pair = [functions.Function("Add.", "def add(a, b):\n    return a + b"), functions.Function("Say no.", "no = 1")]
    ids, labels = functions.batch(tokenizer, pair, most=100)
    for row, each in enumerate(pair):
        answer = labels[row][labels[row] != functions.IGNORED]
        assert tokenizer.decode(answer) == each.code + "<|im_end|>"
        start = int((labels[row] != functions.IGNORED).nonzero()[0])
        assert (
            tokenizer.decode(ids[row, :start])
            == f"<|im_start|>user\n{each.docstring}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert torch.equal(ids[row, start : start + len(answer)], answer)
    short = functions.batch(tokenizer, pair, most=3)[1]
    assert (short != functions.IGNORED).sum(1).tolist() == [3, 3]


# --- the fine-tune, and repairing it -------------------------------------------------------------


def test_drift_learns_and_its_adapter_is_repaired(script, chat_model, tmp_path, run_command):
    losses = script("drift").save_drifted(
        chat_model, tmp_path / "drifted", steps=8, batch_size=4, most_tokens=24, learning_rate=1e-2, rank=4, seed=0
    )
    assert losses[-1] < losses[0] - 0.3
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:12]), encoding="utf-8")
    settings = yaml.safe_load((EXAMPLE / "repair.yaml").read_text(encoding="utf-8"))
    settings |= {
        "student_model": chat_model, "init_adapter": str(tmp_path / "drifted"), "max_new_tokens": 4, "batch_size": 2,
        "prompts_file": str(tmp_path / "prompts.txt"), "eval_prompts": 2, "steps": 1,
    }  # fmt: skip
    (tmp_path / "repair.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    code, said, errors = run_command(["--config", tmp_path / "repair.yaml", "--output_dir", tmp_path / "repaired"])
    assert code == 0, errors
    before, after = (
        load_file(next(tmp_path.glob(f"{name}/adapter_model.safetensors"))) for name in ("drifted", "*/step-1")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "reverse KL" in said


def test_the_loss_on_unseen_functions_is_that_of_each_alone(script, chat_model, monkeypatch):
    script = script("code_loss")
    monkeypatch.setattr(script, "FUNCTIONS", 5)
    monkeypatch.setattr(script, "AT_A_TIME", 2)
    monkeypatch.setattr(script, "MOST_TOKENS", 12)
    some = functions.held_out_functions()[:5]
    monkeypatch.setattr(script, "held_out_functions", lambda: list(some))
    monkeypatch.setattr(script.random.Random, "shuffle", lambda *_: None)
    found = script.code_loss(chat_model)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_model), AutoTokenizer.from_pretrained(chat_model)
    for (total, tokens), each in zip(found, some, strict=True):
        answer = tokenizer(each.code)["input_ids"][:12]
        asked = tokenizer(f"<|im_start|>user\n{each.docstring}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        with torch.no_grad():
            logprobs = F.log_softmax(model(torch.tensor([asked + answer])).logits[0].double(), -1)
        expected = -sum(float(logprobs[len(asked) + t - 1, token]) for t, token in enumerate(answer))
        assert tokens == 12
        assert total == pytest.approx(expected, abs=1e-4)


# --- the table -----------------------------------------------------------------------------------


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_table_says_what_was_measured(script, tmp_path):
    table = script("table")
    right = {"m": [1, 1, 1, 0], "d": [0, 0, 0, 0], "r": [1, 0, 1, 1]}
    order = {"m": [2, 0, 3, 1], "d": [0, 1, 2, 3], "r": [3, 2, 1, 0]}
    write_lines(
        tmp_path / "questions" / "answers.jsonl",
        [{"model": m, "question": q, "correct": bool(right[m][q])} for m in right for q in order[m]],
    )
    write_lines(
        tmp_path / "chat" / "reverse_kl.jsonl",
        [
            {"model": m, "question": q, "reverse_kl": k * (q + 1), "tokens": 4}
            for k, m in enumerate(right)
            for q in order[m]
        ],
    )
    (tmp_path / "code.json").write_text(
        json.dumps({"m": [[8, 4], [8, 4]], "d": [[4, 4], [4, 4]], "r": [[5, 4], [5, 4]]})
    )
    answers = table.answers(tmp_path / "questions")
    assert [value.mean for value in answers.values] == [0.75, 0, 0.75]
    assert answers.values[0].standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert [change.mean for change in answers.changes] == [-0.75, 0.75, 0]
    # McNemar's exact test of three changes, all one way: 2 · ½³.
    assert [change.p_value for change in answers.changes] == pytest.approx([0.25, 0.25, 1])
    assert answers.changes[2].standard_error == pytest.approx(math.sqrt(2 / 12)), "one question lost, one won"
    kl = table.reverse_kl(tmp_path / "chat")
    assert kl.changes[1].standard_error == pytest.approx(math.sqrt(0.3125 / 12)), "paired: of 1/4, 2/4, 3/4 and 1"
    assert [value.mean for value in kl.values] == pytest.approx([0, 10 / 16, 20 / 16])
    text = table.markdown([answers, kl, table.code_loss(tmp_path / "code.json")])
    assert "| questions answered | 0.750 ± 0.250 | 0.000 ± 0.000 | 0.750 ± 0.250 | -0.750 ± 0.250 (p = 0.25) |" in text
    assert "| loss on unseen functions | 2.000 ± 0.000 | 1.000 ± 0.000 | 1.250 ± 0.000 |" in text
    assert "Of what was learned about unseen functions, 75% is kept." in text
