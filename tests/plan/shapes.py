"""Configurations of real families, without weights: what a plan is made of."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen3Config

QWEN3 = {  # layers, hidden size, heads, key-value heads, feed-forward size, tied embeddings
    "0.6B": (28, 1024, 16, 8, 3072, True),
    "1.7B": (28, 2048, 16, 8, 6144, True),
    "4B": (36, 2560, 32, 8, 9728, True),
    "8B": (36, 4096, 32, 8, 12288, False),
    "32B": (64, 5120, 64, 8, 25600, False),
}


def qwen3(name: str, layers: int | None = None) -> Qwen3Config:
    """layers: another number of them, to be quick."""
    all_layers, hidden, heads, kv_heads, feed_forward, tied = QWEN3[name]
    return Qwen3Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers or all_layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=128, tie_word_embeddings=tied,
        max_position_embeddings=40_960, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


def save(folder: Path, name: str, layers: int | None = None) -> str:
    """A folder with a config.json and nothing else."""
    qwen3(name, layers).save_pretrained(folder)
    return str(folder)
