"""A real vLLM in bfloat16 as teacher, against our own scoring in float32."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.batch import Prompt, Rollout
from local_distill.errors import UserError
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import TopTokensTeacher
from local_distill.teachers.server import open_server_teacher
from local_distill.training.batching import collate
from tests.tiny_models import make_tokenizer

CPU, V, K = torch.device("cpu"), 49152, 32
BOUND = 0.1
"""Nats, mean absolute difference of a bfloat16 engine's log-probs from ours in float32."""
CLEARLY = 0.5
"""Nats: what a shift by one differs by, at least."""
TEXTS = (
    ("The capital of France is", " Paris, and the capital of Germany is Berlin.<|im_end|>"),
    ("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n", "Because of Rayleigh scattering."),
    ("2, 4, 6, 8,", " 10"),
    ("Water boils at", " 100 degrees Celsius at sea level, because its vapour pressure is then that of the air."),
    ("def add(a, b):\n", "    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n"),
    ("Say nothing.", "<|im_end|>"),
)


@pytest.fixture(scope="module")
def tokenizer(teacher_server):
    return AutoTokenizer.from_pretrained(teacher_server.model_folder)


@pytest.fixture(scope="module")
def rollouts(tokenizer):
    ids = [[tokenizer.encode(part, add_special_tokens=False) for part in pair] for pair in TEXTS]
    return [
        Rollout(Prompt(tuple(prompt), "text", "test"), i, torch.tensor(drawn), torch.zeros(len(drawn)), "stop")
        for i, (prompt, drawn) in enumerate(ids)
    ]


@pytest.fixture(scope="module")
def expected(teacher_server, rollouts, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(teacher_server.model_folder, dtype=torch.float32)
    return TopTokensTeacher(TokenScorer(model, V), CPU, K).score(collate(rollouts, tokenizer.eos_token_id))


@pytest.fixture(scope="module")
def batch(rollouts, tokenizer):
    return collate(rollouts, tokenizer.eos_token_id)


def opened(server, tokenizer, **settings):
    asked = {
        "model": "smollm2", "student_tokenizer": tokenizer, "vocab_size": V, "longest": 1000, "top_k": 0, "device": CPU,
        "timeout": 60, "patience": 240, "concurrency": 8, "say": print, **settings,
    }  # fmt: skip
    return open_server_teacher([server.url], **asked)


def test_log_probs_are_ours_and_a_shift_by_one_is_seen(teacher_server, tokenizer, batch, expected):
    teacher = opened(teacher_server, tokenizer)
    found = teacher.score(batch).signal.logprobs
    teacher.close()
    ours = expected.signal.logprobs
    assert len(found) == batch.num_tokens > 50
    assert (found - ours).abs().mean() < BOUND
    assert (found.roll(1) - ours).abs().mean() > CLEARLY
    assert (found.roll(-1) - ours).abs().mean() > CLEARLY


def test_likeliest_tokens_and_the_rest_are_ours(teacher_server, tokenizer, rollouts, batch, expected):
    teacher = opened(teacher_server, tokenizer, top_k=K)
    for each in rollouts:
        teacher.prepare(each)
    scored = teacher.score(batch)
    teacher.close()
    assert (scored.signal.logprobs - expected.signal.logprobs).abs().mean() < BOUND
    assert scored.signal.top.logprobs.exp().sum(1) == pytest.approx(1.0, abs=1e-4)
    shared = (scored.signal.top.ids[:, :, None] == expected.signal.top.ids[:, None, :]).any(2).float().mean()
    assert shared > 0.9, "the ends of both lists may differ"
    assert (scored.signal.top.ids[:, 0] == expected.signal.top.ids[:, 0]).float().mean() > 0.9
    certain = expected.signal.top.logprobs[:, -1] > -6  # in bfloat16 a smaller rest is mostly rounding
    rests = (scored.signal.top.logprobs[:, -1] - expected.signal.top.logprobs[:, -1])[certain]
    assert rests.abs().mean() < 2 * BOUND
    assert len(rests) > 20


def test_a_server_that_is_killed_and_comes_back_leaves_no_gap(teacher_server, tokenizer, rollouts, batch, expected):
    many = rollouts * 12
    long = [
        Rollout(Prompt(r.prompt.ids * (1 + i // 6) + r.prompt.ids, "text", "test"), 0, *after(r))
        for i, r in enumerate(many)
    ]
    said = []
    teacher = opened(teacher_server, tokenizer, say=said.append)
    before = teacher.score(batch).signal.logprobs
    try:
        for each in long:
            teacher.prepare(each)
        time.sleep(0.3)  # some are answered, some under way, some not begun
        teacher_server.kill()
        teacher_server.start(wait=False)  # not from a thread, with whose end the server would end
        scored = teacher.score(collate(long, tokenizer.eos_token_id))
        again = teacher.score(collate(long, tokenizer.eos_token_id))
        after_it = teacher.score(batch).signal.logprobs
    finally:
        teacher.close()
    assert any("tried again for" in line for line in said), "it was killed in the middle"
    assert said[-1].endswith("answers again")
    assert len(scored.signal.logprobs) == sum(len(r.completion) for r in long)
    assert (scored.signal.logprobs - again.signal.logprobs).abs().mean() < BOUND
    assert (after_it - before).abs().mean() < BOUND
    assert (after_it - expected.signal.logprobs).abs().mean() < BOUND


def after(rollout):
    return rollout.completion, rollout.sampler_logprobs, "stop"


def test_what_does_not_fit_is_refused_by_name(teacher_server, tokenizer):
    for settings, said in (
        ({"model": "gpt"}, r"^--teacher_model gpt: .* serves smollm2"),
        ({"longest": 1024}, r"^--teacher_url .*takes 1024 tokens, .*--max-model-len 1025"),
        ({"top_k": 65}, r"^--top_k 65: .*--max-logprobs 65"),
        ({"student_tokenizer": make_tokenizer()}, r"^--teacher_url .*smollm2 does not have the student's tokens"),
    ):
        with pytest.raises(UserError, match=said):
            opened(teacher_server, tokenizer, **settings)
