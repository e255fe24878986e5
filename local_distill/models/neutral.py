"""What a config.json may ask for and a run must not have: noise, other answers, attention that is not there."""

from __future__ import annotations

from transformers import PretrainedConfig

CONTEXT = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "model_max_length",
    "seq_length",
)  # fmt: skip
"""What architectures call the longest sequence that they read."""
ATTENTION = ("sdpa", "eager")
"""Implementations that are everywhere, and take any precision."""


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
    """Longest sequence in tokens, or None where the architecture sets no limit, which some write as −1."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT)
    return next((length for length in found if isinstance(length, int) and length > 0), None)
