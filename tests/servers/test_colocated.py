"""A real vLLM engine inside the process that trains, on the processor, where it samples but cannot sleep.

vLLM wants another transformers than we do, so the student lives in vLLM's environment: colocated_student.py.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.servers.vllm_server import MODEL, ROOT
from tests.tiny_models import llama_config, make_tokenizer, save_model

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
ALLOWED, ROWS = 300, 320
STOP = set(range(0, ALLOWED, 30))
CLEARLY = 0.2
"""Nats: what older weights differ by, at least."""


def run_student(folder, precision, kind, target, launcher=()):
    for needed in (PYTHON, MODEL):
        if not needed.exists():
            pytest.fail(f"{needed} is not there: run make test-servers")
    env = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    env |= {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_HOST_IP": "127.0.0.1",
    }  # fmt: skip
    script = str(ROOT / "tests" / "servers" / "colocated_student.py")
    command = [str(PYTHON), *launcher, script, str(folder), precision, kind, str(target)]
    done = subprocess.run(command, env=env, cwd=target.parent, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model whose head has more rows than there are tokens to draw, as padded heads have."""
    config = llama_config(ROWS, layers=2, hidden_size=128, intermediate_size=160, num_attention_heads=2,
                          num_key_value_heads=1, max_position_embeddings=512)  # fmt: skip
    return save_model(tmp_path_factory.mktemp("model") / "student", config, make_tokenizer(), seed=1)


@pytest.fixture(scope="module")
def result(tiny, tmp_path_factory):
    return run_student(tiny, "float32", "adapter", tmp_path_factory.mktemp("result") / "result.json")


def test_its_logprobs_are_those_of_the_weights_with_the_adapter(result):
    assert result["first_weights"]["mean"] < 1e-3
    assert result["nucleus"]["mean"] < 1e-3
    assert result["nucleus"]["outside"] < 0.01


def test_new_weights_are_seen_at_once_and_no_older_keys_and_values(result):
    assert result["second_weights"]["mean"] < 1e-3
    assert result["first_draws_by_second_weights"]["mean"] > CLEARLY


def test_draws_depend_on_seed_step_position_and_place_alone(result):
    assert result["again"] == result["first"]
    assert result["alone"] == result["first"][4:8]
    assert result["next_step"] != result["first"]
    assert len({tuple(ids) for ids in result["first"]}) == 12


def test_rollouts_come_in_order_each_told_once(result):
    assert result["told"]
    assert result["places"] == [[position, length] for position, length in enumerate((200, 201, 3)) for _ in range(4)]


def test_rows_that_are_no_tokens_are_not_drawn(result):
    assert result["rows"] == ROWS
    drawn = {i for ids in result["first"] + result["next_step"] for i in ids}
    assert max(drawn) < ALLOWED
    assert len(drawn) > 50


def test_a_stop_token_ends_a_completion_and_belongs_to_it(result):
    assert {finish for finish, _ in result["ended"]} == {"stop", "length"}
    for finish, ids in result["ended"]:
        assert not STOP & set(ids[:-1])
        assert (ids[-1] in STOP) == (finish == "stop")
        assert finish == "stop" or len(ids) == 24


def test_a_weight_that_is_not_handed_over_ends_the_run(result):
    assert "1 of its weights were not handed over" in result["left_out"]
    assert "o_proj.weight" in result["left_out"]


def test_two_processes_have_an_engine_each(tiny, result, tmp_path):
    target = tmp_path / "result.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_student(tiny, "float32", "adapter", target, launcher)
    for name in ("result.json", "result.json.1"):
        own = json.loads((tmp_path / name).read_text())
        assert own["first"] == result["first"]
        assert own["second_weights"]["mean"] < 1e-3


def test_a_real_model_in_bfloat16(tmp_path):
    own = run_student(MODEL, "bfloat16", "whole", tmp_path / "result.json")
    assert own["first_weights"]["mean"] < 0.1
    assert own["second_weights"]["mean"] < 0.1
    assert own["first_draws_by_second_weights"]["mean"] > 3 * own["first_weights"]["mean"]
