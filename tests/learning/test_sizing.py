"""How large micro-batches are where nobody said: the count of what autograd keeps, and what follows from it."""

import pytest
import torch

from local_distill.learning import sizing
from local_distill.learning.sizing import activation_bytes, bytes_to_come, micro_batch_tokens
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.scorer import TokenScorer
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
        assert sizing._saved_bytes(scorer, tokens) == pytest.approx(kept.fixed + tokens * kept.per_token, rel=0.02)
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


def test_what_the_first_update_allocates():
    scorer = scorer_of(llama_config())
    weights, head = sum(p.numel() for p in scorer.parameters()), V * 32
    assert bytes_to_come(scorer, moments_exist=False) == 4 * (3 * weights + head)
    assert bytes_to_come(scorer, moments_exist=True) == 4 * (weights + head)
    adapted = TokenScorer(add_lora(make_model(llama_config()), LoraSettings(4, 8, 0.0, "all-linear"), seed=0), V)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert bytes_to_come(adapted, moments_exist=True) == 4 * trained


def test_on_a_gpu_the_free_memory_decides_where_it_is_short(monkeypatch):
    scorer, device = scorer_of(llama_config()), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    kept = activation_bytes(scorer)
    fixed = bytes_to_come(scorer, moments_exist=False) + 2**26 * 16 + kept.fixed
    for tokens in (300, 5000):
        free = int(fixed) + int(tokens * kept.per_token / sizing.SHARE_OF_MEMORY)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2**40))
        assert micro_batch_tokens(scorer, device, moments_exist=False) == pytest.approx(tokens, abs=2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    assert micro_batch_tokens(scorer, device, moments_exist=False) == sizing.ENOUGH_TOKENS["cuda"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 2**40))
    assert micro_batch_tokens(scorer, device, moments_exist=False) == 1, "a rollout at a time, and no crash here"


def test_on_a_processor_it_is_what_fills_it():
    assert micro_batch_tokens(scorer_of(llama_config()), torch.device("cpu"), moments_exist=False) == 1024
