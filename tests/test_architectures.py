"""The whole command on families that keep what they have read in ways of their own: trained rightly, or refused."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import Phi3Config, RwkvConfig

from local_distill.commands import main
from local_distill.rollouts.decoding import next_logits
from tests.rollouts.test_checking import RIGHT, V
from tests.tiny_models import make_tokenizer, save_model

EXACT = 1e-9
"""engine/kl of float32: in all of these runs below 1e-11."""


def phi3(original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return Phi3Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=128, pad_token_id=0, bos_token_id=0,
        original_max_position_embeddings=original,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
    )  # fmt: skip


@pytest.fixture
def train(tmp_path, run_command):
    """One family as student and, other weights, as teacher: (exit code, stderr, metrics of the steps)."""

    def run(config, *more):
        tokenizer = make_tokenizer()
        for name, seed in (("student", 1), ("teacher", 2)):
            save_model(tmp_path / name, config, tokenizer, seed=seed)
        lengths = [3, 40, 11]
        (tmp_path / "p.txt").write_text("\n".join("why is the sky blue and how "[:n] for n in lengths * 2))
        code, _, err = run_command([
            "--student_model", "student", "--teacher_model", "teacher", "--prompts_file", "p.txt",
            "--eval_prompts", "1", "--steps", "1", "--batch_size", "2", "--group_size", "3", "--max_new_tokens", "8",
            "--temperature", "1", "--top_p", "1", "--learning_rate", "1e-3", "--output_dir", "run", *more,
        ])  # fmt: skip
        record = tmp_path / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        return code, err, [line for line in lines if "engine/kl" in line]

    return run


@pytest.mark.parametrize(
    "name", ["states and attention", "convolutions and attention", "mamba and attention", "states alone"]
)
def test_what_is_sampled_is_what_is_trained(name, train, tmp_path):
    code, err, steps = train(RIGHT[name])
    assert code == 0, err
    assert [abs(step["engine/kl"]) < EXACT for step in steps] == [True]
    before, after = (load_file(tmp_path / where / "model.safetensors") for where in ("student", "run/step-1"))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_longrope_is_trained_up_to_the_length_at_which_its_positions_turn(train):
    code, err, steps = train(phi3(64))
    assert code == 0, err
    assert steps[0]["engine/kl"] < EXACT


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (phi3(16), ["--student_model student", "longer than 16 tokens (longrope)", "lower --max_new_tokens"]),
        (
            RwkvConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2),
            ["--student_model student", "use --rollouts vllm"],
        ),
    ],
    ids=["longrope", "rwkv"],
)
def test_refused_before_its_weights_are_loaded(config, says, train, monkeypatch):
    monkeypatch.setattr("local_distill.models.files.ModelFiles.load", lambda *_, **__: pytest.fail("loaded"))
    code, err, _ = train(config)
    assert code == 2
    assert err.count("\n") == 1
    assert all(each in err for each in says)


def test_a_gap_that_rounding_does_not_explain_stops_the_run(train, monkeypatch, tmp_path):
    """Of what no check at the start can see: log-probs that are a little off."""
    monkeypatch.setattr("local_distill.build.check_sampling", lambda *_, **__: None)
    monkeypatch.setattr("local_distill.rollouts.hf.next_logits", lambda *inputs: next_logits(*inputs) * 1.02)
    code, err, steps = train(RIGHT["llama"])
    assert code == 2
    assert err.count("\n") == 1
    assert "step 1: the samples' log-probs are" in err
    assert "use --rollouts vllm, or choose another model" in err
    assert len(steps) == 1, "what was measured is written down"
    assert not list((tmp_path / "run").glob("step-*"))


@pytest.mark.parametrize(
    ("config", "words", "says"),
    [
        (phi3(16), ["eval", "m", "--prompt_template", "{question}"], "m: has other positions for texts longer than 16"),
        (RwkvConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2), ["eval", "m"], "m: RwkvForCausalLM does not"),
        (RwkvConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2), ["chat", "m"], "m: RwkvForCausalLM does not"),
    ],
    ids=["eval longrope", "eval rwkv", "chat rwkv"],
)
def test_eval_and_chat_refuse_the_same(config, words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m", config, make_tokenizer())
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "why is the sky blue", "answer": "1"}) + "\n")
    more = ["--dataset", "q.jsonl", "--max_new_tokens", "12", "--output", "out"] if words[0] == "eval" else []
    monkeypatch.setattr("local_distill.models.files.ModelFiles.load", lambda *_, **__: pytest.fail("loaded"))
    capsys.readouterr()
    assert main([*words, *more]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_chat_ends_where_positions_would_turn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m", phi3(16), make_tokenizer())
    monkeypatch.setattr(sys, "stdin", io.StringIO("why\n" + "why is the sky blue " * 9 + "\n"))
    code = main(["chat", "m", "--max_new_tokens", "40"])
    assert code == 2
    assert "the context has room for 16" in capsys.readouterr().err
