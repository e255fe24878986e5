"""Small real models and tokenizers, made on the spot: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from local_distill.models.adapters import LoraSettings, add_lora

EOS, IM_END = "<|endoftext|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog and runs away from why how what is a of to in rain tea sky blue"


def make_tokenizer(*, chat: bool = False, vocab_size: int = 300, pad: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has ids."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, "<|im_start|>", IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=IM_END if chat else EOS, pad_token=EOS if pad else None
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def llama_config(vocab_size: int = 300, layers: int = 2, **overrides: object) -> LlamaConfig:
    settings: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    return LlamaConfig(**{**settings, **overrides})


def gpt2_config(vocab_size: int = 300, **overrides: object) -> GPT2Config:
    """With GPT-2's dropout of 0.1, as the real tiny-gpt2 has: a trainer that leaves it on is wrong."""
    settings: dict[str, object] = {
        "vocab_size": vocab_size,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2Config(**{**settings, **overrides})


def kind_of(config: PretrainedConfig) -> type:
    """The class that reads such a model: of text, or of text beside images."""
    sees = type(config) not in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def make_model(config: PretrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind_of(config).from_config(config, dtype=dtype)
    return model.eval()


def with_adapter(model: torch.nn.Module, dropout: float = 0.0) -> torch.nn.Module:
    """The model with an adapter that changes what it says: a new one begins as nothing."""
    adapted = add_lora(model, LoraSettings(4, 8, dropout, "all-linear"), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return adapted


def save_model(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> Path:
    """A model folder as the hub lays it out."""
    config.eos_token_id = tokenizer.eos_token_id
    make_model(config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
