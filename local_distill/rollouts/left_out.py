"""Rows of the student's head that are no tokens of both models, left out of what vLLM draws from.

vLLM 0.32 on a GPU takes at most 1,024 ``allowed_token_ids`` and as many entries of ``logit_bias``; the rows to leave
out are few (128 of Qwen2.5-7B's 152,064 beside a teacher of 151,936), so they are the ones that are named.
"""

from __future__ import annotations

from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.models.adapters import Adapter, adapts_packed_weights
from local_distill.models.pair import ModelPair

MOST = 1024
"""Entries of ``logit_bias``: MAX_NUM_LOGIT_BIAS_TOKENS in vLLM's v1/worker/gpu/sample/logit_bias.py."""
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""
LOWEST_BIAS = -100.0
"""That a server takes: what is below it is raised to it. At vLLM's highest temperature it still is a factor of e⁻⁵⁰."""


def bias_against(vocab_size: int, rows: int, bias: float = LOWEST_BIAS) -> dict[int, float]:
    """vLLM's ``logit_bias`` with which only the first ``vocab_size`` of the head's ``rows`` are drawn."""
    return dict.fromkeys(range(vocab_size, rows), bias)


def check_limits(rows: int, vocab_size: int, temperature: float) -> None:
    """Raise UserError unless vLLM takes the temperature, and can leave out the head's rows past ``vocab_size``."""
    if temperature > HOTTEST:
        raise UserError(
            f"--temperature: {temperature:g} given, vLLM takes at most {HOTTEST:g}; lower it, or use --rollouts hf"
        )
    if rows - vocab_size > MOST:
        raise UserError(
            f"--rollouts vllm: the student's head has {rows} rows, of which {vocab_size} are tokens that the teacher "
            f"has too, and vLLM can leave out {MOST} at most; use --rollouts hf"
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
