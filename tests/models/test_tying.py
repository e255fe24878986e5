"""A configuration that is true to the weights, whoever wrote it; the oracle is the library with nothing put right."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from local_distill.errors import UserError
from local_distill.models.files import open_model
from tests.tiny_models import gpt2_config, llama_config, make_tokenizer, save_model

IDS = torch.arange(1, 20)[None]
CONFIGS = {"llama": llama_config, "gpt2": gpt2_config}


def folder_of(path, config, stated, *, tied):
    """A model of which config.json says whether it is tied, whatever its weights are."""
    save_model(path, config(tie_word_embeddings=tied), make_tokenizer(), seed=1)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": stated}))
    return path


def opened(path):
    return open_model("--student_model", str(path), trust_remote_code=False)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_loaded_is_saved_and_loaded_again_by_a_reader_that_takes_the_configurations_word(
    tmp_path, config, stated, tied
):
    truth = AutoModelForCausalLM.from_pretrained(folder_of(tmp_path / "truth", config, tied, tied=tied))
    files = opened(folder_of(tmp_path / "model", config, stated, tied=tied))
    model = files.load(torch.float32)
    assert torch.equal(model(IDS).logits, truth(IDS).logits)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] += 1  # a step of training
    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "again")
    files.tokenizer.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(tmp_path / "again" / "model.safetensors")) is not tied
    again = opened(tmp_path / "again")
    assert again.notes == ()
    assert torch.equal(again.load(torch.float32)(IDS).logits, expected)
    if stated or not tied:  # what a file lacks is known when it is read
        assert files.config.tie_word_embeddings is tied
        assert sum(p.numel() for p in files.skeleton().parameters()) == sum(p.numel() for p in model.parameters())
    assert bool(files.notes) == (stated and not tied)


def test_equal_matrices_that_are_filed_twice_stay_tied(tmp_path):
    """As every .bin file has them, and what was converted from one."""
    folder = folder_of(tmp_path, llama_config, stated=True, tied=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files = opened(folder)
    model = files.load(torch.float32)
    assert model.config.tie_word_embeddings is files.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_that_was_saved_without_its_head_has_none(tmp_path):
    folder = save_model(tmp_path, llama_config(), make_tokenizer())
    LlamaModel.from_pretrained(folder).save_pretrained(folder)
    assert "LlamaModel" in Path(folder / "config.json").read_text()
    with pytest.raises(UserError, match=r"1 are missing, such as lm_head\.weight"):
        opened(folder).load(torch.float32)


def test_the_library_itself_writes_what_its_configuration_denies(tmp_path):
    """Why a missing head may be the embedding."""
    model = LlamaForCausalLM(llama_config())
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    expected = model(IDS).logits
    assert AutoConfig.from_pretrained(tmp_path).tie_word_embeddings is False
    assert torch.equal(opened(tmp_path).load(torch.float32)(IDS).logits, expected)
