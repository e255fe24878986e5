"""A chunk of logits, and what is made of it, is gone before the next one comes: counted on the tensors themselves."""

import pytest
import torch

from local_distill.batch import HeadStates, ScoredBatch, TeacherView, TokenBatch, TopLogprobs
from local_distill.head import logprobs
from local_distill.head.logprobs import Head, TopTokens, read_tokens, read_top_tokens
from local_distill.losses.registry import make_loss
from local_distill.models.comparison import compare_whole
from local_distill.plan.rehearsal import StorageCount

V, H, ROWS, TOP = 4000, 8, 64, 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK_ELSEWHERE", 1)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", ROWS)


def chunk_tensors(act):
    """Most that there are at a time, in tensors of a chunk's (ROWS, V) float32."""
    with StorageCount() as storages:
        act()
    return storages.peak / (4 * ROWS * V)


def head(softcap=None):
    return Head(torch.randn(V, H), V, softcap=softcap)


def trained(loss, chunks, softcap=None):
    n = ROWS * chunks
    tokens = TokenBatch(
        torch.zeros(1, n, dtype=torch.long), torch.ones(1, n), torch.arange(n), torch.zeros(n, dtype=torch.long),
        torch.zeros(n), (n,),
    )  # fmt: skip
    top = TopTokens(torch.arange(TOP).repeat(n, 1), torch.full((n, TOP + 1), -1.8))
    signal = TopLogprobs(torch.zeros(n), torch.zeros(n), top=top)
    if loss.needs == TeacherView.whole_distribution:
        signal = HeadStates(torch.randn(n, H), head())
    batch = ScoredBatch(tokens, signal)
    states, ours = torch.randn(n, H, requires_grad=True), head(softcap)
    return chunk_tensors(lambda: loss.reading(batch, 0)(states, ours, tokens.targets))


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("policy_gradient", {}, 3),  # the distribution is two
        ("reverse_kl", {}, 6),  # the teacher's as well; their difference, and its product
        ("jsd", {"top_k": TOP}, 3),
    ],
)
def test_a_loss_holds_few_tensors_of_one_chunk_however_many_there_are(name, settings, most):
    common = {"kl_coef": 1.0, "kl_discount": 0.0, "ratio_cap": 2.0, "ppo_clip": 0.2, "jsd_beta": 0.5, "top_k": None}
    loss = make_loss(name, **{**common, "top_k_support": "teacher", **settings})
    assert trained(loss, 1) <= most + 0.3
    assert trained(loss, 3) <= most + 0.3
    assert trained(loss, 3, softcap=30.0) <= most + 1.3, "the slope of the cap"


def test_readings_and_comparisons_hold_no_more_either():
    n = 3 * ROWS
    states, targets, ours = torch.randn(n, H), torch.zeros(n, dtype=torch.long), head()
    assert chunk_tensors(lambda: read_tokens(states, ours, targets)) <= 3.3
    assert chunk_tensors(lambda: read_top_tokens(states, ours, TOP)) <= 3.3
    teacher = HeadStates(torch.randn(n, H), head())
    with torch.no_grad():
        assert chunk_tensors(lambda: compare_whole(teacher, TOP, states, ours, targets)) <= 6.3
