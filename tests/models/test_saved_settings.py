"""Settings that a model comes with, put so that transformers saves them; its own strict check is the oracle."""

import json

import pytest
from transformers import GenerationConfig

from local_distill.models.file_settings import read_generation, savable
from local_distill.models.files import open_model
from tests.tiny_models import llama_config, make_tokenizer, save_model

IDS = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
SHIPPED = {
    "Llama 2 chat": ({"temperature": 0.9, "top_p": 0.6, "max_length": 4096}, "temperature, top_p"),
    "greedy, said": ({"do_sample": False, "top_k": 20, "min_p": 0.1, "typical_p": 0.3}, "top_k, min_p, typical_p"),
    "beams for one": ({"early_stopping": True, "length_penalty": 2.0}, "early_stopping, length_penalty"),
    "beams": ({"early_stopping": True, "length_penalty": 2.0, "num_beams": 4}, ""),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "top_k"),
    "sampling": ({"top_p": 0.8, "top_k": 20, "do_sample": True, "cache_implementation": "hybrid"}, ""),
    "a cache of another version": ({"cache_implementation": "paged_ring"}, "cache_implementation"),
    "outputs": ({"output_attentions": True, "output_scores": True}, "output_attentions, output_scores"),
    "forced and suppressed": ({"suppress_tokens": [5], "forced_bos_token_id": 5}, "forced_bos_token_id"),
    "several greedy answers": ({"num_return_sequences": 3}, "num_return_sequences"),
    "arguments of generate": ({"logits_processor": []}, "logits_processor"),
    "unheard of": ({"chat_format": "chatml", "max_window_size": 6144}, ""),
    "text for a number": ({"temperature": "hot"}, "temperature"),
    "padding that is none": ({"pad_token_id": -1}, "pad_token_id"),
}


@pytest.mark.parametrize(("settings", "dropped"), SHIPPED.values(), ids=SHIPPED)
def test_what_contradicts_itself_is_left_out_and_everything_else_is_saved(settings, dropped, tmp_path):
    generation, note = savable({**IDS, **settings})
    generation.eos_token_id = [0, 7]  # what is changed is checked strictly
    generation.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert note.endswith(f": {dropped}" if dropped else "")
    assert bool(note) == bool(dropped)
    expected = {**IDS, **settings, "eos_token_id": [0, 7]}
    assert {name: saved.get(name) for name in expected} == {
        name: None if name in dropped.split(", ") else value for name, value in expected.items()
    }


def test_without_a_file_the_configuration_says_when_to_stop(tmp_path):
    config = llama_config(eos_token_id=7)
    generation, note = read_generation(str(tmp_path), config)
    assert (generation.eos_token_id, note) == (7, "")
    assert generation.to_dict() == GenerationConfig.from_model_config(config).to_dict()


@pytest.mark.parametrize("pad", [-1, 300, 10**6])
def test_a_padding_id_that_is_no_token_takes_no_row_out_of_training(tmp_path, pad):
    folder = save_model(tmp_path, llama_config(layers=1), make_tokenizer())
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": pad}))
    files = open_model("--student_model", str(folder), trust_remote_code=False)
    assert files.skeleton().get_input_embeddings().padding_idx is None
