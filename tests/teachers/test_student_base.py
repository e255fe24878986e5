"""The student without its adapter as its teacher: the base loaded apart, to the last digit, and no trace left."""

import pytest
import torch

from local_distill.batch import Prompt, Rollout
from local_distill.head.divergences import reverse_kl
from local_distill.losses.loss import WholeDistributionLoss
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.teachers.student_base import BaseOfStudent
from local_distill.training.batching import collate
from tests.tiny_models import gpt2_config, llama_config, make_model

V, CPU = 300, torch.device("cpu")
ROLLOUTS = [
    Rollout(Prompt((5, 6, 7), "", ""), 0, torch.tensor([8, 9, 10, 0]), torch.zeros(4), "stop"),
    Rollout(Prompt((11,), "", ""), 1, torch.tensor([12, 0]), torch.zeros(2), "stop"),
]


@pytest.fixture(params=[llama_config, gpt2_config])
def student(request):
    """A student whose adapter has moved far from nothing."""
    model = add_lora(make_model(request.param()), LoraSettings(4, 8, 0.1, "all-linear"), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return TokenScorer(model, V), TokenScorer(make_model(request.param()), V)


def test_it_scores_as_a_base_that_was_loaded_apart(student):
    adapted, base = student
    batch = collate(ROLLOUTS, 0)
    found, expected = LocalTeacher(BaseOfStudent(adapted), CPU).score(batch), LocalTeacher(base, CPU).score(batch)
    torch.testing.assert_close(found.signal.logprobs, expected.signal.logprobs, rtol=0, atol=1e-6)
    assert (adapted(batch).logprobs - found.signal.logprobs).abs().max() > 0.1, "the adapter makes a difference"
    top, expected_top = (
        TopTokensTeacher(each, CPU, 5).score(batch).signal.top for each in (BaseOfStudent(adapted), base)
    )
    assert torch.equal(top.ids, expected_top.ids)


def test_whole_distributions_and_their_gradients_too(student):
    adapted, base = student
    batch = collate(ROLLOUTS, 0)
    gradients = []
    for teacher in (BaseOfStudent(adapted), base):
        scored = WholeDistributionTeacher(teacher, CPU).score(batch)
        adapted.zero_grad()
        adapted.eval()(batch, WholeDistributionLoss(reverse_kl).reading(scored, 0)).total.backward()
        gradients.append([p.grad.clone() for p in adapted.parameters() if p.requires_grad])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert max(g.abs().max() for g in gradients[0]) > 1e-3


def test_the_student_is_left_as_it_was(student):
    adapted, _ = student
    batch = collate(ROLLOUTS, 0)
    adapted.train()
    before = [(name, p.requires_grad) for name, p in adapted.named_parameters()]
    with torch.no_grad():
        scored = adapted.eval()(batch).logprobs
        adapted.train()
        LocalTeacher(BaseOfStudent(adapted), CPU).score(batch)
        assert adapted.training
        assert torch.equal(adapted.eval()(batch).logprobs, scored)
    assert [(name, p.requires_grad) for name, p in adapted.named_parameters()] == before


def test_a_call_that_fails_leaves_the_adapter_on(student):
    adapted, _ = student
    batch = collate(ROLLOUTS, 0)

    def broken(*_):
        raise RuntimeError("no")

    scored = adapted.eval()(batch).logprobs
    with pytest.raises(RuntimeError, match="no"):
        BaseOfStudent(adapted)(batch, broken)
    assert torch.equal(adapted(batch).logprobs, scored)
