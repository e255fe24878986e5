"""Teachers in this process: frozen, and of one opinion."""

import torch

from local_distill.batch import HeadStates, SampledLogprobs
from local_distill.head.logprobs import read_tokens
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.training.batching import collate
from tests.models.test_scorer import ROLLOUTS, V, dense
from tests.tiny_models import gpt2_config, make_model

CPU = torch.device("cpu")


def test_scores_are_the_dense_ones_and_carry_no_gradient():
    model = make_model(gpt2_config()).train()
    scored = LocalTeacher(TokenScorer(model, V), CPU).score(collate(ROLLOUTS, 0))
    torch.testing.assert_close(scored.signal.logprobs, dense(model, ROLLOUTS).detach(), rtol=0, atol=2e-5)
    assert not model.training, "a teacher's dropout is off"
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(scored.signal, SampledLogprobs)


def test_whole_distributions_give_the_same_scores():
    model = make_model(gpt2_config())
    batch = collate(ROLLOUTS, 0)
    plain = LocalTeacher(TokenScorer(model, V), CPU).score(batch)
    whole = WholeDistributionTeacher(TokenScorer(model, V), CPU).score(batch)
    reading = read_tokens(whole.signal.hidden, whole.signal.head, batch.targets)
    torch.testing.assert_close(reading.logprobs, plain.signal.logprobs)
    assert isinstance(whole.signal, HeadStates)
    assert whole.signal.hidden.shape == (batch.num_tokens, 16)
    assert not whole.signal.hidden.requires_grad


def test_top_tokens_come_with_the_same_scores():
    model = make_model(gpt2_config())
    batch = collate(ROLLOUTS, 0)
    plain = LocalTeacher(TokenScorer(model, V), CPU).score(batch)
    found = TopTokensTeacher(TokenScorer(model, V), CPU, k=5).score(batch)
    torch.testing.assert_close(found.signal.logprobs, plain.signal.logprobs)
    torch.testing.assert_close(found.signal.entropy, plain.signal.entropy)
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)[batch.predictors]
    expected = logits.log_softmax(-1).topk(5)
    assert torch.equal(found.signal.top.ids, expected.indices)
    torch.testing.assert_close(found.signal.top.logprobs[:, :-1], expected.values, rtol=0, atol=2e-5)
