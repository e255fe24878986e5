"""Loading: what is off, what is in which precision, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, GPTNeoXConfig

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import open_model
from tests.tiny_models import gpt2_config, llama_config, make_model, make_tokenizer, save_model

IDS = torch.arange(1, 20)[None]
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")


def opened(folder, flag="--student_model"):
    return open_model(flag, str(folder), trust_remote_code=False)


@pytest.fixture
def copy_of(folders, tmp_path):
    """A copy of one of the folders, with settings of its config.json changed."""

    def copy(name, **changes):
        target = Path(shutil.copytree(folders[name], tmp_path / "copy"))
        config = json.loads((target / "config.json").read_text()) | changes
        (target / "config.json").write_text(json.dumps(config))
        return target

    return copy


def test_dropout_is_off_even_while_training(folders):
    model = opened(folders["gpt2"]).load(torch.float32)
    assert not model.training
    evaluated = model(IDS).logits
    model.train()
    assert torch.equal(model(IDS).logits, evaluated)
    plain = make_model(gpt2_config(), 3).train()
    assert not torch.equal(plain(IDS).logits, plain(IDS).logits), "or the test would say nothing"


@pytest.mark.parametrize("settings", [{"attention_dropout": 0.5}, {"layerdrop": 0.5}, {"hidden_dropout_prob": 0.5}])
def test_dropout_of_every_name_is_off(copy_of, settings):
    files = opened(copy_of("student", **settings))
    assert {name: getattr(files.config, name) for name in settings} == dict.fromkeys(settings, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_loaded_in_the_precision_that_is_asked_for(folders, dtype):
    files = opened(folders["student"])
    model = files.load(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    expected = make_model(llama_config(layers=1), 1)
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight.to(dtype))


def test_a_skeleton_has_shapes_and_no_memory(folders):
    files = opened(folders["student"])
    skeleton, model = files.skeleton(), files.load(torch.float32)
    assert all(p.is_meta for p in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    adapted = add_lora(files.skeleton(), LORA, seed=0)
    assert all(p.is_meta for p in adapted.parameters())


def test_context_length(folders):
    assert opened(folders["student"]).context_length == 128
    assert opened(folders["gpt2"]).context_length == 128


def test_generation_settings_come_from_their_file_or_from_the_configuration(copy_of):
    folder = copy_of("chat")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert opened(folder).generation.eos_token_id == [0, 2]
    (folder / "generation_config.json").unlink()
    assert opened(folder).generation.eos_token_id == opened(folder).config.eos_token_id == 2


def test_a_home_folder_and_a_trailing_slash(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["student"].parent))
    assert opened("~/student").path == str(folders["student"])
    assert opened(f"{folders['student']}/").context_length == 128


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, is_decoder=True),
        GPTNeoXConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8),
    ],
    ids=["BERT as a decoder", "GPT-NeoX, whose configuration does not say that it is one"],
)
def test_decoders_among_models_that_could_be_encoders_are_let_in(tmp_path, config):
    assert opened(save_model(tmp_path / "model", config, make_tokenizer())).config.model_type == config.model_type


def test_a_base_model_without_its_head_is_not_given_one_at_random(copy_of, tmp_path):
    folder = copy_of("student")
    make_model(llama_config(layers=1)).model.save_pretrained(tmp_path / "headless")
    shutil.copy(tmp_path / "headless" / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"--teacher_model .*: 1 are missing, such as lm_head\.weight"):
        opened(folder, "--teacher_model").load(torch.float32)


def test_tied_weights_that_are_saved_once_are_not_missing(tmp_path):
    config = llama_config(tie_word_embeddings=True)
    model = opened(save_model(tmp_path / "model", config, make_tokenizer())).load(torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_in_torchs_own_format(copy_of):
    """As sshleifer/tiny-gpt2 has them."""
    folder = copy_of("gpt2")
    weights = opened(folder).load(torch.float32).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model = opened(folder).load(torch.float32)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
