"""Standard errors and p-values against enumeration, closed forms and simulation."""

import itertools
import math
import random

import pytest

from local_distill.eval.statistics import (
    Total,
    mean_over_questions,
    mean_per_token,
    paired_difference,
    paired_ratios,
    pass_at_k,
    sign_flip_p,
    student_t_p,
)


def test_the_error_is_the_spread_of_the_mean_over_evaluations():
    """Questions of unlike difficulty, 4 samples each. Taking the samples as independent would be a third too low."""
    draw = random.Random(0)
    n, samples, means, errors, naive = 50, 4, [], [], []
    for _ in range(1500):
        shares = []
        for _ in range(n):
            p = draw.betavariate(0.5, 0.5)  # another set of questions each time
            shares.append(sum(draw.random() < p for _ in range(samples)) / samples)
        mean, error = mean_over_questions(shares)
        means.append(mean)
        errors.append(error)
        naive.append(math.sqrt(mean * (1 - mean) / (n * samples)))
    spread = math.sqrt(sum((m - 0.5) ** 2 for m in means) / len(means))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.06)
    assert sum(naive) / len(naive) < 0.72 * spread


def test_the_error_of_a_few_numbers():
    assert mean_over_questions([0.0, 1.0]) == (0.5, 0.5)
    assert mean_over_questions([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 6)))


def test_one_question_has_no_error():
    mean, error = mean_over_questions([0.25])
    assert mean == 0.25
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("correct", "samples", "k"), [(0, 5, 2), (2, 5, 1), (2, 5, 2), (3, 5, 4), (1, 4, 4), (4, 4, 4)]
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(correct, samples, k):
    answers = [True] * correct + [False] * (samples - correct)
    draws = list(itertools.combinations(answers, k))
    assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(
    "changes", [[], [0, 0], [1], [-1, -1, -1, -1, -1], [2, -1, 0, 3], [4, 4, -3, 1, 1, 0, 2], [1, -1, 1, -1]]
)
def test_the_permutation_test_counts_all_sign_patterns(changes):
    found = abs(sum(changes))
    patterns = list(itertools.product([1, -1], repeat=len(changes)))
    extreme = sum(abs(sum(s * c for s, c in zip(signs, changes, strict=True))) >= found for signs in patterns)
    assert sign_flip_p(changes) == pytest.approx(extreme / len(patterns), abs=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(9, 2), (3, 3), (0, 8), (40, 22)])
def test_with_one_answer_a_question_it_is_mcnemars_exact_test(gained, lost):
    n, less = gained + lost, min(gained, lost)
    binomial = min(1.0, 2 * sum(math.comb(n, i) for i in range(less + 1)) / 2**n)
    assert sign_flip_p([1] * gained + [-1] * lost + [0] * 100) == pytest.approx(binomial, abs=1e-12)


def test_models_that_are_alike_are_rarely_called_different():
    draw = random.Random(1)
    called = 0
    for _ in range(600):
        before, after = ([sum(draw.random() < 0.4 for _ in range(3)) for _ in range(25)] for _ in range(2))
        called += paired_difference(before, after, 3).p_value <= 0.05
    assert called / 600 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_a_paired_difference_is_in_shares_and_its_error_that_of_the_changes():
    mean, error, p = paired_difference([0, 2, 1, 4], [1, 4, 1, 4], 4)
    changes = [0.25, 0.5, 0.0, 0.0]
    assert (mean, error) == pytest.approx(mean_over_questions(changes))
    assert p == pytest.approx(0.5)  # of the signs of 1 and 2, both alike in two of four


@pytest.mark.parametrize("t", [0.0, 0.3, -1.7, 12.0])
def test_students_p_in_closed_form(t):
    assert student_t_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(abs(t)))
    assert student_t_p(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t))
    assert student_t_p(t, 10**6) == pytest.approx(math.erfc(abs(t) / math.sqrt(2)), abs=1e-5)


def _completions(draw, n, rate):
    lengths = [draw.randint(2, 60) for _ in range(n)]
    return [Total(draw.gauss(rate * length, 0.5 * length), length) for length in lengths]


def test_the_error_of_a_difference_of_ratios_is_the_jackknifes():
    draw = random.Random(2)
    before = _completions(draw, 300, 1.5)
    after = [Total(0.6 * b.sum + draw.gauss(0, 3), b.tokens + 5) for b in before]
    mean, error, p = paired_ratios(before, after)

    def ratio(totals):
        return sum(t.sum for t in totals) / sum(t.tokens for t in totals)

    left_out = [ratio(after[:i] + after[i + 1 :]) - ratio(before[:i] + before[i + 1 :]) for i in range(300)]
    middle = sum(left_out) / 300
    jackknife = math.sqrt(299 / 300 * sum((each - middle) ** 2 for each in left_out))
    assert mean == pytest.approx(ratio(after) - ratio(before))
    assert error == pytest.approx(jackknife, rel=0.02)
    assert p < 1e-6
    unpaired = math.hypot(mean_per_token(before).standard_error, mean_per_token(after).standard_error)
    assert error < 0.6 * unpaired


def test_the_same_completions_do_not_differ():
    same = _completions(random.Random(3), 5, 1.0)
    assert paired_ratios(same, same) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_sum_that_is_not_finite_gives_no_p_value_and_no_endless_search(broken):
    before = [Total(1.0, 3), Total(2.0, 4), Total(0.5, 2)]
    assert math.isnan(paired_ratios(before, [Total(broken, 3), *before[1:]]).p_value)
