"""Contracts 4 and 5: every loss, values and gradients, against its definition written with all logits at once."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from local_distill.batch import HeadStates, SampledLogprobs, ScoredBatch, TeacherView, TokenBatch, TopLogprobs
from local_distill.head.divergences import JensenShannon, forward_kl, reverse_kl
from local_distill.head.logprobs import Head, TopTokens, read_tokens, read_top_tokens
from local_distill.losses.loss import SampledTokenLoss, TopTokensLoss, WholeDistributionLoss, summarise
from local_distill.losses.registry import make_loss
from local_distill.losses.sampled_token import PPO, ImportanceSampling, policy_gradient

N, H, V, ROWS, K = 23, 8, 50, 57, 6
LENGTHS = (10, 0, 1, 12)


@dataclass
class Case:
    """A student's and a teacher's states and heads, of different widths and paddings, and sampled tokens."""

    hidden: torch.Tensor
    head: Head
    teacher: HeadStates
    tokens: TokenBatch
    sampled: SampledLogprobs
    top: TopTokens
    behaviour: torch.Tensor

    @property
    def leaves(self):
        return [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None and x.requires_grad]

    def run(self, loss, substep=0):
        signals = {
            TeacherView.tokens: self.sampled,
            TeacherView.top_tokens: TopLogprobs(self.sampled.logprobs, self.sampled.entropy, top=self.top),
            TeacherView.whole_distribution: self.teacher,
        }
        batch = ScoredBatch(self.tokens, signals[loss.needs], self.behaviour)
        return loss.reading(batch, substep)(self.hidden, self.head, self.tokens.targets)


def make_case(dtype=torch.float64, *, bias=False, scale=1.0, softcap=None, tied=False, n=N):
    gen = torch.Generator().manual_seed(1)

    def random(*shape, size=1.0):
        return (torch.randn(*shape, generator=gen, dtype=torch.float64) * size).to(dtype)

    hidden, weight = random(n, H).requires_grad_(), random(ROWS, H).requires_grad_()
    offset = random(ROWS).requires_grad_() if bias else None
    teacher = HeadStates(random(n, 2 * H, size=0.5), Head(random(V + 3, 2 * H), V, softcap=5.0))
    if tied:  # the head's weight is used elsewhere too: its gradients must add up
        hidden = (weight[torch.arange(n) % V] * 0.9).detach().requires_grad_()
    targets = torch.randint(V, (n,), generator=gen)
    tokens = TokenBatch(*(torch.zeros(1, 1, dtype=torch.long),) * 2, torch.zeros(n), targets, torch.zeros(n), LENGTHS)
    reading = read_tokens(teacher.hidden, teacher.head, targets)
    top = read_top_tokens(teacher.hidden, teacher.head, K)
    sampled = SampledLogprobs(*reading)
    behaviour = dense_logprobs(hidden, Head(weight, V, offset, scale, softcap))[torch.arange(n), targets].detach()
    behaviour = (behaviour + torch.randn(n, generator=gen, dtype=torch.float64) * 0.4).to(reading.logprobs.dtype)
    return Case(hidden, Head(weight, V, offset, scale, softcap), teacher, tokens, sampled, top, behaviour)


def dense_logprobs(hidden, head):
    """The definition of a head, in float64, all positions at once."""
    logits = hidden.double() @ head.weight[:V].double().t()
    logits = logits + (0 if head.bias is None else head.bias[:V].double())
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def dense_divergence(name, p, q):
    """The three definitions, on probabilities, for autograd to differentiate."""
    if name == "reverse_kl":
        return kl(p, q)
    if name == "forward_kl":
        return kl(q, p)
    beta = float(name.removeprefix("jsd "))
    mixture = beta * q + (1 - beta) * p
    return beta * kl(q, mixture) + (1 - beta) * kl(p, mixture)


def merged(probs, support):
    """k outcomes and the rest, by a mask."""
    inside = torch.zeros_like(probs, dtype=torch.bool).scatter(1, support, True)
    return torch.cat([probs.gather(1, support), probs.masked_fill(inside, 0.0).sum(1, keepdim=True)], 1)


DIVERGENCES = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jsd 0.5": JensenShannon(0.5),
    "jsd 0.1": JensenShannon(0.1),
}


def dense_whole(case, name, support=None):
    p, q = dense_logprobs(case.hidden, case.head).exp(), dense_logprobs(case.teacher.hidden, case.teacher.head).exp()
    if support is not None:
        ids = (p if support == "student" else q).topk(K).indices
        p, q = merged(p, ids), merged(q, ids)
    return dense_divergence(name, p, q)


def dense_sampled(case, kind, coef=1.0, discount=0.0):
    """The sampled-token losses, token by token."""
    targets = case.tokens.targets
    s = dense_logprobs(case.hidden, case.head)[torch.arange(len(targets)), targets]
    delta = (s - case.sampled.logprobs.double()).detach()
    advantages, start = torch.zeros_like(delta), 0
    for length in LENGTHS:
        for t in range(start, start + length):
            advantages[t] = -coef * sum(discount ** (u - t) * delta[u] for u in range(t, start + length))
        start += length
    ratio = (s - case.behaviour.double()).exp()
    if kind == "policy_gradient":
        return -(advantages * s)
    if kind == "importance_sampling":
        return -(ratio.clamp(max=1.3) * advantages)
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def assert_same(found, expected, leaves, tolerance):
    """The total and its gradients, compared by norm in float64; the upstream factor is not one."""
    assert abs(found.double() - expected) <= tolerance * max(1.0, abs(expected))
    ours = torch.autograd.grad(found * 0.37, leaves)
    theirs = torch.autograd.grad(expected * 0.37, leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 1e-3
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "all of them": {"bias": True, "scale": 0.3, "softcap": 2.0},
    "tied": {"tied": True},
}
EXACT, LOW = 1e-10, {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.fixture(params=[1, 4, 1000], ids=lambda rows: f"chunks of {rows}")
def chunk_rows(request, monkeypatch):
    monkeypatch.setattr("local_distill.head.logprobs.LEAST_ROWS", 1)
    monkeypatch.setattr("local_distill.head.logprobs.LOGITS_PER_CHUNK_ELSEWHERE", request.param * V)
    return request.param


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_whole_distributions(name, head):
    case = make_case(**HEADS[head])
    found = case.run(WholeDistributionLoss(DIVERGENCES[name], coef=0.7))
    assert_same(found.total, 0.7 * dense_whole(case, name).sum(), case.leaves, EXACT)


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_top_tokens_and_a_tail(name, support):
    case = make_case(bias=True, softcap=3.0)
    divergence = DIVERGENCES[name]
    loss = TopTokensLoss(divergence, 0.7) if support == "teacher" else WholeDistributionLoss(divergence, 0.7, K)
    expected = dense_whole(case, name, support)
    assert_same(case.run(loss).total, 0.7 * expected.sum(), case.leaves, EXACT)
    assert (expected <= dense_whole(case, name) + 1e-12).all(), "merging outcomes can only bring them nearer"


SAMPLED = {
    "policy_gradient": policy_gradient,
    "importance_sampling": ImportanceSampling(1.3),
    "ppo": PPO(0.2),
}


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("head", ["plain", "all of them", "tied"])
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_tokens(name, head, discount):
    case = make_case(**HEADS[head])
    loss = SampledTokenLoss(SAMPLED[name], SAMPLED[name], 0.7, discount)
    assert_same(case.run(loss).total, dense_sampled(case, name, 0.7, discount).sum(), case.leaves, EXACT)


def test_later_substeps_have_an_objective_of_their_own():
    case = make_case()
    loss = SampledTokenLoss(policy_gradient, ImportanceSampling(1.3), 1.0, 0.0)
    assert_same(case.run(loss, substep=1).total, dense_sampled(case, "importance_sampling").sum(), case.leaves, EXACT)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["policy_gradient", *DIVERGENCES, "jsd 0.5 top"])
def test_low_precision_stays_near_the_float64_oracle(name, dtype):
    case = make_case(dtype)
    if name == "policy_gradient":
        loss, expected = SampledTokenLoss(policy_gradient, policy_gradient, 1.0, 0.0), dense_sampled(case, name)
    elif name.endswith("top"):
        case = replace(case, top=read_top_tokens(case.teacher.hidden, case.teacher.head, K))
        loss, expected = TopTokensLoss(JensenShannon(0.5)), dense_whole(case, "jsd 0.5", "teacher")
    else:
        loss, expected = WholeDistributionLoss(DIVERGENCES[name]), dense_whole(case, name)
    found = case.run(loss)
    assert found.total.dtype == torch.float32
    assert_same(found.total, expected.sum(), case.leaves, LOW[dtype])
    assert all(g.dtype == dtype for g in torch.autograd.grad(case.run(loss).total, case.leaves))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_models_are_at_no_distance_and_feel_no_pull(name):
    case = make_case(torch.float32)
    same = HeadStates(case.hidden.detach(), Head(case.head.weight.detach(), V))
    top = read_top_tokens(same.hidden, same.head, K)
    case = replace(case, teacher=same, top=top)
    for loss in (WholeDistributionLoss(DIVERGENCES[name]), TopTokensLoss(DIVERGENCES[name])):
        found = case.run(loss)
        assert abs(found.total) < 1e-6 * N
        assert max(g.abs().max() for g in torch.autograd.grad(found.total, case.leaves)) < 1e-5


def test_the_tail_of_a_peaked_distribution_keeps_its_digits():
    """1 − Σ p would be zero or negative here; the tail is summed from its own tokens."""
    head = Head(torch.eye(V), V)
    hidden = torch.zeros(1, V)
    hidden[0, :K] = 30.0
    found = read_top_tokens(hidden, head, K)
    expected = math.log((V - K) / ((V - K) + K * math.exp(30.0)))
    assert found.logprobs[0, -1].item() == pytest.approx(expected, rel=1e-5)
    assert sorted(found.ids[0].tolist()) == list(range(K))


def test_stats_are_what_their_names_say():
    case = make_case()
    p, q = dense_logprobs(case.hidden, case.head), dense_logprobs(case.teacher.hidden, case.teacher.head)
    index = torch.arange(N), case.tokens.targets
    delta = (p[index] - q[index]).detach()
    ratio = (p[index].detach() - case.behaviour).exp()
    entropies = {"entropy": -(p.exp() * p).sum(1), "teacher_entropy": -(q.exp() * q).sum(1)}
    top = [len(set(a.tolist()) & set(b.tolist())) / 8 for a, b in zip(p.topk(8)[1], q.topk(8)[1], strict=True)]
    whole = {"reverse_kl": (p.exp() * (p - q)).sum(1), **entropies, "top_overlap": torch.tensor(top).double()}
    sampled = {
        "reverse_kl": delta,
        "k3": (-delta).exp() - 1 + delta,
        **entropies,
        "ratio": ratio,
        "ratio_squared": ratio**2,
        "ratio_clipped": (ratio > 1.3).double(),
    }
    found = case.run(WholeDistributionLoss(forward_kl)).stats
    assert found.keys() == whole.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected.detach(), msg=name)
    found = case.run(SampledTokenLoss(ImportanceSampling(1.3), policy_gradient, 1.0, 0.0)).stats
    assert found.keys() == sampled.keys()
    assert 0 < sampled["ratio_clipped"].sum() < N
    assert found["k3"].min() >= 0
    for name, expected in sampled.items():
        torch.testing.assert_close(found[name], expected.detach(), msg=name)
    top_stats = case.run(TopTokensLoss(reverse_kl)).stats
    assert top_stats.keys() == {"reverse_kl", "k3", "top_overlap", *entropies}


def test_ratios_are_summarised_by_their_effective_share():
    equal = summarise({"reverse_kl": 1.0, "ratio": 2.0, "ratio_squared": 4.0, "ratio_clipped": 0.25})
    assert equal == {"reverse_kl": 1.0, "ratio/mean": 2.0, "ratio/effective": 1.0, "ratio/clipped": 0.25}
    one_of_four = summarise({"ratio": 1.0, "ratio_squared": 4.0, "ratio_clipped": 0.0})
    assert one_of_four["ratio/effective"] == 0.25
    assert summarise({"reverse_kl": 1.0}) == {"reverse_kl": 1.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "policy_gradient"}, SampledTokenLoss(policy_gradient, "weighed", 2.0, 0.0)),
        ({"loss": "reverse_kl"}, WholeDistributionLoss(reverse_kl, 2.0)),
        ({"loss": "jsd"}, WholeDistributionLoss(JensenShannon(0.25), 2.0)),
        ({"loss": "forward_kl", "top_k": 5}, TopTokensLoss(forward_kl, 2.0)),
        ({"loss": "jsd", "top_k": 5, "top_k_support": "student"}, WholeDistributionLoss(JensenShannon(0.25), 2.0, 5)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_settings_choose_the_loss(settings, expected):
    defaults = {
        "kl_coef": 2.0, "kl_discount": 0.0, "ratio_cap": 3.0, "ppo_clip": 0.1, "jsd_beta": 0.25, "top_k": None,
        "top_k_support": "teacher",
    }  # fmt: skip
    found = make_loss(**{**defaults, **settings})
    if isinstance(found, SampledTokenLoss):
        assert (found.later.cap, found.uses_old_logprobs) == (3.0, True)
        found = replace(found, later="weighed")
    assert found == expected
    sampled = {name: make_loss(**{**defaults, "loss": name}) for name in ("importance_sampling", "ppo")}
    assert sampled["importance_sampling"].objective.cap == 3.0
    assert sampled["ppo"].objective.clip == sampled["ppo"].later.clip == 0.1
    assert not any(loss.uses_old_logprobs for loss in sampled.values())


def test_samples_that_are_old_get_the_ratio_that_corrects_for_it():
    settings = {"kl_coef": 1.0, "kl_discount": 0.0, "ratio_cap": 3.0, "ppo_clip": 0.2, "jsd_beta": 0.5, "top_k": None}
    fresh, old = (make_loss("policy_gradient", **settings, top_k_support="teacher", stale=s) for s in (False, True))
    assert (fresh.objective, fresh.uses_old_logprobs) == (policy_gradient, True)
    assert isinstance(old.objective, ImportanceSampling)
    assert old.objective is old.later
    assert not old.uses_old_logprobs, "the ratio is taken against what the tokens were drawn with"
