"""Contracts 1, 2, 4 and the update: against the dense formula and plain torch."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from local_distill.batch import SampledLogprobs, ScoredBatch, TeacherView
from local_distill.errors import UserError
from local_distill.head.divergences import JensenShannon, forward_kl, reverse_kl
from local_distill.losses.loss import SampledTokenLoss, TopTokensLoss, WholeDistributionLoss
from local_distill.losses.sampled_token import PPO, ImportanceSampling, policy_gradient
from local_distill.models.files import open_model
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.training.batching import MicroBatches, collate, split_by_length, split_substeps
from local_distill.training.device_memory import SmallerMicroBatches
from local_distill.training.learner import MAX_SKIPPED, DivergedError, Learner
from local_distill.training.optimizer import ADAM_BETA1, ADAM_EPS, learning_rate_at, make_updates
from tests.models.test_scorer import V, dense
from tests.tiny_models import gpt2_config, llama_config, make_model, make_tokenizer, save_model
from tests.training.test_batching import rollout

ROLLOUTS = [
    rollout([5, 6], [7, 8, 0], 0), rollout([5, 6], [9], 0), rollout([9], [10, 11, 12, 13, 14, 15], 1, "length"),
    rollout([9], [], 1), rollout([1, 2, 3, 4, 5], [6, 7], 2), rollout([4, 3], [2, 0], 3),
]  # fmt: skip


def sampled(objective, coef=1.0, discount=0.0):
    later = ImportanceSampling(10.0) if objective is policy_gradient else objective
    return SampledTokenLoss(objective, later, coef, discount)


class Training:
    """A student, its teacher and its learner, put together as the entry point does."""

    def __init__(self, student, teacher, *, loss=None, rate=1e-2, clip=0.0):
        self.micro_batches, self.said = MicroBatches(), []
        self.accelerator = Accelerator(cpu=True)
        self.scorer = TokenScorer(student, V)
        loss = loss or sampled(policy_gradient)
        judge = TokenScorer(teacher, V)
        self.teacher = {
            TeacherView.tokens: lambda: LocalTeacher(judge, self.accelerator.device),
            TeacherView.top_tokens: lambda: TopTokensTeacher(judge, self.accelerator.device, 7),
            TeacherView.whole_distribution: lambda: WholeDistributionTeacher(judge, self.accelerator.device),
        }[loss.needs]()
        self.updates = make_updates(self.accelerator, self.scorer, weight_decay=0.0, max_grad_norm=clip)
        self.learner = Learner(
            self.accelerator,
            self.updates,
            loss,
            lambda _: rate,
            0,
            SmallerMicroBatches(self.micro_batches, self.said.append),
        )

    def step(self, substeps, step=0):
        return self.learner.update([[self.teacher.score(b) for b in batches] for batches in substeps], step)

    def weights(self):
        return {n: p.detach().clone() for n, p in self.scorer.named_parameters()}


def differences(before, after):
    return {n: (before[n] - after[n]).abs().max().item() for n in before}


@pytest.mark.parametrize("config", [llama_config(), gpt2_config()], ids=["llama", "gpt2 with its dropout"])
def test_teacher_equal_to_student_gives_zero_divergence_and_an_unchanged_student(config, tmp_path):
    folder = str(save_model(tmp_path / "model", config, make_tokenizer()))
    student, teacher = (open_model("--student_model", folder, False).load(torch.float32) for _ in range(2))
    training = Training(student, teacher)
    before = training.weights()
    metrics = training.step([[collate(ROLLOUTS, 0)]])
    assert abs(metrics["reverse_kl"]) < 1e-6
    assert abs(metrics["loss"]) < 1e-6
    assert metrics["grad_norm"] < 1e-5
    # Adam divides by the gradient's own size, so even rounding would move weights by the learning rate: none may.
    assert max(differences(before, training.weights()).values()) == 0.0


def dense_gradient(student, teacher, coef, discount):
    """−(1/N) Σ A_t s_t over every completion token, written out rollout by rollout with plain logits."""
    total, tokens = torch.zeros(()), 0
    for r in ROLLOUTS:
        if len(r.completion) == 0:
            continue
        s, q = dense(student, [r]), dense(teacher, [r]).detach()
        delta = (s - q).detach()
        for t in range(len(s)):
            future = sum(discount ** (u - t) * delta[u] for u in range(t, len(s))) if discount else delta[t]
            total = total + coef * future * s[t]
        tokens += len(s)
    student.zero_grad()
    (total / tokens).backward()
    return {n: p.grad.clone() for n, p in student.named_parameters()}


@pytest.mark.parametrize(("coef", "discount"), [(1.0, 0.0), (0.5, 0.9)])
def test_one_update_is_adam_on_the_dense_loss(coef, discount):
    reference, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    gradient = dense_gradient(reference, teacher, coef, discount)
    optimizer = torch.optim.AdamW(
        reference.parameters(), lr=1e-2, betas=(ADAM_BETA1, 0.999), eps=ADAM_EPS, weight_decay=0.0
    )
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    optimizer.step()
    training = Training(make_model(llama_config(), 1), teacher, loss=sampled(policy_gradient, coef, discount), clip=0.1)
    metrics = training.step([[collate(ROLLOUTS, 0)]])
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    expected = {f"model.{n}": p.detach() for n, p in reference.named_parameters()}
    moved = differences(
        expected, {f"model.{n}": p.detach() for n, p in make_model(llama_config(), 1).named_parameters()}
    )
    assert min(moved.values()) > 5e-3, "the update must be much larger than the tolerance"
    # Adam's first step is rate · sign(gradient): compare where the gradient is not lost in rounding.
    for name, weight in training.weights().items():
        clear = gradient[name.removeprefix("model.")].abs() > 1e-6
        torch.testing.assert_close(weight[clear], expected[name][clear], rtol=0, atol=2e-4)


def gradients_of(batches, loss):
    training = Training(make_model(llama_config(), 1), make_model(llama_config(), 2), loss=loss)
    scored = [training.teacher.score(batch) for batch in batches]
    training.learner._backward_all(scored, substep=0)
    return {n: p.grad.clone() for n, p in training.scorer.named_parameters()}


def padded(batch, extra):
    """The same batch with more padding on the right."""
    from dataclasses import replace

    rows, width = batch.input_ids.shape
    wide = torch.zeros(rows, extra, dtype=torch.long)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, wide], 1),
        attention_mask=torch.cat([batch.attention_mask, wide], 1),
        predictors=batch.predictors // width * (width + extra) + batch.predictors % width,
    )


@pytest.mark.parametrize(
    "loss",
    [
        sampled(policy_gradient, 1.0, 0.7),
        sampled(ImportanceSampling(10.0)),
        sampled(PPO(0.2)),
        WholeDistributionLoss(reverse_kl),
        WholeDistributionLoss(forward_kl, 1.0, 5),
        TopTokensLoss(JensenShannon(0.5)),
    ],
    ids=["policy_gradient", "importance_sampling", "ppo", "reverse_kl", "forward_kl, student's top", "jsd, top"],
)
@pytest.mark.parametrize(
    "cut",
    [
        lambda: [collate(part, 0) for part in split_by_length(ROLLOUTS, 2)],
        lambda: [collate([r], 0) for r in ROLLOUTS],
        lambda: [collate(ROLLOUTS[::-1], 0)],
        lambda: [padded(collate(ROLLOUTS, 0), 5)],
        lambda: [collate(part, 0) for part in split_by_length(ROLLOUTS, 9)],  # more micro-batches than rollouts
    ],
    ids=["two", "singles", "reversed", "padded", "empty ones too"],
)
def test_the_gradient_does_not_depend_on_micro_batches_padding_or_order(loss, cut):
    whole, parts = gradients_of([collate(ROLLOUTS, 0)], loss), gradients_of(cut(), loss)
    for name in whole:
        error = (whole[name] - parts[name]).norm() / whole[name].norm()
        assert error < 1e-5, (name, error)


def test_exact_reverse_kl_has_the_gradient_and_the_value_of_the_dense_formula():
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    exact, divergences = WholeDistributionLoss(reverse_kl), []
    for r in ROLLOUTS:
        ids = torch.cat([torch.tensor(r.prompt.ids), r.completion])
        visited = slice(len(r.prompt.ids) - 1, len(ids) - 1)
        p, q = (m(input_ids=ids[None]).logits[0, visited].log_softmax(-1) for m in (student, teacher))
        divergences.append((p.exp() * (p - q.detach())).sum(-1))
    expected = torch.cat(divergences).mean()
    expected.backward()
    found = gradients_of([collate(part, 0) for part in split_by_length(ROLLOUTS, 2)], exact)
    for name, parameter in student.named_parameters():
        error = (found[f"model.{name}"] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-4, name
    metrics = Training(make_model(llama_config(), 1), teacher, loss=exact).step([[collate(ROLLOUTS, 0)]])
    assert metrics["reverse_kl"] == pytest.approx(expected.item(), rel=1e-4)
    same = Training(make_model(llama_config(), 1), make_model(llama_config(), 1), loss=exact)
    assert abs(same.step([[collate(ROLLOUTS, 0)]])["reverse_kl"]) < 1e-6


def test_metrics_are_sums_divided_once():
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    delta = (dense(student, ROLLOUTS) - dense(teacher, ROLLOUTS)).detach()
    expected_loss = (delta * dense(student, ROLLOUTS).detach()).mean().item()
    metrics = Training(student, teacher).step([[collate(part, 0) for part in split_by_length(ROLLOUTS, 4)]])
    assert metrics["reverse_kl"] == pytest.approx(delta.mean().item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-4)
    assert metrics["skipped"] == 0.0


def test_later_substeps_weigh_their_samples_by_how_far_the_policy_has_moved():
    """Policy gradient with two substeps: the second is importance sampling against the student before the first."""

    def plan():
        return split_substeps(
            ROLLOUTS,
            batch_size=4,
            group_size=2,
            num_substeps=2,
            grad_accum=1,
            num_processes=1,
            pad_id=0,
            micro_batches=MicroBatches(),
        )

    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    training = Training(student, teacher)
    training.step(plan())

    by_hand = Training(make_model(llama_config(), 1), teacher)
    first, second = [[by_hand.teacher.score(b) for b in batches] for batches in plan()]
    with torch.no_grad():
        second = [replace(b, old_logprobs=by_hand.scorer(b.tokens).logprobs) for b in second]
    by_hand.learner.update([first], 0)
    sums = by_hand.learner._backward_all(second, substep=1)
    by_hand.updates.apply(1e-2, math.isfinite(sums["loss"]))
    assert max(differences(training.weights(), by_hand.weights()).values()) == 0.0

    uncorrected = Training(make_model(llama_config(), 1), teacher)
    for batches in plan():
        uncorrected.step([batches])
    assert max(differences(training.weights(), uncorrected.weights()).values()) > 1e-4


@pytest.mark.parametrize("loss", [None, WholeDistributionLoss(reverse_kl)], ids=["sampled tokens", "whole"])
def test_a_second_epoch_goes_over_the_same_rollouts_again(loss):
    """By hand: an update, then another one on the same samples, with ratios against the student before the first."""

    def training():
        return Training(make_model(llama_config(), 1), make_model(llama_config(), 2), loss=loss)

    twice = training()
    twice.learner._epochs = 2
    metrics = twice.step([[collate(ROLLOUTS, 0)]])

    by_hand = training()
    batch = by_hand.teacher.score(collate(ROLLOUTS, 0))
    if loss is None:
        with torch.no_grad():
            batch = replace(batch, old_logprobs=by_hand.scorer(batch.tokens).logprobs)
    first = by_hand.learner.update([[batch]], 0)
    sums = by_hand.learner._backward_all([batch], substep=1)
    by_hand.updates.apply(1e-2, math.isfinite(sums["loss"]))
    assert max(differences(twice.weights(), by_hand.weights()).values()) == 0.0
    assert twice.updates.version == 2

    of_the_samples = {name: value for name, value in first.items() if not name.startswith(("ratio", "grad_norm"))}
    assert {name: metrics[name] for name in of_the_samples} == of_the_samples
    if loss is None:
        assert metrics["ratio/mean"] == pytest.approx(sums["ratio"] / sums["tokens"])
        assert metrics["ratio/effective"] < 1 - 1e-6 < first["ratio/effective"], "the policy has moved since"


def test_a_bad_update_is_skipped_and_several_in_a_row_stop_the_run():
    training = Training(make_model(llama_config(), 1), make_model(llama_config(), 2))
    good = training.teacher.score(collate(ROLLOUTS, 0))
    bad = ScoredBatch(good.tokens, SampledLogprobs(torch.full_like(good.signal.logprobs, -math.inf)))
    before = training.weights()
    for _ in range(MAX_SKIPPED - 1):
        assert training.learner.update([[bad]], 0)["skipped"] == 1.0
    assert max(differences(before, training.weights()).values()) == 0.0
    versions = training.updates.version
    assert training.learner.update([[good]], 0)["skipped"] == 0.0, "a good one in between starts the count again"
    assert (versions, training.updates.version) == (0, 1), "only what was applied makes new weights"
    assert all(w.isfinite().all() for w in training.weights().values())
    for _ in range(MAX_SKIPPED - 1):
        training.learner.update([[bad]], 0)
    with pytest.raises(DivergedError, match=f"{MAX_SKIPPED} updates in a row"):
        training.learner.update([[bad]], 0)


def test_weight_decay_spares_norms_and_biases():
    accelerator = Accelerator(cpu=True)
    scorer = TokenScorer(make_model(gpt2_config()), V)
    updates = make_updates(accelerator, scorer, weight_decay=0.5, max_grad_norm=0.0)
    before = {n: p.detach().clone() for n, p in scorer.named_parameters()}
    for p in scorer.parameters():
        p.grad = torch.zeros_like(p)
    updates.apply(0.1, loss_is_finite=True)
    for name, parameter in scorer.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_learning_rate_over_a_run():
    def rates(scheduler, warmup):
        return [learning_rate_at(s, peak=1.0, total=6, warmup=warmup, scheduler=scheduler) for s in range(6)]

    assert rates("constant", 0) == [1.0] * 6
    assert rates("constant", 2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear", 2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert rates("cosine", 0) == pytest.approx([0.5 * (1 + math.cos(math.pi * s / 6)) for s in range(6)])


@pytest.mark.parametrize(("scheduler", "warmup"), [("linear", 2), ("cosine", 0), ("constant", 1), ("linear", 9)])
def test_a_learning_rate_that_has_come_to_its_end_stays_there(scheduler, warmup):
    rate = partial(learning_rate_at, peak=1.0, total=6, warmup=warmup, scheduler=scheduler)
    last = max(5, warmup)
    assert [rate(step) for step in range(last, 30)] == [rate(last)] * (30 - last)
    assert rate(last) > 0


class SmallMemory(torch.nn.Module):
    """A student that runs out of memory in backward, as a GPU does, on batches of more than ``most`` tokens."""

    def __init__(self, scorer, most):
        super().__init__()
        self.scorer, self.most, self.sizes = scorer, most, []

    def forward(self, batch, *reading):
        self.sizes.append(batch.input_ids.numel())
        loss, stats = self.scorer(batch, *reading)
        if self.sizes[-1] > self.most:
            loss.register_hook(self._fail)
        return loss, stats

    def _fail(self, _):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("loss", ["sampled", "whole", "top"])
def test_a_step_that_runs_out_of_memory_is_done_again_in_halves_with_the_same_result(loss):
    make = {
        "sampled": lambda: sampled(policy_gradient, discount=0.5),
        "whole": lambda: WholeDistributionLoss(reverse_kl),
        "top": lambda: TopTokensLoss(reverse_kl),
    }[loss]
    teacher = make_model(llama_config(), 2)
    plain, tight = (Training(make_model(llama_config(), 1), teacher, loss=make()) for _ in range(2))
    expected = plain.step([[collate(ROLLOUTS, 0)]])
    whole = collate(ROLLOUTS, 0).input_ids.numel()
    tight.updates.student = SmallMemory(tight.updates.student, most=whole // 3)
    found = tight.step([[collate(ROLLOUTS, 0)]])

    assert tight.updates.student.sizes[0] == whole
    assert len(tight.said) == 2, "halved twice"
    assert "--microbatch_tokens" in tight.said[0]
    assert tight.micro_batches.most_tokens <= whole // 4, "later steps start with what fitted"
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in plain.weights().items():
        torch.testing.assert_close(tight.weights()[name], value, rtol=1e-4, atol=1e-5)


def test_a_rollout_that_does_not_fit_by_itself_ends_the_run_in_one_line():
    training = Training(make_model(llama_config(), 1), make_model(llama_config(), 2))
    training.updates.student = SmallMemory(training.updates.student, most=1)
    with pytest.raises(UserError, match="a single rollout of 7 tokens; add --gradient_checkpointing"):
        training.step([[collate(ROLLOUTS, 0)]])


def test_several_processes_cannot_go_back():
    training = Training(make_model(llama_config(), 1), make_model(llama_config(), 2))
    batch = training.teacher.score(collate(ROLLOUTS, 0))
    with pytest.raises(UserError, match=r"^--microbatch_tokens: .* give \d+$"):
        SmallerMicroBatches(MicroBatches(), print).cut([batch], can_start_over=False)


def test_a_batch_of_one_long_prompt_is_cut_in_two_and_not_to_pieces():
    training = Training(make_model(llama_config(), 1), make_model(llama_config(), 2))
    group = [rollout(list(range(1, 61)), [i, 2, 3]) for i in range(1, 9)]
    batch = training.teacher.score(collate(group, 0, share=True))
    assert batch.tokens.tokens_read == 60 + 8 * 2
    micro_batches = MicroBatches()
    halves = SmallerMicroBatches(micro_batches, lambda _: None).cut([batch], can_start_over=True)
    assert [each.tokens.tokens_read for each in halves] == [60 + 4 * 2] * 2
    assert micro_batches.most_tokens == 68
