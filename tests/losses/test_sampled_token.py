"""Contract 4, the gradient oracle: expected gradients against an objective that is enumerated in full."""

import itertools

import pytest
import torch

from local_distill.losses.sampled_token import (
    PPO,
    ImportanceSampling,
    discounted,
    policy_gradient,
    reverse_kl_advantages,
    value_and_slope,
)

V, T = 3, 3
SEQUENCES = list(itertools.product(range(V), repeat=T))


def tree_logits(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Free logits at every prefix: any distribution over all sequences of T tokens out of V."""
    gen = torch.Generator().manual_seed(seed)
    prefixes = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
    return {p: torch.randn(V, generator=gen, dtype=torch.float64, requires_grad=True) for p in prefixes}


def token_logprobs(logits, sequence) -> torch.Tensor:
    return torch.stack([logits[sequence[:t]].log_softmax(-1)[sequence[t]] for t in range(T)])


def gradient(value, logits) -> torch.Tensor:
    grads = torch.autograd.grad(value, list(logits.values()), allow_unused=True)
    return torch.cat([torch.zeros(V, dtype=torch.float64) if g is None else g for g in grads])


@pytest.fixture
def policies():
    return tree_logits(1), tree_logits(2), tree_logits(3)


def expected_loss_gradient(student, teacher, sampler, objective, coef=1.0, discount=0.0):
    """E over samples of the gradient that the objective gives, each sequence weighed by the sampler's probability."""
    total = torch.zeros(len(student) * V, dtype=torch.float64)
    for sequence in SEQUENCES:
        s, q = token_logprobs(student, sequence), token_logprobs(teacher, sequence).detach()
        b = token_logprobs(sampler, sequence).detach()
        delta = discounted(s - q, [T], discount) if discount else s - q
        advantages = reverse_kl_advantages(delta, coef)
        total += b.sum().exp() * gradient(objective(s, advantages, b), student)
    return total


def sequence_kl(student, teacher):
    """KL(p‖q) over whole sequences, by enumeration."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence in SEQUENCES:
        s, q = token_logprobs(student, sequence), token_logprobs(teacher, sequence).detach()
        total = total + s.sum().exp() * (s.sum() - q.sum())
    return total


def per_position_kl(student, teacher, sampler):
    """Σ_t E_{prefix ~ sampler} KL(p(·|prefix)‖q(·|prefix)): what each token answers for at γ = 0.

    The sampler decides which prefixes are visited and is held fixed.
    """
    total = torch.zeros((), dtype=torch.float64)
    for prefix, logits in student.items():
        visited = torch.ones((), dtype=torch.float64)
        for t in range(len(prefix)):
            visited = visited * sampler[prefix[:t]].softmax(-1)[prefix[t]].detach()
        s, q = logits.log_softmax(-1), teacher[prefix].log_softmax(-1).detach()
        total = total + visited * (s.exp() * (s - q)).sum()
    return total


def test_policy_gradient_on_its_own_samples_descends_the_per_position_reverse_kl(policies):
    student, teacher, _ = policies
    found = expected_loss_gradient(student, teacher, student, policy_gradient)
    oracle = gradient(per_position_kl(student, teacher, student), student)
    torch.testing.assert_close(found, oracle, rtol=1e-10, atol=1e-12)
    assert oracle.norm() > 0.1


def test_discount_one_is_the_gradient_of_the_sequence_kl(policies):
    student, teacher, _ = policies
    found = expected_loss_gradient(student, teacher, student, policy_gradient, discount=1.0)
    torch.testing.assert_close(found, gradient(sequence_kl(student, teacher), student), rtol=1e-10, atol=1e-12)


def test_coefficient_scales_the_gradient(policies):
    student, teacher, _ = policies
    once = expected_loss_gradient(student, teacher, student, policy_gradient)
    thrice = expected_loss_gradient(student, teacher, student, policy_gradient, coef=3.0)
    torch.testing.assert_close(thrice, 3 * once)


def test_importance_sampling_corrects_for_another_sampler_token_by_token(policies):
    """r_t corrects the choice at t; the prefixes stay the sampler's, which is the per-token form's known bias."""
    student, teacher, sampler = policies
    oracle = gradient(per_position_kl(student, teacher, sampler), student)
    found = expected_loss_gradient(student, teacher, sampler, ImportanceSampling(cap=1e9))
    torch.testing.assert_close(found, oracle, rtol=1e-10, atol=1e-12)
    uncorrected = expected_loss_gradient(student, teacher, sampler, policy_gradient)
    assert (uncorrected - oracle).norm() > 0.1 * oracle.norm()


@pytest.mark.parametrize("objective", [ImportanceSampling(10.0), PPO(0.2)])
def test_ratio_losses_equal_policy_gradient_when_the_sampler_is_the_student(policies, objective):
    student, teacher, _ = policies
    found = expected_loss_gradient(student, teacher, student, objective)
    torch.testing.assert_close(found, expected_loss_gradient(student, teacher, student, policy_gradient))


def test_importance_sampling_cap_gives_no_gradient_beyond_it():
    s = torch.tensor([0.0, -1.0], requires_grad=True)
    loss = ImportanceSampling(2.0)(s, torch.tensor([1.0, 1.0]), torch.tensor([-3.0, -1.0]))
    assert loss.item() == pytest.approx(-(2.0 + 1.0))
    loss.backward()
    assert s.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "slope"),
    [
        (0.5, 1.0, 1.2, 0.0),  # too likely already, and good: clipped
        (0.5, -1.0, -(2.718281828**0.5), -(2.718281828**0.5)),  # too likely, and bad: pushed down in full
        (-0.5, 1.0, 2.718281828**-0.5, 2.718281828**-0.5),  # unlikely, and good: pulled up in full
        (-0.5, -1.0, -0.8, 0.0),  # unlikely already, and bad: clipped
    ],
)
def test_ppo_clips_only_what_has_gone_far_enough(log_ratio, advantage, value, slope):
    s = torch.tensor([log_ratio], requires_grad=True)
    loss = PPO(0.2)(s, torch.tensor([advantage]), torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(-value, rel=1e-6)
    assert s.grad.item() == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize("discount", [0.3, 0.99, 1.0])
def test_discounted_advantages_equal_the_definition_and_stay_in_their_rollout(discount):
    lengths = [4, 1, 0, 7]
    gen = torch.Generator().manual_seed(0)
    s, q = (torch.randn(sum(lengths), generator=gen, dtype=torch.float64) for _ in range(2))
    expected, start = [], 0
    for length in lengths:
        delta = (s - q)[start : start + length].tolist()
        expected += [-2.0 * sum(discount ** (u - t) * delta[u] for u in range(t, length)) for t in range(length)]
        start += length
    found = reverse_kl_advantages(discounted(s - q, lengths, discount), 2.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_advantages_carry_no_gradient():
    assert not reverse_kl_advantages(torch.zeros(3, requires_grad=True), 1.0).requires_grad


@pytest.mark.parametrize("objective", [policy_gradient, ImportanceSampling(1.1), PPO(0.2)])
def test_slopes_are_the_derivative_of_the_loss(objective):
    gen = torch.Generator().manual_seed(0)
    s, a, b = (torch.randn(9, generator=gen, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        value, slope = value_and_slope(objective, s, a, b)
    step = 1e-6
    for t in range(9):
        nudge = torch.zeros_like(s)
        nudge[t] = step
        numeric = (objective(s + nudge, a, b) - objective(s - nudge, a, b)) / (2 * step)
        assert slope[t].item() == pytest.approx(numeric.item(), abs=1e-6)
    assert value == objective(s, a, b)
    assert not value.requires_grad
    assert not slope.requires_grad
