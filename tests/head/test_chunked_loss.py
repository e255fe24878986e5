"""The head and its gradient in one pass: precision, memory, and what takes no part."""

from dataclasses import replace

import pytest
import torch

from local_distill.batch import HeadStates, SampledLogprobs, ScoredBatch, TokenBatch
from local_distill.head.chunked_loss import ChunkLoss, summed_loss
from local_distill.head.divergences import JensenShannon, forward_kl, reverse_kl
from local_distill.head.logprobs import Head, read_tokens
from local_distill.losses.loss import SampledTokenLoss, TopTokensLoss, WholeDistributionLoss
from local_distill.losses.sampled_token import PPO, policy_gradient
from tests.losses.test_losses import EXACT, ROWS, Case, H, N, V, assert_same, dense_logprobs, dense_whole, make_case


@pytest.mark.parametrize("loss", [WholeDistributionLoss(reverse_kl), TopTokensLoss(JensenShannon(0.5))])
def test_autocast_rounds_the_products_and_nothing_else(loss):
    """The same as by hand with rounded states and weights: sums over the vocabulary stay in float32."""
    case = make_case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = case.run(loss)
    (grad,) = torch.autograd.grad(rounded.total, case.head.weight)
    assert grad.dtype == torch.float32
    p = dense_logprobs(case.hidden.bfloat16(), Head(case.head.weight.bfloat16(), V)).detach()
    entropy = -(p.exp() * p).sum(1)
    by_hand = make_case(torch.float32)
    by_hand = replace(
        by_hand, hidden=case.hidden.detach().bfloat16(), head=Head(case.head.weight.detach().bfloat16(), V)
    )
    assert rounded.total.item() == pytest.approx(by_hand.run(loss).total.item(), rel=1e-6)
    exact = case.run(loss)
    assert rounded.total != exact.total
    assert abs(rounded.total - exact.total) < 0.02 * exact.total
    assert (rounded.stats["entropy"] - entropy).abs().max() < 0.02  # of a bf16 logit's rounding, not of the sum's
    assert rounded.stats["entropy"].dtype == torch.float32


def test_a_small_gradient_survives_fp16():
    """With logits that fp16 holds exactly, all that can be lost is the gradient; the loss scale arrives in backward."""
    gen = torch.Generator().manual_seed(0)
    hidden = (torch.randint(-128, 128, (N, V), generator=gen) / 64).half().requires_grad_()
    weight = torch.eye(V).half().requires_grad_()
    near = HeadStates(
        (hidden.detach() + torch.randint(-1, 2, (N, V), generator=gen) / 64).half(), Head(torch.eye(V).half(), V)
    )
    tokens = TokenBatch(hidden, hidden, hidden, torch.zeros(N), torch.zeros(N), (N,))
    case = Case(hidden, Head(weight, V), near, tokens, SampledLogprobs(torch.zeros(N)), None, torch.zeros(N))
    coef, scale = 1e-4, 65536.0
    found = torch.autograd.grad(case.run(WholeDistributionLoss(reverse_kl, coef)).total * scale, case.leaves)
    expected = torch.autograd.grad(coef * scale * dense_whole(case, "reverse_kl").sum(), case.leaves)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() < 2e-3 * theirs.double().norm()


def test_a_frozen_head_gets_no_gradient_and_no_buffer():
    case = make_case()
    frozen = replace(case, head=Head(case.head.weight.detach(), V))
    found = frozen.run(WholeDistributionLoss(reverse_kl))
    assert_same(found.total, dense_whole(frozen, "reverse_kl").sum(), [case.hidden], EXACT)
    assert largest_tensor(lambda: frozen.run(WholeDistributionLoss(reverse_kl)).total.backward()) < ROWS * H + N * V


def test_padding_rows_of_the_vocabulary_take_no_part():
    case = make_case()
    poisoned = case.head.weight.detach().clone()
    poisoned[V:] = 1e4
    with_padding = replace(case, head=Head(poisoned.requires_grad_(), V))
    for loss in (WholeDistributionLoss(JensenShannon(0.3)), SampledTokenLoss(policy_gradient, policy_gradient, 1, 0)):
        found = with_padding.run(loss)
        torch.testing.assert_close(found.total, case.run(loss).total)
        assert torch.autograd.grad(found.total, poisoned)[0][V:].abs().max() == 0


@pytest.mark.parametrize(
    "loss",
    [WholeDistributionLoss(reverse_kl), TopTokensLoss(forward_kl), SampledTokenLoss(PPO(0.2), PPO(0.2), 1.0, 0.5)],
    ids=["whole", "top", "sampled"],
)
def test_no_positions_give_zero_and_zero_gradients(loss):
    case = make_case(n=0)
    case = replace(case, tokens=replace(case.tokens, lengths=(0,)))
    found = case.run(loss)
    found.total.backward()
    assert found.total == 0
    assert case.head.weight.grad.abs().max() == 0
    assert all(values.shape == (0,) for values in found.stats.values())


def largest_tensor(work):
    """The most numbers in any tensor that an operation makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        work()
    return largest


@pytest.mark.parametrize("kind", ["sampled", "whole"])
def test_nothing_of_tokens_by_vocabulary_is_ever_made(kind, monkeypatch):
    """The largest tensor that any operation makes, forward or backward, is a chunk of logits or the head itself."""
    n, vocab, rows = 640, 500, 16
    monkeypatch.setattr("local_distill.head.logprobs.LEAST_ROWS", 1)
    monkeypatch.setattr("local_distill.head.logprobs.LOGITS_PER_CHUNK_ELSEWHERE", rows * vocab)
    hidden, weight = torch.randn(n, H, requires_grad=True), torch.randn(vocab, H, requires_grad=True)
    teacher, targets = HeadStates(torch.randn(n, H), Head(torch.randn(vocab, H), vocab)), torch.randint(vocab, (n,))
    loss = WholeDistributionLoss(JensenShannon(0.5)) if kind == "whole" else SampledTokenLoss(PPO(0.2), PPO(0.2), 1, 0)

    def work():
        tokens = TokenBatch(hidden, hidden, hidden, targets, torch.zeros(n), (n,))
        sampled = SampledLogprobs(*read_tokens(teacher.hidden, teacher.head, targets))
        batch = ScoredBatch(tokens, teacher if kind == "whole" else sampled)
        loss.reading(batch, 0)(hidden, Head(weight, vocab), targets).total.backward()

    assert largest_tensor(work) == max(rows * vocab, vocab * H, n * H)


def test_chunks_hold_no_more_logits_than_they_may():
    hidden, head = torch.randn(3, H, requires_grad=True), Head(torch.randn(V, H), V)
    seen = []

    def watch(_part, student):
        seen.append(student.probs.shape)
        return ChunkLoss(student.probs.sum(), torch.zeros_like(student.probs), ())

    summed_loss(hidden, head, watch, (), logits_per_chunk=2 * V)
    assert seen == [(2, V), (1, V)]


@pytest.mark.parametrize("rows", [1, 7, 8, 23])
def test_low_precision_gradients_that_wait_for_each_other_are_all_there(rows):
    """Chunks of two positions, four of which go to the weight together, and what is left at the end."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, 16, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(V, 16, dtype=torch.bfloat16).requires_grad_()
    slopes = torch.randn(rows, V)

    def chunk_loss(part, student):
        return ChunkLoss(student.logprobs.sum() * 0, slopes[part].clone(), ())

    summed_loss(hidden, Head(weight, V), chunk_loss, (), logits_per_chunk=2 * V).total.backward()
    expected = slopes.to(torch.bfloat16).double().t() @ hidden.detach().double()
    torch.testing.assert_close(weight.grad.double(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    backwards = slopes.to(torch.bfloat16).double() @ weight.detach().double()
    torch.testing.assert_close(hidden.grad.double(), backwards, rtol=2e-2, atol=2e-2 * float(backwards.abs().max()))
