"""Packed linear layers: the same numbers, only while they are wanted, always from the newest weights."""

import pytest
import torch
from torch import nn

from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.rollouts.packing import packed_weights
from tests.tiny_models import llama_config, make_model

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def packed_modules(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 40)])
def test_the_same_products(bias, rows):
    torch.manual_seed(0)
    layer = nn.Linear(24, 56, bias=bias)
    states = torch.randn(*rows, 24)
    with torch.no_grad():
        expected = layer.double()(states.double()).float()
        layer.float()
        with packed_weights(layer):
            assert packed_modules(layer) == [""]
            found = layer(states)
    torch.testing.assert_close(found, expected)
    assert packed_modules(layer) == []


@needs_onednn
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "autocast"])
def test_a_model_reads_the_same_and_gets_its_layers_back(lora, dtype):
    model = make_model(llama_config(tie_word_embeddings=True))
    if lora:
        model = add_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        expected = model(ids).logits
        with packed_weights(model):
            names = packed_modules(model)
            found = model(ids).logits
    assert names
    merged = lora and dtype is None
    assert any("lora_A" in name for name in names) == (lora and not merged), "an adapter in float32 costs nothing"
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype is None else 0.06)
    assert packed_modules(model) == []


@needs_onednn
def test_an_update_between_two_contexts_is_seen():
    layer, states = nn.Linear(8, 8, bias=False), torch.randn(2, 8)
    with torch.no_grad():
        with packed_weights(layer):
            before = layer(states)
        layer.weight.mul_(2)
        with packed_weights(layer):
            after = layer(states)
    torch.testing.assert_close(after, 2 * before)


def test_layers_come_back_after_an_error():
    layer = nn.Linear(8, 8)
    with pytest.raises(RuntimeError, match="stop"), packed_weights(layer):
        raise RuntimeError("stop")
    assert packed_modules(layer) == []


def test_other_precisions_are_left_alone():
    layer = nn.Linear(8, 8).double()
    with packed_weights(layer):
        assert packed_modules(layer) == []
