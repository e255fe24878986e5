"""What config.json asks for besides the model itself changes nothing."""

import json
import shutil

import pytest
import torch
from transformers import MptConfig, XLNetConfig

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.file_settings import context_length_of
from local_distill.models.files import open_model, recompute_activations, skeleton_of
from local_distill.models.scorer import TokenScorer
from local_distill.training.batching import collate
from tests.architectures.zoo import config_of
from tests.models.test_scorer import ROLLOUTS, V
from tests.test_train_command import SMALL
from tests.tiny_models import gpt2_config, llama_config, make_model

ASKED = [
    {"_attn_implementation": "flash_attention_2"},
    {"attn_implementation": "flash_attention_2"},
    {"return_dict": False},
    {"output_hidden_states": True, "use_cache": False},
    {"output_attentions": True},
    {"torch_dtype": "float16"},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
def test_a_config_that_asks_for_more_gives_the_same_run(asked, folders, run_command, tmp_path):
    shutil.copytree(folders["student"], tmp_path / "asks")
    config = json.loads((tmp_path / "asks" / "config.json").read_text())
    (tmp_path / "asks" / "config.json").write_text(json.dumps(config | asked))
    opened = open_model("--student_model", str(tmp_path / "asks"), False)
    plain = open_model("--student_model", str(folders["student"]), False)
    batch = collate(ROLLOUTS, 0)
    found, expected = (TokenScorer(each.load(torch.float32), V)(batch).logprobs for each in (opened, plain))
    assert torch.equal(found, expected)
    pair = ["--student_model", "asks", "--teacher_model", "asks", *SMALL, "--steps", "1", "--eval_prompts", "0"]
    code, _, err = run_command([*pair, "--output_dir", "run"])
    assert code == 0, err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "step-1" / "config.json").is_file()


def test_the_context_has_many_names():
    assert context_length_of(MptConfig(max_seq_len=77)) == 77
    assert context_length_of(gpt2_config(n_positions=55)) == 55
    assert context_length_of(llama_config()) == 128
    assert context_length_of(XLNetConfig()) is None
    assert context_length_of(config_of("Mamba")) is None


def test_an_architecture_that_cannot_compute_its_activations_again_says_so():
    with pytest.raises(UserError, match="--gradient_checkpointing: CTRLLMHeadModel cannot compute"):
        recompute_activations(make_model(config_of("CTRL")))


def test_a_router_that_chooses_experts_gets_no_adapter():
    adapted = add_lora(make_model(config_of("PhiMoE")), LoraSettings(4, 8, 0.0, "all-linear"), seed=0)
    assert not any("router" in name for name, _ in adapted.named_parameters() if "lora_" in name)
    assert torch.isfinite(TokenScorer(adapted, V)(collate(ROLLOUTS, 0)).logprobs).all()
    falcon = add_lora(make_model(config_of("Falcon")), LoraSettings(4, 8, 0.0, "all-linear"), seed=0)
    assert any("query_key_value.lora_A" in name for name, _ in falcon.named_parameters()), "linear, in its own words"
    with pytest.raises(UserError, match="--lora_target_modules router: router is no linear layer"):
        add_lora(make_model(config_of("PhiMoE")), LoraSettings(4, 8, 0.0, "router"), seed=0)


@pytest.mark.parametrize("name", ["Mamba", "Falcon-H1"])
def test_an_adapter_leaves_out_what_kernels_read_past_it(name):
    for model in (make_model(config_of(name)), skeleton_of(config_of(name), False)):
        adapted = add_lora(model, LoraSettings(4, 8, 0.0, "all-linear"), seed=0)
        found = {
            each.split(".lora_")[0].rsplit(".", 1)[-1] for each, _ in adapted.named_parameters() if "lora_" in each
        }
        assert "in_proj" in found
        assert "out_proj" not in found
