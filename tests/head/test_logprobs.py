"""Contract 5, the dense oracle: readings of a head against the plain (tokens, vocabulary) computation."""

import pytest
import torch

from local_distill.head.logprobs import Head, read_tokens, read_top_tokens
from tests.losses.test_losses import HEADS, K, N, V, dense_logprobs, make_case


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 1000])
def test_log_probs_and_entropies_equal_dense_in_float64(rows_per_chunk, head):
    case = make_case(**HEADS[head])
    found = read_tokens(case.hidden, case.head, case.tokens.targets, logits_per_chunk=rows_per_chunk * V)
    dense = dense_logprobs(case.hidden, case.head).detach()
    torch.testing.assert_close(found.logprobs, dense[torch.arange(N), case.tokens.targets])
    torch.testing.assert_close(found.entropy, -(dense.exp() * dense).sum(1))
    assert not found.logprobs.requires_grad


@pytest.mark.parametrize("rows_per_chunk", [4, 1000])
def test_top_tokens_and_their_tail_equal_dense(rows_per_chunk):
    case = make_case(bias=True)
    found = read_top_tokens(case.hidden, case.head, K, logits_per_chunk=rows_per_chunk * V)
    dense = dense_logprobs(case.hidden, case.head).detach()
    assert torch.equal(found.ids, dense.topk(K).indices)
    torch.testing.assert_close(found.logprobs[:, :-1], dense.topk(K).values)
    torch.testing.assert_close(found.logprobs.exp().sum(1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_low_precision_stays_near_the_float64_oracle(dtype, tolerance):
    case = make_case(dtype)
    found = read_tokens(case.hidden, case.head, case.tokens.targets).logprobs
    expected = dense_logprobs(case.hidden, case.head)[torch.arange(N), case.tokens.targets].detach()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_autocast_decides_the_precision_of_the_matrix_products():
    case = make_case(torch.float32)
    targets = case.tokens.targets
    exact = read_tokens(case.hidden, case.head, targets).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read_tokens(case.hidden, case.head, targets).logprobs
    by_hand = dense_logprobs(case.hidden.bfloat16(), Head(case.head.weight.bfloat16(), V)).detach()
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded.double(), by_hand[torch.arange(N), targets], rtol=2e-2, atol=2e-2)


def test_no_positions():
    case = make_case(n=0)
    assert read_tokens(case.hidden, case.head, case.tokens.targets).logprobs.shape == (0,)
    assert read_top_tokens(case.hidden, case.head, K).logprobs.shape == (0, K + 1)
