"""The count of what autograd keeps."""

import weakref

import pytest
import torch

from local_distill.models.scorer import TokenScorer
from local_distill.training.device_memory import _saved_bytes, activation_bytes
from tests.tiny_models import gpt2_config, llama_config, make_model

V = 300


def scorer_of(config, **kwargs):
    return TokenScorer(make_model(config, **kwargs), V)


@pytest.mark.parametrize("config", [llama_config, gpt2_config])
def test_every_layer_counts_the_same(config):
    name = "layers" if config is llama_config else "n_layer"
    first, second, third = (activation_bytes(scorer_of(config(**{name: n}))).per_token for n in (1, 2, 3))
    assert second - first == pytest.approx(third - second, rel=0.01)
    assert second > first > 0


def test_a_layer_of_llama_keeps_what_its_arithmetic_needs():
    """By hand, in float32: the inputs of the products and of the non-linear functions in between, at the least."""
    hidden, feed_forward = 32, 48
    one, two = (activation_bytes(scorer_of(llama_config(layers=n))).per_token for n in (1, 2))
    least = 4 * (4 * hidden + 3 * feed_forward)  # attention's and the block's inputs and outputs; gate, up, product
    assert least < two - one < 4 * least


def test_it_grows_in_proportion_to_the_tokens():
    scorer = scorer_of(llama_config())
    kept = activation_bytes(scorer)
    for tokens in (80, 120):
        assert _saved_bytes(scorer, tokens) == pytest.approx(kept.fixed + tokens * kept.per_token, rel=0.02)
    assert kept.fixed < 2 * kept.per_token


def test_under_autocast_the_cast_weights_are_kept_once_and_not_for_each_token():
    scorer = scorer_of(llama_config(layers=4, hidden_size=64))
    with torch.autocast("cpu", torch.bfloat16):
        kept = activation_bytes(scorer)
    products = sum(p.numel() for name, p in scorer.named_parameters() if p.ndim == 2 and "layers" in name)
    assert kept.fixed == pytest.approx(2 * products, rel=0.05)
    assert kept.per_token < activation_bytes(scorer).per_token


def test_checkpointing_keeps_far_less_and_is_left_on():
    whole = activation_bytes(scorer_of(llama_config(layers=4))).per_token
    checkpointed = scorer_of(llama_config(layers=4))
    checkpointed.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert activation_bytes(checkpointed).per_token < 0.5 * whole
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())
    assert not checkpointed.model.training, "as it was"


def test_nothing_is_left_behind():
    scorer = scorer_of(llama_config())
    activation_bytes(scorer)
    assert all(p.grad is None for p in scorer.parameters())


def test_what_is_counted_is_let_go():
    """A softmax or an exp is kept for its own gradient: kept as it is, it would hold on to the graph that made it."""
    scorer, made = scorer_of(llama_config()), []

    def remember(_module, _inputs, output):
        kept = output.exp()
        made.append(weakref.ref(kept))
        return kept

    scorer.model.model.norm.register_forward_hook(remember)
    activation_bytes(scorer)
    assert len(made) == 2
    assert [each() for each in made] == [None, None]
