"""What a sampler needs of the settings and of the student, before any weights are loaded."""

from __future__ import annotations

from transformers import AutoModelForCausalLM

from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.models.files import ModelFiles, turns_after
from local_distill.rollouts.decoding import STATES_ALONE, parameters_of

OTHER_MODEL = "choose another model"
OTHER_ENGINE = "use --rollouts vllm, or choose another model"


def check_here(config: TrainFields, name: str) -> None:
    """Raise UserError for settings of a sampler elsewhere, given with one in these processes of this name."""
    if config.rollouts_url:
        raise UserError(f"--rollouts_url: given with --rollouts {name}, needs vllm; drop one of them")
    if config.overlap:
        raise UserError(
            "--overlap: needs a sampler that works while this process trains; start a vLLM server and give its "
            "--rollouts_url, or drop --overlap"
        )


def check_has_cache(files: ModelFiles, instead: str = OTHER_MODEL) -> None:
    """Raise UserError where a model keeps what it has read in a way of its own (RWKV, xLSTM), or not at all (GPT-1).

    instead: what to do, for the message.
    """
    model_class = AutoModelForCausalLM._model_mapping.get(type(files.config), None)
    if model_class is None:  # code of its own: check_sampling will see
        return
    taken = parameters_of(model_class)
    cache = taken.get("past_key_values", taken.get(STATES_ALONE))
    kind = "" if cache is None else str(cache.annotation)
    if cache is None or ("Cache" in kind and "cache_utils" not in kind):
        raise UserError(
            f"{files.flag} {files.path}: {model_class.__name__} does not keep what it has read in a cache of "
            f"transformers, which sampling needs; {instead}"
        )


def check_positions(files: ModelFiles, prompt: int, max_new_tokens: int) -> None:
    """Raise UserError where a text may be longer than what the model's positions turn at.

    They turn for a whole batch when its longest text passes that length: the keys in the cache have the old ones, and
    what a text scores depends on what is beside it. prompt: tokens of the longest one.
    """
    turn = turns_after(files.config)
    if turn is not None and prompt + max_new_tokens > turn:
        raise UserError(
            f"{files.flag} {files.path}: has other positions for texts longer than {turn} tokens (longrope), which a "
            f"prompt of {prompt} and --max_new_tokens {max_new_tokens} would pass; lower --max_new_tokens, or leave "
            f"out prompts of more than {max(turn - max_new_tokens, 0)} tokens"
        )
