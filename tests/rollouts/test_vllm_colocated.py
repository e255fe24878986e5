"""What vLLM is handed, and what is said without it; the engine itself is tested in tests/servers."""

import copy
import importlib.util

import pytest
import torch

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.rollouts.vllm_colocated import check_installed, merged_weights
from tests.tiny_models import gpt2_config, llama_config, make_model


def adapted(config):
    model = add_lora(make_model(config, seed=1), LoraSettings(4, 8.0, 0.0, "all-linear"), seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("config", [llama_config(), gpt2_config()], ids=["llama", "gpt2"])
def test_an_adapter_is_added_on_as_peft_merges_it(config):
    model = adapted(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = dict(merged_weights(model, torch.float32))
    merged = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    assert weights.keys() == merged.keys()
    for name in merged:
        torch.testing.assert_close(weights[name], merged[name].detach())
    plain = dict(make_model(config, seed=1).named_parameters())
    assert max(float((weights[name] - plain[name].detach()).abs().max()) for name in plain) > 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_without_an_adapter_come_as_they_are_in_the_engines_precision():
    model = make_model(llama_config(tie_word_embeddings=True))
    weights = dict(merged_weights(model, torch.bfloat16))
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weights[name], p.bfloat16()) for name, p in model.named_parameters())


def test_without_vllm_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--rollouts vllm: needs vLLM, .* pip install vllm"):
        check_installed()
