"""What text does not reach is neither trained nor adapted; an expert that waits for its tokens is."""

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DbrxConfig, GraniteMoeConfig, Qwen2Config

from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import skeleton_of
from local_distill.models.reach import freeze_towers, freeze_unreached, has_experts
from local_distill.models.scorer import TokenScorer
from local_distill.training.batching import collate
from local_distill.training.checkpoint import checkpoint_bytes
from tests.architectures.zoo import SEEING, config_of
from tests.launching import assert_same_numbers, metrics
from tests.models.test_scorer import ROLLOUTS, V
from tests.process.test_distributed import launch
from tests.tiny_models import llama_config, make_model, make_tokenizer, save_model

EYES = ("vision", "visual", "projector", "connector")


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def has_gradient(model):
    """By a backward pass over everything."""
    model.requires_grad_(True)
    states = TokenScorer(model, V).states(collate(ROLLOUTS, 0))
    (states.hidden @ states.head.weight.t()).logsumexp(1).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", SEEING)
def test_what_is_trained_is_what_a_backward_pass_reaches(name):
    model, skeleton = make_model(config_of(name)), skeleton_of(config_of(name), False)
    freeze_unreached(model)
    found = trained(model)
    assert not any(part in each for each in found for part in EYES)
    assert any(part in each for each, _ in model.named_parameters() for part in EYES)
    assert found == has_gradient(model)
    freeze_towers(skeleton)
    assert trained(skeleton) == found, "the plan counts the same"


@pytest.mark.parametrize("name", SEEING)
def test_eyes_get_no_adapter(name):
    settings = LoraSettings(4, 8, 0.0, "all-linear")
    adapted = add_lora(make_model(config_of(name)), settings, seed=0)
    freeze_unreached(adapted)
    found = trained(adapted)
    assert len(found) >= 2 * 2 * 6  # in two layers, A and B of six products or more
    assert all("lora_" in each and not any(part in each for part in EYES) for each in found)
    assert trained(add_lora(skeleton_of(config_of(name), False), settings, seed=0)) == found


@pytest.mark.parametrize("name", ["Llama", "GPT-J", "OPT", "Gemma 3n", "Qwen3-Next", "Mixtral", "Zamba 2", "Phi"])
def test_all_of_a_model_of_text_is_trained(name):
    model = make_model(config_of(name))
    freeze_unreached(model)
    assert trained(model) == {each for each, _ in model.named_parameters()}


class Experts(nn.Module):
    """As models bring them in code of their own: a list, of which each token goes to one."""

    def __init__(self, size, number):
        super().__init__()
        self.gate = nn.Linear(size, number, bias=False)
        self.experts = nn.ModuleList(nn.Linear(size, size) for _ in range(number))

    def forward(self, states):
        chances = self.gate(states).softmax(-1)
        best, which = chances.max(-1)
        result = torch.zeros_like(states)
        for i in which.unique().tolist():
            result[which == i] = self.experts[i](states[which == i]) * best[which == i][:, None]
        return result


def test_an_expert_without_a_token_waits_with_a_gradient_of_zero():
    model = make_model(llama_config())
    model.model.layers[1].mlp = Experts(32, 40)
    model.spare = nn.Linear(4, 4)
    freeze_unreached(model)
    assert {"spare.weight", "spare.bias"} == {n for n, _ in model.named_parameters()} - trained(model)
    scorer = TokenScorer(model, V).train()
    scorer.states(collate(ROLLOUTS, 0)).hidden.sum().backward()
    gradients = [expert.weight.grad for expert in model.model.layers[1].mlp.experts]
    assert {bool(each.any()) for each in gradients} == {True, False}


def test_a_checkpoint_is_as_large_as_it_is():
    name = "Gemma 3, with its eyes"
    model = skeleton_of(config_of(name), False)
    freeze_towers(model)
    whole, learned = (sum(p.numel() for p in model.parameters() if p.requires_grad or all_) for all_ in (True, False))

    class Files:
        def skeleton(self):
            return skeleton_of(config_of(name), False)

    assert checkpoint_bytes(Files(), None) == 4 * whole + 8 * learned < 12 * whole


CODE = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


EXPERTS


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Experts(config.hidden_size, 24)
        self.model.eyes = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()
""".replace("EXPERTS", inspect.getsource(Experts))


@pytest.fixture(scope="module")
def own_code(tmp_path_factory):
    """A model that brings its code: lists of experts, and eyes beside its layers."""
    folder = save_model(tmp_path_factory.mktemp("own") / "student", llama_config(layers=1), make_tokenizer(), seed=1)
    weights = load_file(folder / "model.safetensors")
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: value for name, value in weights.items() if ".mlp." not in name}
    torch.manual_seed(0)
    own = {"gate.weight": (24, 32)}
    own |= {f"experts.{i}.weight": (32, 32) for i in range(24)} | {f"experts.{i}.bias": (32,) for i in range(24)}
    weights |= {f"model.layers.0.mlp.{name}": 0.5 * torch.randn(shape) for name, shape in own.items()}
    weights |= {"model.eyes.weight": torch.randn(32, 32), "model.eyes.bias": torch.randn(32)}
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.distributed
def test_two_processes_with_experts_that_wait_and_eyes_give_the_run_of_one(own_code, folders, run_command, tmp_path):
    arguments = [
        "--student_model", str(own_code), "--teacher_model", str(folders["teacher"]), "--trust_remote_code",
        "--batch_size", "3", "--group_size", "1", "--max_new_tokens", "4", "--max_prompt_tokens", "90",
        "--learning_rate", "1e-3", "--eval_prompts", "0", "--steps", "2", "--weight_decay", "0.1",
    ]  # fmt: skip
    code, _, err = run_command([*arguments, "--output_dir", tmp_path / "alone"])
    assert code == 0, err
    launch([*arguments, "--output_dir", str(tmp_path / "together")])
    assert_same_numbers(metrics(tmp_path / "together"), metrics(tmp_path / "alone"))
    before, after, other = (
        load_file(folder / "model.safetensors")
        for folder in (own_code, tmp_path / "alone" / "step-2", tmp_path / "together" / "step-2")
    )
    assert before.keys() == after.keys() == other.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "eyes" not in name} >= changed
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert max((after[name] - other[name]).abs().max() for name in before) < 2e-3


def test_who_has_experts_is_known_from_the_configuration():
    mixtures = ["Qwen2-MoE", "Qwen3-MoE", "DeepSeek-V2", "DeepSeek-V3"]
    assert all(has_experts(config_of(name)) for name in mixtures)
    assert has_experts(GraniteMoeConfig(num_local_experts=4))
    assert has_experts(DbrxConfig())
    assert not any(
        has_experts(config)
        for config in (llama_config(), Qwen2Config(), GraniteMoeConfig(num_local_experts=1, num_experts_per_tok=1))
    )
