"""A model in another precision is what the library loads in it: rotary frequencies and router biases stay float32."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from local_distill.models.files import cast
from local_distill.rollouts.continuous import SampledModel
from local_distill.rollouts.vllm_colocated import merged_weights
from tests.tiny_models import llama_config, make_model


def deepseek():
    """A mixture of experts whose router has biases that are saved, and kept in float32."""
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.uniform_()
    return model


@pytest.mark.parametrize("make", [lambda: make_model(llama_config()), deepseek], ids=["llama", "deepseek_v3"])
def test_casting_gives_what_the_library_loads(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with SampledModel(model, torch.bfloat16).newest() as sampled:
        for ours in (cast(copy.deepcopy(model), torch.bfloat16), sampled):
            found = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
            expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
            assert found.keys() == expected.keys()
            for name in expected:
                assert found[name].dtype == expected[name].dtype, name
                assert torch.equal(found[name], expected[name]), name
    assert any(buffer.dtype == torch.float32 for buffer in loaded.buffers())


def test_what_an_engine_is_handed_has_the_buffers_of_a_checkpoint():
    model = deepseek()
    handed = dict(merged_weights(model, torch.bfloat16))
    assert handed.keys() == model.state_dict().keys()
    biases = [name for name in handed if "e_score_correction_bias" in name]
    assert [handed[name].dtype for name in biases] == [torch.float32]
