"""What is saved says the same to transformers 5, and in the older names what those before it look for.

The older names are those of transformers 4.57's own configuration classes, which read these models to the same logits.
"""

import json

import pytest
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BambaConfig,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
)

from local_distill.models.older_readers import spell_for_older_readers
from tests.tiny_models import make_tokenizer

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
PART = PLAIN | {"partial_rotary_factor": 0.5}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
OF_GEMMA = {
    "rope_theta": 1e6, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}  # fmt: skip
CASES = {
    "one theta": (LlamaConfig(rope_parameters=PLAIN), {"rope_theta": 1e6, "rope_scaling": None}),
    "scaled": (
        LlamaConfig(rope_parameters=LLAMA3),
        {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    ),
    "some of each head": (
        PhiConfig(rope_parameters=PART), {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_scaling": None}
    ),
    "names of its own": (
        GPTNeoXConfig(rope_parameters=PART), {"rotary_emb_base": 1e6, "rotary_pct": 0.5, "rope_scaling": None}
    ),
    "two kinds of layers": (Gemma3TextConfig(rope_parameters=BY_LAYER), OF_GEMMA),
    "no rotary embedding": (GPT2Config(), {}),
    "infinity": (BambaConfig(rope_parameters=PART), {"rope_theta": 1e6, "partial_rotary_factor": 0.5}),
    "newer than transformers 4": (Gemma4TextConfig(), {}),
}  # fmt: skip


def spelled(folder, config):
    """config.json before and after."""
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    before = json.loads((folder / "config.json").read_text())
    expected = AutoConfig.from_pretrained(folder).to_dict()
    spell_for_older_readers(folder, config)
    assert AutoConfig.from_pretrained(folder).to_dict() == expected
    return before, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("config", "names"), CASES.values(), ids=CASES)
def test_older_names_are_added_and_the_newer_ones_stay(tmp_path, capfd, config, names):
    before, after = spelled(tmp_path, config)
    assert after.items() >= before.items()
    added = {name: after[name] for name in after.keys() - before.keys()}
    assert added.pop("torch_dtype") == "bfloat16"
    assert added.items() >= names.items()
    assert added.keys() <= names.keys() | {"rope_scaling"}
    assert capfd.readouterr() == ("", "")


def test_a_configuration_inside_another_has_them_too(tmp_path):
    _, after = spelled(tmp_path, Gemma3Config(text_config=Gemma3TextConfig(rope_parameters=BY_LAYER)))
    assert after["text_config"].items() >= OF_GEMMA.items()
    assert "rope_theta" not in after


def test_a_tokenizer_is_of_a_class_that_was_there_before(tmp_path):
    tokenizer, text = make_tokenizer(chat=True), "why <|im_start|>is the sky blue?"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(tmp_path)
    spell_for_older_readers(tmp_path, LlamaConfig())
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in written, "of which transformers 4 expects a dictionary"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.chat_template == tokenizer.chat_template
