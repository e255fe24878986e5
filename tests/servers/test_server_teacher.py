"""Real vLLM as a teacher: its log-probs against our own, its likeliest tokens, and a kill in the middle."""

import threading
import time

import pytest
import torch

from local_distill.batching import collate
from local_distill.errors import UserError
from local_distill.logprobs import read_top_tokens
from local_distill.models import open_model
from local_distill.scorer import TokenScorer
from local_distill.teachers.server import open_server_teacher
from local_distill.types import Prompt, Rollout

BF16 = 0.1
"""Nats, mean absolute difference of a bf16 engine from float32; 0.05 is usual, a shift by one far above it."""
TEXTS = [
    ("The capital of France is", " Paris, a city on the Seine that is known for its museums."),
    ("def add(a, b):\n", "    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"),
    ("Water boils at", " 100 degrees Celsius at sea level, and lower on a mountain."),
    ("One, two, three,", " four, five, six, seven"),
]


@pytest.fixture(scope="module")
def files(vllm_server):
    return open_model("--student_model", str(vllm_server.model_folder), trust_remote_code=False)


@pytest.fixture(scope="module")
def own(files):
    return TokenScorer(files.load(torch.float32), files.config.vocab_size)


@pytest.fixture(scope="module")
def rollouts(files):
    def ids(text):
        return files.tokenizer.encode(text, add_special_tokens=False)

    return [
        Rollout(
            Prompt(tuple(ids(prompt)), prompt, ""), i, torch.tensor(ids(text)), torch.zeros(len(ids(text))), "length"
        )
        for i, (prompt, text) in enumerate(TEXTS)
    ]


def teacher_at(url, files, top_k=0, patience=120.0, model=None):
    return open_server_teacher(
        [url], model=model, student_tokenizer=files.tokenizer, vocab_size=files.config.vocab_size, longest=256,
        top_k=top_k, device=torch.device("cpu"), timeout=120.0, patience=patience, concurrency=8, say=print,
    )  # fmt: skip


def test_its_log_probs_are_those_of_scoring_here(vllm_server, files, own, rollouts):
    teacher = teacher_at(vllm_server.url, files)
    for rollout in rollouts:
        teacher.prepare(rollout)
    batch = collate(rollouts, files.tokenizer.eos_token_id)
    found = teacher.score(batch).sampled_logprobs
    teacher.close()
    with torch.no_grad():
        expected = own(batch).logprobs
    assert (found - expected).abs().mean() < BF16
    assert (found[1:] - expected[:-1]).abs().mean() > 10 * BF16


def test_its_likeliest_tokens_and_their_tail(vllm_server, files, own, rollouts):
    teacher = teacher_at(vllm_server.url, files, top_k=32)
    batch = collate(rollouts, files.tokenizer.eos_token_id)
    found = teacher.score(batch).top
    teacher.close()
    with torch.no_grad():
        states = own.states(batch)
        expected = read_top_tokens(states.hidden, states.head, 32)
    assert (found.ids[:, 0] == expected.ids[:, 0]).float().mean() > 0.9
    assert (found.logprobs[:, 0] - expected.logprobs[:, 0]).abs().mean() < BF16
    torch.testing.assert_close(found.logprobs.exp().sum(1), torch.ones(len(found.ids)), atol=1e-3, rtol=0)
    assert (found.logprobs[:, -1] - expected.logprobs[:, -1]).abs().mean() < 2 * BF16


def test_more_of_them_than_the_server_gives_are_refused(vllm_server, files):
    with pytest.raises(UserError, match=r"--teacher_url http.*--max-logprobs 65"):
        teacher_at(vllm_server.url, files, top_k=65)


def test_a_name_that_is_not_served_is_refused_with_those_that_are(vllm_server, files):
    with pytest.raises(UserError, match=r"--teacher_model nobody: .* serves smollm2"):
        teacher_at(vllm_server.url, files, model="nobody")


def test_a_server_that_is_killed_while_it_scores_and_comes_back_gives_everything(vllm_server, files, own, rollouts):
    teacher = teacher_at(vllm_server.url, files)
    many = [Rollout(Prompt((*r.prompt.ids, i), "", ""), 0, r.completion, r.sampler_logprobs, "length")
            for i in range(60, 90) for r in rollouts]  # fmt: skip
    for rollout in many:
        teacher.prepare(rollout)
    time.sleep(0.3)
    vllm_server.kill()
    back = threading.Thread(target=vllm_server.start)
    back.start()
    batch = collate(many, files.tokenizer.eos_token_id)
    found = teacher.score(batch).sampled_logprobs
    back.join()
    teacher.close()
    with torch.no_grad():
        assert (found - own(batch).logprobs).abs().mean() < BF16
