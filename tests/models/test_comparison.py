"""Both models at every token, against the definitions written with all logits at once, in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from local_distill.batch import ScoredBatch, TopLogprobs
from local_distill.head import logprobs
from local_distill.head.logprobs import Head, TopTokens
from local_distill.models.comparison import compare, compare_whole
from tests.losses.test_losses import LENGTHS, K, N, V, make_case


def dense(hidden, head):
    """(N, V) log-probs by the definition."""
    z = hidden @ head.weight[:V].t() + (0 if head.bias is None else head.bias[:V])
    z = z * head.scale
    return (z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)).log_softmax(1)


@pytest.mark.parametrize("settings", [{}, {"bias": True, "scale": 0.5}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("rows", [4, 1000])
def test_a_whole_distribution_is_compared_as_defined_a_few_rows_at_a_time(settings, rows, monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK_ELSEWHERE", 0)
    monkeypatch.setattr(logprobs, "LEAST_ROWS", rows)
    seen, plain = [], Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, states, m: seen.append(len(states)) or plain(self, states, m))
    case = make_case(**settings)
    targets = case.tokens.targets
    found = compare_whole(case.teacher, 5, case.hidden, case.head, targets)
    assert max(seen) == min(rows, N)

    p, q = dense(case.hidden.detach(), case.head), dense(case.teacher.hidden, case.teacher.head)
    own = torch.arange(N), targets
    expected = (
        p[own],
        q[own],
        (p.exp() * (p - q)).sum(1),
        q.argsort(1, descending=True)[:, :5],
        q.sort(1, True)[0][:, :5],
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    assert not found.student.requires_grad


def test_every_rollout_gets_its_own_tokens():
    case = make_case()
    found = compare_whole(case.teacher, 2, case.hidden, case.head, case.tokens.targets)
    parts = found.split(LENGTHS)
    assert [len(part.student) for part in parts] == list(LENGTHS)
    for column in range(5):
        torch.testing.assert_close(torch.cat([part[column] for part in parts]), found[column])


@pytest.mark.parametrize(("k", "given"), [(0, 0), (4, 4), (K + 3, K)])
def test_a_teacher_without_its_whole_distribution_gives_what_it_has(k, given):
    """The last of its top log-probs is that of all other tokens, and is no token's."""
    case = make_case()
    s = torch.linspace(-3, -1, N, dtype=torch.float64)

    def student(tokens):
        assert tokens is case.tokens
        return logprobs.TokenReading(s, s)

    teacher = TopLogprobs(case.sampled.logprobs, top=case.top)
    batch = ScoredBatch(case.tokens, teacher)
    found = compare(student, batch, k)
    torch.testing.assert_close(found.reverse_kl, s - teacher.logprobs)
    torch.testing.assert_close(found.teacher, teacher.logprobs)
    assert found.likeliest.tolist() == teacher.top.ids[:, :given].tolist()
    torch.testing.assert_close(found.likeliest_logprobs, teacher.top.logprobs[:, :given])

    unknowing = compare(student, ScoredBatch(case.tokens, case.sampled), k)
    assert unknowing.likeliest.shape == unknowing.likeliest_logprobs.shape == (N, 0)


def test_no_more_tokens_than_there_are():
    case = make_case()
    few = replace(case.head, vocab_size=3), replace(case.teacher, head=replace(case.teacher.head, vocab_size=3))
    found = compare_whole(few[1], 5, case.hidden, few[0], case.tokens.targets % 3)
    assert found.likeliest.sort(1)[0].tolist() == [[0, 1, 2]] * N
    assert isinstance(case.top, TopTokens)
    assert partial(compare_whole, few[1], 0)(case.hidden, few[0], case.tokens.targets % 3).likeliest.shape == (
        N,
        0,
    )
