"""Means with their standard errors, and paired differences with a p-value. The unit is always the question.

Samples of one question are not independent, so no formula here counts them as if they were: they are averaged first.
Source of the clustered and paired errors: Miller (2024), Adding Error Bars to Evals, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import mpmath
import torch

NAN = math.nan


class Estimate(NamedTuple):
    """A mean has a standard error; NaN where one question cannot tell."""

    mean: float
    standard_error: float


class Difference(NamedTuple):
    """A mean has changed by this over the same questions. p_value: two-sided, of there being no difference."""

    mean: float
    standard_error: float
    p_value: float


class Total(NamedTuple):
    """One completion has this sum over its tokens, and so many of them."""

    sum: float
    tokens: int


def mean_over_questions(values: Sequence[float]) -> Estimate:
    """Return x̄ = Σ x_q / n and √(Σ (x_q − x̄)² / (n (n − 1))), of one number x_q a question.

    With x_q the share of a question's samples that are right, this is pass@1 with the error clustered by question.
    """
    n = len(values)
    if n == 0:
        return Estimate(NAN, NAN)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, NAN)
    return Estimate(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n * (n - 1))))


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Return the probability that k of the n samples, drawn without replacement, hold a right one.

    With c right ones it is 1 − C(n − c, k) / C(n, k). Unbiased for the probability that one of k fresh samples is
    right. Chen et al. (2021), arXiv 2107.03374.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def paired_difference(before: Sequence[int], after: Sequence[int], samples: int) -> Difference:
    """Return the difference of pass@1, from how many of its ``samples`` answers are right at each question.

    p from ``sign_flip_p``.
    """
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return Difference(*mean_over_questions([change / samples for change in changes]), sign_flip_p(changes))


def sign_flip_p(changes: Sequence[int]) -> float:
    """Return P(|Σ ±d_q| ≥ |Σ d_q|) where each sign is a fair coin: the exact permutation test for pairs, two-sided.

    Were both models alike, each question's change could as well have been its opposite. All sign patterns are counted,
    by convolution. With one answer a question it is McNemar's exact test: a binomial over the questions that changed.
    Sources: Fisher (1935), The Design of Experiments, § 21; McNemar (1947), Psychometrika 12.
    """
    sizes = [abs(change) for change in changes if change]
    reach = sum(sizes)
    chances = torch.zeros(2 * reach + 1, dtype=torch.float64)  # of the sums −reach … reach
    chances[reach] = 1.0
    for size in sizes:
        moved = torch.zeros_like(chances)
        moved[size:] += chances[:-size] / 2
        moved[:-size] += chances[size:] / 2
        chances = moved
    found = abs(sum(changes))
    sums = torch.arange(-reach, reach + 1)
    return min(1.0, float(chances[sums.abs() >= found].sum()))


def paired_ratios(before: Sequence[Total], after: Sequence[Total]) -> Difference:
    """Return the difference of Σ sums / Σ tokens, over completions of the same prompts.

    The error is linearised, as in ``mean_per_token``: with R the ratio and c̄ the mean length of each side, prompt i
    moves the difference by r_i = (s_i − R c_i) / c̄ after − the same before; the error is √(Σ r_i² / (n (n − 1))), p
    from Student's t with n − 1 degrees of freedom.
    """
    n = len(before)
    mean = mean_per_token(after).mean - mean_per_token(before).mean
    if n < 2:
        return Difference(mean, NAN, NAN)
    moves = [b - a for a, b in zip(_influences(before), _influences(after), strict=True)]
    error = math.sqrt(math.fsum(move * move for move in moves) / (n * (n - 1)))
    if not error:
        return Difference(mean, error, NAN if mean else 1.0)
    return Difference(mean, error, student_t_p(mean / error, n - 1))


def student_t_p(t: float, freedom: int) -> float:
    """Return P(|T| ≥ |t|) for Student's T with ν degrees of freedom; NaN for a NaN.

    It is the regularised incomplete beta function I_{ν/(ν+t²)}(ν/2, ½).
    """
    if math.isnan(t):  # mpmath would look for it without end
        return NAN
    return float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def mean_per_token(totals: Sequence[Total]) -> Estimate:
    """Return Σ sums / Σ tokens and its standard error (linearised ratio estimator).

    Tokens of one completion are not independent, so the completions are what is counted, and taken as independent.
    """
    n, tokens = len(totals), max(sum(total.tokens for total in totals), 1)
    mean = sum(total.sum for total in totals) / tokens
    if n < 2:
        return Estimate(mean, NAN)
    residuals = sum((total.sum - mean * total.tokens) ** 2 for total in totals)
    return Estimate(mean, float((residuals * n / (n - 1)) ** 0.5 / tokens))


def _influences(totals: Sequence[Total]) -> list[float]:
    """Return by how much each completion moves the ratio, times n."""
    ratio, length = mean_per_token(totals).mean, sum(total.tokens for total in totals) / len(totals)
    return [(total.sum - ratio * total.tokens) / length for total in totals]
