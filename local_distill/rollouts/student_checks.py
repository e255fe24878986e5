"""What a sampler needs of the settings and of the student, before any weights are loaded."""

from __future__ import annotations

from transformers import AutoModelForCausalLM

from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.models.adapters import Adapter, adapts_packed_weights
from local_distill.models.files import ModelFiles, turns_after
from local_distill.models.pair import ModelPair
from local_distill.rollouts.decoding import STATES_ALONE, parameters_of

OTHER_MODEL = "choose another model"
OTHER_ENGINE = "use --rollouts vllm, or choose another model"
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""
MOST_LEFT_OUT = 1024
"""Entries of ``logit_bias``: MAX_NUM_LOGIT_BIAS_TOKENS in vLLM's v1/worker/gpu/sample/logit_bias.py."""


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


def check_vllm_student(config: TrainConfig, pair: ModelPair, lora: Adapter | None) -> None:
    """Raise UserError for a student that vLLM cannot sample from, in these processes or in servers."""
    if pair.student.gguf:
        raise UserError(
            "--rollouts vllm: an engine needs the student as a model folder, not as a GGUF file; load and save it with "
            "transformers, or use --rollouts hf"
        )
    if lora and adapts_packed_weights(lora.put_shapes_on(pair.student.skeleton())):
        raise UserError(
            "--rollouts vllm: vLLM takes no adapter on experts that are packed into one tensor, as this model's are; "
            "use --rollouts hf, or name --lora_target_modules without them, such as q_proj,k_proj,v_proj,o_proj"
        )
    check_limits(pair.rows, pair.vocab_size, config.temperature)


def check_limits(rows: int, vocab_size: int, temperature: float) -> None:
    """Raise UserError unless vLLM takes the temperature, and can leave out the head's rows past ``vocab_size``."""
    if temperature > HOTTEST:
        raise UserError(
            f"--temperature: {temperature:g} given, vLLM takes at most {HOTTEST:g}; lower it, or use --rollouts hf"
        )
    if rows - vocab_size > MOST_LEFT_OUT:
        raise UserError(
            f"--rollouts vllm: the student's head has {rows} rows, of which {vocab_size} are tokens that the teacher "
            f"has too, and vLLM can leave out {MOST_LEFT_OUT} at most; use --rollouts hf"
        )
