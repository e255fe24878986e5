"""Is the output head the embedding? The weights say so, and config.json is made to agree with them.

transformers trains two different matrices as two, whatever config.json says, and writes config.json as it was. Other
readers, such as vLLM, take its word: the same files would then give other logits there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

ROWS = 4096
"""Of two matrices that are compared at a time."""


def untie_as_filed(config: PretrainedConfig, files: Sequence[Path]) -> str:
    """Make a configuration that ties true to safetensors files. Returns a note on what was wrong in it, or nothing.

    Before weights are loaded, for what is counted from the configuration alone; names that the library converts are
    not found here.
    """
    known = AutoModelForCausalLM._model_mapping
    pairs = getattr(known[type(config)], "_tied_weights_keys", None) if type(config) in known else None
    if not isinstance(pairs, dict) or not _is_tied(config):
        return ""
    where = _places(files)
    for pair in pairs.items():
        ours, theirs = (_find(where, name) for name in pair)
        if ours and theirs and not _same(where[ours], ours, where[theirs], theirs):
            _state(config, tied=False)
            return "config.json ties the output head to the embedding, but the weights are two: both are trained"
    return ""


def tie_as_loaded(model: PreTrainedModel, missing: set[str], files: Sequence[Path]) -> None:
    """Make a model's configuration true to what was loaded; a head that is ``missing`` may be found to be no other.

    The library leaves a shared head out when it saves a model, even one whose configuration does not tie it. Not so
    the files of a model that never had a head: in those, the names are without the place in the larger model.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or _is_tied(model.config) is None:
        return
    weights = dict(model.named_parameters(remove_duplicate=False))
    heads, embeddings = ({n for n, p in weights.items() if p is each.weight} for each in (head, embedding))
    if heads and heads <= missing and embeddings & _places(files).keys():
        _state(model.config, tied=True)
        model.tie_weights()
        missing -= heads
    _state(model.config, tied=head.weight is embedding.weight)


def _is_tied(config: PretrainedConfig) -> bool | None:
    """Return what a configuration says; None for one that has no say in it."""
    tied: bool | None = getattr(config, "tie_word_embeddings", None)
    return tied


def _state(config: PretrainedConfig, *, tied: bool) -> None:
    for part in {id(each): each for each in (config, config.get_text_config())}.values():
        if _is_tied(part) is not None:
            part.tie_word_embeddings = tied


def _places(files: Sequence[Path]) -> dict[str, Path]:
    """Find out which file each weight is in."""
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            places |= dict.fromkeys(weights.keys(), file)
    return places


def _find(where: dict[str, Path], name: str) -> str | None:
    """Return a weight of the model as its files call it: within a larger model, behind a prefix."""
    return next((each for each in where if f".{each}".endswith(f".{name}")), None)


def _same(one: Path, name: str, other: Path, its_name: str) -> bool:
    with safe_open(one, framework="pt") as ours, safe_open(other, framework="pt") as theirs:
        a, b = ours.get_slice(name), theirs.get_slice(its_name)
        shape: Any = a.get_shape()
        if shape != b.get_shape():
            return False
        return all(torch.equal(a[i : i + ROWS], b[i : i + ROWS]) for i in range(0, shape[0], ROWS))
