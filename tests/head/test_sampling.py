"""Sampling of one token, against the definitions."""

import pytest
import torch

from local_distill.head import sampling
from local_distill.head.sampling import Greedy, NucleusSampling, nucleus_floor


def truncated(logits, temperature, top_p):
    """The definition, one row at a time: sort, add up, keep until top_p is reached, renormalise."""
    probs = (logits.double() / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    kept, total = [], 0.0
    for token in order.tolist():
        kept.append(token)
        total += probs[token].item()
        if total >= top_p:
            break
    out = torch.zeros_like(probs)
    out[kept] = probs[kept] / probs[kept].sum()
    return out


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.95), (1.7, 0.5), (0.5, 0.01)])
def test_draws_follow_the_truncated_distribution_exactly(temperature, top_p):
    """Every token gets the share of [0, 1) that is its probability: swept with an even grid, not with luck."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    expected = truncated(logits, temperature, top_p)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = NucleusSampling(temperature, top_p)(logits.expand(20_000, 12), grid)
    shares = torch.bincount(tokens, minlength=12).double() / 20_000
    torch.testing.assert_close(shares, expected, rtol=0, atol=2e-4)
    assert shares[expected == 0].sum() == 0
    torch.testing.assert_close(logprobs.double(), expected[tokens].log(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 4, 1000])
def test_nucleus_is_the_same_whether_or_not_it_fits_among_the_candidates(candidates, monkeypatch):
    monkeypatch.setattr(sampling, "NUCLEUS_CANDIDATES", candidates)
    probs = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).softmax(-1)
    for top_p in (0.1, 0.6, 0.99):
        inside = probs >= nucleus_floor(probs, top_p)
        for row, kept in zip(probs, inside, strict=True):
            assert kept.nonzero().squeeze(1).tolist() == truncated(row.log(), 1.0, top_p).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_never_give_an_impossible_token(draw):
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 3:6] = torch.tensor([1.0, 2.0, 3.0])
    tokens, logprobs = NucleusSampling(1.0, 1.0)(logits, torch.tensor([draw], dtype=torch.float64))
    assert tokens.item() == (3 if draw == 0.0 else 5)
    assert logprobs.isfinite().all()


def test_a_top_p_near_zero_takes_the_likeliest():
    tokens, logprobs = NucleusSampling(1.0, 1e-9)(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.99]))
    assert tokens.item() == 1
    assert logprobs.item() == pytest.approx(0.0, abs=1e-6)


def test_greedy_takes_the_first_of_those_that_tie_whatever_the_number_drawn():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]]).expand(3, 4)
    tokens, logprobs = Greedy()(logits, torch.tensor([0.0, 0.5, 0.99]))
    assert tokens.tolist() == [1, 1, 1]
    assert logprobs.tolist() == [0.0, 0.0, 0.0]
