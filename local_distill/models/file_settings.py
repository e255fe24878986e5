"""What a model's files set beside its weights, without what a run must not have, and so that it can be saved again.

Out of it goes noise, other answers, and attention that is not there. transformers reads settings that contradict each
other with a warning, and refuses to save them: what a model comes with would be found wrong at the first checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

MODES = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")
"""Settings of how to generate that decide whether others have a meaning."""
CONTEXT = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "model_max_length",
    "seq_length",
)  # fmt: skip
"""What architectures call the longest sequence that they read."""
ATTENTION = ("sdpa", "eager")
"""Implementations that are everywhere, and take any precision."""


def read_generation(path: str, config: PretrainedConfig) -> tuple[GenerationConfig, str]:
    """Read the generation settings of a folder or a hub id that can be saved; note those that cannot.

    Where there are none, those that ``config`` implies. Raises whatever a file raises that is not a JSON object.
    """
    file = Path(path) / GENERATION_CONFIG_NAME
    if not file.exists():
        try:
            file = Path(cached_file(path, GENERATION_CONFIG_NAME))
        except OSError:  # a model need not have one; its configuration then says when to stop
            return savable(GenerationConfig.from_model_config(config).to_dict())
    return savable(json.loads(file.read_text(encoding="utf-8")))


def savable(settings: dict[str, Any]) -> tuple[GenerationConfig, str]:
    """Return the settings with which transformers' own strict check is content, and a note on the others, or nothing.

    Each is left out that the check refuses beside the ones before it: a temperature without sampling, say. How
    ``generate`` draws stays as it was, for it takes no notice of them either.
    """
    ordered = sorted((item for item in settings.items() if item[1] is not None), key=lambda item: item[0] not in MODES)
    kept: dict[str, Any] = {}
    for name, value in ordered:
        if _passes({**kept, name: value}):
            kept[name] = value
    dropped = [name for name, _ in ordered if name not in kept]
    note = (
        f"{GENERATION_CONFIG_NAME}: left out where it is saved, for other settings contradict it: {', '.join(dropped)}"
    )
    return GenerationConfig(**kept), note if dropped else ""


def _passes(settings: dict[str, Any]) -> bool:
    try:
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, TypeError, AttributeError):  # a value of another kind than the check expects
        return False
    return True


def make_savable(config: PretrainedConfig) -> None:
    """Put right in a configuration what says nothing of the weights, and keeps them from being read or saved.

    What every forward pass shall return besides is the caller's to say: attentions go with one implementation alone,
    and the configuration of a model with another is refused when it is saved. A padding id that is no token, -1 in
    many configurations, would take a row out of training or stop the embedding from being made.
    """
    for each in with_parts(config):
        each.output_attentions = False
        each.output_hidden_states = False
        each.return_dict = True
        pad, size = getattr(each, "pad_token_id", None), getattr(each, "vocab_size", None)
        if isinstance(pad, int) and isinstance(size, int) and not 0 <= pad < size:
            each.pad_token_id = None


def with_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Return a configuration, and those of its parts: text, vision and so on."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield from with_parts(part)


def make_neutral(config: PretrainedConfig) -> None:
    """Change a configuration that was read so that the model is scored as it samples, wherever it was made."""
    text = config.get_text_config()
    for each in (config, text):
        if each._attn_implementation not in ATTENTION:
            each._attn_implementation = None  # transformers then takes what is here
        if getattr(each, "output_router_logits", False):  # what else is given back, make_savable sets
            each.output_router_logits = False
    if getattr(text, "rescale_every", 0):  # RWKV divides weights in place while it samples, and would be saved so
        text.rescale_every = 0
    for name, value in text.to_dict().items():
        if "drop" in name and isinstance(value, float):  # attention_dropout, resid_pdrop, layerdrop
            setattr(text, name, 0.0)


def context_length_of(config: PretrainedConfig) -> int | None:
    """Return the longest sequence in tokens, or None for an architecture without limit, which some write as −1."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT)
    return next((length for length in found if isinstance(length, int) and length > 0), None)
