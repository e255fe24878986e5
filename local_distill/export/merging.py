"""Merged weights, written in one precision; then loaded again and compared with the model that was trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from local_distill.errors import UserError
from local_distill.models.files import ModelFiles, open_model
from local_distill.models.older_readers import spell_for_older_readers
from local_distill.models.tokenization import PROBES, stop_tokens
from local_distill.models.trained import Trained
from local_distill.runs.whole_files import readable_as_others, writing

PROBED_TOKENS = 64
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Mean nats by which log-probs may differ after rounding the weights; another model is whole nats away."""


@dataclass(frozen=True)
class Distance:
    """How far log-probs on the same tokens are apart, nats. tokens: how many."""

    mean: float
    largest: float
    tokens: int


def write_model(trained: Trained, dtype: torch.dtype, folder: Path, max_shard_size: str) -> None:
    """Write what ``from_pretrained`` reads: weights, tokenizer, settings; generation stops where training's did."""
    files = trained.files
    stops = stop_tokens(files.tokenizer, files.generation, files.tokenizer, files.generation, "student")
    model = trained.merged(dtype)
    generation = copy.deepcopy(files.generation)
    generation.eos_token_id = list(stops.ids)
    if generation.pad_token_id is None:
        generation.pad_token_id = files.tokenizer.pad_token_id
    model.generation_config = generation
    with writing(folder):
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        files.tokenizer.save_pretrained(folder)
        spell_for_older_readers(folder, model.config)
    readable_as_others(folder)


def probe_logprobs(files: ModelFiles, model: nn.Module) -> Tensor:
    """Return (T, V) float64 log-probs at every token of a short text in words, numbers, code and other scripts."""
    ids = files.tokenizer.encode(" ".join(PROBES), add_special_tokens=False)[: files.context_length][:PROBED_TOKENS]
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    known = min(logits.shape[1], max(files.tokenizer.get_vocab().values()) + 1)
    return logits[:, :known].double().log_softmax(1)


def compare_with_trained(expected: Tensor, folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> Distance:
    """Load what was written and compare it. expected: (T, V) of the model as it was trained, in float32.

    Raises UserError where they are not the same but for the rounding of the weights to ``dtype``.
    """
    files = open_model("--output_dir", str(folder), trust_remote_code)
    found = probe_logprobs(files, files.load(torch.float32))
    return checked(expected, found, TOLERANCE[dtype], str(folder))


def checked(expected: Tensor, found: Tensor, tolerance: float, what: str) -> Distance:
    """Compare log-probs (T, V), weighed by their probabilities. Raises UserError above ``tolerance``."""
    if found.shape != expected.shape:
        raise UserError(f"{what}: gives log-probs of the shape {tuple(found.shape)}, needs {tuple(expected.shape)}")
    distance = (found - expected).abs()
    mean = float((expected.exp() * distance).sum(1).mean())
    if not mean <= tolerance:  # NaN is no agreement
        raise UserError(
            f"{what}: what was written does not give the log-probs of the trained model (off by {mean:.3g} nats on "
            f"average, {tolerance:g} is rounding); nothing was exported, try --dtype fp32 and report it"
        )
    return Distance(mean, float(distance[expected > -10].max()), len(expected))
