"""What is kept of the tokens that were read: no more than attention uses, and each row its own."""

from contextlib import nullcontext

import pytest
import torch

from local_distill.batch import Prompt
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.rollouts.decoding import TokenCache, next_logits
from local_distill.rollouts.hf import HFRollouts
from tests.rollouts.test_checking import RIGHT, V
from tests.tiny_models import llama_config, make_model

PROMPTS = [Prompt(ids, "", "") for ids in [(5, 6, 7), (9,), (11, 12, 13, 14, 15, 16)]]


def low():
    return torch.autocast("cpu", torch.bfloat16)


def sample(model):
    engine = HFRollouts(
        model, params=SamplingParams(NucleusSampling(1.0, 1.0), 2, 12, frozenset(), 7), pad_id=0, vocab_size=V,
        batch_size=64, autocast=low, say=print,
    )  # fmt: skip
    return engine.sample(list(enumerate(PROMPTS)), step=0)


def cache_of(model, autocast):
    ids = torch.arange(1, 21).view(2, 10)
    cache = TokenCache.of(model)
    with torch.no_grad(), autocast():
        next_logits(model, ids, torch.ones_like(ids), cache, V)
    return cache


@pytest.mark.parametrize("name", ["llama", "sliding window", "states and attention"])
def test_float32_weights_under_autocast_keep_what_attention_casts_anyway(name, monkeypatch):
    """The same draws and log-probs, bit for bit, as from transformers' own cache, which holds float32."""
    model = make_model(RIGHT[name])
    small, kept = sample(model), cache_of(model, low)
    monkeypatch.delattr(TokenCache, "update")
    whole, theirs = sample(model), cache_of(model, low)
    for ours, reference in zip(small, whole, strict=True):
        assert torch.equal(ours.completion, reference.completion)
        assert torch.equal(ours.sampler_logprobs, reference.sampler_logprobs)
    assert keys_and_values(kept) == keys_and_values(theirs) / 2


def keys_and_values(cache):
    """Bytes of the layers that have them."""
    return sum(each.nbytes for layer in cache.layers if hasattr(layer, "keys") for each in (layer.keys, layer.values))


def test_bytes_by_hand():
    layers, kv_heads, head_size, tokens = 2, 2, 8, 2 * 10
    numbers = 2 * layers * kv_heads * head_size * tokens
    model = make_model(llama_config())
    assert cache_of(model, low).nbytes == 2 * numbers
    assert cache_of(model, nullcontext).nbytes == 4 * numbers
    assert cache_of(model.double(), nullcontext).nbytes == 8 * numbers


@pytest.mark.parametrize("name", ["llama", "states and attention", "convolutions and attention", "states alone"])
def test_rows_go_where_they_are_sent_with_all_that_they_read(name):
    """Left out, doubled and in another order: each goes on as it would alone."""
    model, ids, rows = make_model(RIGHT[name]), torch.arange(1, 19).view(3, 6), torch.tensor([2, 0, 2, 2])
    new = torch.tensor([30, 31, 32, 33])[:, None]
    cache = TokenCache.of(model)
    with torch.no_grad():
        next_logits(model, ids, torch.ones_like(ids), cache, V)
        cache.take_rows(rows)
        found = next_logits(model, new, torch.ones(4, 7, dtype=torch.long), cache, V)
        expected = model(torch.cat([ids[rows], new], 1), use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
