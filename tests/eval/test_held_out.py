"""Held-out evaluation against enumeration and the dense formula."""

import math
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from local_distill.batch import Prompt
from local_distill.eval.held_out import DRAW, SHOWN, HeldOutEvaluator, NoEvaluation
from local_distill.eval.statistics import Total, mean_per_token
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.scorer import TokenScorer
from local_distill.process.interruption import NeverStopped
from local_distill.rollouts.hf import HFRollouts
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.training.batching import MicroBatches
from tests.models.test_scorer import V, dense
from tests.tiny_models import llama_config, make_model, make_tokenizer

GREEDY = NucleusSampling(1.0, 1e-9)
PROMPTS = [Prompt((5 + i, 6, 7 + 2 * i), f"prompt {i}", f"test:{i}") for i in range(6)]


def evaluator(student, teacher, prompts=PROMPTS, micro_batch=4, max_new_tokens=6, kind=LocalTeacher):
    accelerator = Accelerator(cpu=True)

    def engine(choose):
        return HFRollouts(
            student, params=SamplingParams(choose, 1, max_new_tokens, frozenset(range(0, V, 16)), 3),
            pad_id=0, vocab_size=V, batch_size=8, autocast=nullcontext, say=print,
        )  # fmt: skip

    sampler = engine(NucleusSampling(1.0, 1.0))
    held_out = HeldOutEvaluator(
        accelerator, TokenScorer(student, V), kind(TokenScorer(teacher, V), accelerator.device), sampler,
        engine(GREEDY), prompts, make_tokenizer(), 0, micro_batch, MicroBatches(),
    )  # fmt: skip
    return held_out, sampler


@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_numbers_are_those_of_the_dense_formula_for_any_micro_batch(micro_batch):
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    held_out, sampler = evaluator(student, teacher, micro_batch=micro_batch)
    found = held_out.evaluate(7)
    rollouts = sampler.sample(list(enumerate(PROMPTS)), DRAW)
    with torch.no_grad():
        delta = (dense(student, rollouts) - dense(teacher, rollouts)).double()
    assert found.step == 7
    assert found.reverse_kl == pytest.approx(delta.mean().item(), rel=1e-4)
    assert found.length == pytest.approx(len(delta) / 6)
    assert found.truncated == pytest.approx(sum(r.finish == "length" for r in rollouts) / 6)
    assert [c.prompt for c in found.completions] == [f"prompt {i}" for i in range(SHOWN)]


def test_shown_completions_are_the_readers_and_carry_their_own_divergence():
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    shown = evaluator(student, teacher)[0].evaluate(0).completions[1]
    ids = torch.tensor([PROMPTS[1].ids])
    expected = student.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6,
        eos_token_id=list(range(0, V, 16)), pad_token_id=0,
    )[0, 3:]  # fmt: skip
    from tests.training.test_batching import rollout

    one = [rollout(PROMPTS[1].ids, expected.tolist())]
    with torch.no_grad():
        delta = dense(student, one) - dense(teacher, one)
    assert shown.text == make_tokenizer().decode(expected, skip_special_tokens=True)
    assert shown.tokens == len(expected)
    assert shown.reverse_kl == pytest.approx(delta.mean().item(), abs=1e-4)


def test_estimate_is_unbiased_for_the_enumerated_divergence():
    """One token a completion: E(s − q) over the draws is the KL over the whole vocabulary."""
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    prompts = [Prompt((5, 6), "same", f"test:{i}") for i in range(600)]
    found = evaluator(student, teacher, prompts, micro_batch=600, max_new_tokens=1)[0].evaluate(0)
    ids = torch.tensor([[5, 6]])
    with torch.no_grad():
        s, q = (model(input_ids=ids).logits[0, -1].double().log_softmax(-1) for model in (student, teacher))
    exact = (s.exp() * (s - q)).sum().item()
    assert abs(found.reverse_kl - exact) < 3.5 * found.standard_error
    assert found.standard_error < 0.2 * exact


def test_a_teacher_with_its_whole_distribution_is_judged_exactly():
    """The mean over positions of the KL over the whole vocabulary, with far less noise than the sampled tokens have."""
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    held_out, sampler = evaluator(student, teacher, kind=WholeDistributionTeacher)
    found = held_out.evaluate(0)
    divergences = []
    for r in sampler.sample(list(enumerate(PROMPTS)), DRAW):
        ids = torch.cat([torch.tensor(r.prompt.ids), r.completion])[None]
        with torch.no_grad():
            s, q = (m(input_ids=ids).logits[0, len(r.prompt.ids) - 1 : -1].log_softmax(-1) for m in (student, teacher))
        divergences.append((s.exp() * (s - q)).sum(-1))
    assert found.reverse_kl == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-4)
    assert found.standard_error < evaluator(student, teacher)[0].evaluate(0).standard_error


def read_again(completion, prompt, student):
    """The tokens of a completion that was decoded, by sampling them again: greedily, as ``evaluator``'s reader does."""
    ids = torch.tensor([prompt.ids])
    found = student.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6,
        eos_token_id=list(range(0, V, 16)), pad_token_id=0,
    )[0, len(prompt.ids) :]  # fmt: skip
    assert len(found) == completion.tokens
    return found


@pytest.mark.parametrize(
    ("kind", "likeliest"),
    [(WholeDistributionTeacher, 5), (LocalTeacher, 0), (partial(TopTokensTeacher, k=3), 3)],
    ids=["whole", "tokens", "top"],
)
@pytest.mark.parametrize("micro_batch", [1, 100])
def test_each_token_carries_what_both_models_make_of_it(kind, likeliest, micro_batch):
    """Against all logits in float64; a completion read one position too early or too late is nats away."""
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    completions = evaluator(student, teacher, kind=kind, micro_batch=micro_batch)[0].evaluate(0).completions
    tokenizer = make_tokenizer()
    exact = [make_model(llama_config(), seed).double() for seed in (1, 2)]
    for prompt, completion in zip(PROMPTS, completions, strict=False):
        ids = read_again(completion, prompt, student)
        whole, first = torch.cat([torch.tensor(prompt.ids), ids])[None], len(prompt.ids)
        with torch.no_grad():
            s, q = (m(input_ids=whole).logits[0, first - 1 : -1].log_softmax(-1) for m in exact)
        own = torch.arange(len(ids)), ids
        reverse_kl = (s.exp() * (s - q)).sum(-1) if kind is WholeDistributionTeacher else (s - q)[own]
        pieces = completion.pieces
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
        assert [piece.student for piece in pieces] == pytest.approx(s[own].tolist(), abs=2e-5)
        assert [piece.teacher for piece in pieces] == pytest.approx(q[own].tolist(), abs=2e-5)
        assert [piece.reverse_kl for piece in pieces] == pytest.approx(reverse_kl.tolist(), abs=2e-5)
        assert completion.reverse_kl == pytest.approx(sum(p.reverse_kl for p in pieces) / len(pieces), abs=2e-5)
        for i, piece in enumerate(pieces):
            best = q[i].topk(likeliest)
            assert [logprob for _, logprob in piece.top] == pytest.approx(best.values.tolist(), abs=2e-5)
            alone = [tokenizer.decode([token]) for token in best.indices.tolist()]
            if i == 0:  # later on, a byte may complete a character that began before
                assert [text for text, _ in piece.top] == alone


def test_people_are_told_how_far_an_evaluation_is():
    told = []
    held_out = evaluator(make_model(llama_config(), 1), make_model(llama_config(), 2))[0]
    replace(held_out, doing=lambda *now: told.append(now)).evaluate(0)
    now = "evaluating before training"
    assert told[:8] == [*((now, done, 6) for done in range(7)), (f"{now}: scoring", 0, 0)]


class AskedAt(NeverStopped):
    """One process that is asked to stop when so many agreements or draws were made."""

    def __init__(self, agreements):
        super().__init__()
        self.left = agreements

    def agreed(self, _):
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("agreements", [1, 2, 3, 4])
def test_an_evaluation_is_left_between_its_batches_when_it_is_asked_to_stop(agreements):
    held_out = evaluator(make_model(llama_config(), 1), make_model(llama_config(), 2), micro_batch=100)[0]
    stop = AskedAt(agreements)
    assert held_out.evaluate(0, stop) is None
    assert stop.left == 0
    assert held_out.evaluate(0, AskedAt(100)) is not None


def test_sampling_is_left_in_the_middle_of_a_batch():
    told, stop = [], NeverStopped()
    held_out = evaluator(make_model(llama_config(), 1), make_model(llama_config(), 2), max_new_tokens=200)[0]

    def doing(*now):
        told.append(now)
        stop.signal = signal.SIGINT if now[1] == 2 else None
        stop.agreed = lambda _: stop.signal is not None

    assert replace(held_out, doing=doing).evaluate(0, stop) is None
    assert told[-1][1:] == (2, 6), "nobody waits for the others"


def test_every_evaluation_draws_the_same_numbers():
    student, teacher = make_model(llama_config(), 1), make_model(llama_config(), 2)
    held_out, _ = evaluator(student, teacher)
    assert held_out.evaluate(0).reverse_kl == held_out.evaluate(5).reverse_kl


def test_the_ratio_and_its_standard_error():
    sums, counts = [3.0, 10.0, 2.0], [2, 5, 1]
    mean, error = mean_per_token(list(map(Total, sums, counts)))
    assert mean == pytest.approx(15 / 8)
    residuals = [s - 15 / 8 * c for s, c in zip(sums, counts, strict=True)]
    assert error == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 8)
    assert math.isnan(mean_per_token([Total(1.0, 2)]).standard_error)


def test_nothing_held_out_has_nothing_to_say():
    assert NoEvaluation().evaluate(0) is None
