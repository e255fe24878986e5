"""A model is sampled from as it is scored, or refused in one line before the first step.

With its weights, before training wraps it, what our loop says that it drew with is compared with what scoring makes of
each rollout by itself: of a few short texts, and a long one for each length at which the model changes its ways (a
window, a chunk) if the run comes that far. Nothing is drawn from the process's random numbers, and the model is left in
the mode in which it was. student_checks.py has what is asked before, models/start_checks.py what is asked of scoring
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from local_distill.batch import Prompt, Rollout
from local_distill.errors import UserError, with_type
from local_distill.head.logprobs import matmul_dtype
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.losses.sampler_mismatch import divergence, rounding_of
from local_distill.models.files import causal_lm
from local_distill.models.reach import has_experts
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts.decoding import evaluating
from local_distill.rollouts.hf import HFRollouts
from local_distill.rollouts.student_checks import OTHER_MODEL
from local_distill.training.batching import collate
from local_distill.training.device_memory import is_out_of_memory

Context = Callable[[], AbstractContextManager[Any]]
SHORT = (2, 7)
"""Tokens of the prompts that are read in any case, in one batch."""
NEW_TOKENS = 4
CHANGES = ("window", "chunk", "block_size", "floor_scale", "original_max_position")
"""In the names of settings that are a length at which a model changes its ways."""


@torch.no_grad()
def check_sampling(
    scorer: TokenScorer, flag: str, *, pad_id: int, longest: int, autocast: Context = nullcontext,
    instead: str = OTHER_MODEL,
) -> None:  # fmt: skip
    """Sample a few rollouts with our own loop, and score each by itself, without a cache or any padding.

    longest: tokens of the longest prompt and completion that will be. autocast: makes the context of the run's
    products; float32 weights are compared in float32 too, where less is lost. instead: what to do, for the message.
    """
    with autocast():
        rounds = matmul_dtype(_weight(scorer)) != _weight(scorer).dtype == torch.float32
    for context in (autocast, nullcontext) if rounds else (autocast,):
        for lengths in _batches(scorer, longest):
            with _in_one_line(scorer, flag, instead), context(), evaluating(scorer.model):
                rollouts = _sample(scorer, lengths, pad_id, context)
                alone = (collate([each], pad_id).to(_weight(scorer).device) for each in rollouts)
                scored = torch.cat([scorer(each).logprobs.cpu() for each in alone])
                found = divergence(torch.cat([each.sampler_logprobs for each in rollouts]), scored)
                most = rounding_of(matmul_dtype(_weight(scorer)), has_experts(causal_lm(scorer.model).config))
            if not found <= most:  # NaN as well
                raise UserError(
                    f"{flag}: {_name(scorer)} gives other log-probs token by token, from its cache and in a padded "
                    f"batch, than for a whole text ({found:.2g} nats a token apart, rounding explains {most:g}), so "
                    f"that what is sampled would not be what is scored; {instead}"
                )


def _batches(scorer: TokenScorer, longest: int) -> Iterator[tuple[int, ...]]:
    """Give lengths of prompts read together: short ones; one on the brink of each change, beside a short one."""
    yield SHORT
    config = causal_lm(scorer.model).config.get_text_config()
    settings = config.to_dict() | (getattr(config, "rope_parameters", None) or {})
    changes = {
        value
        for name, value in settings.items()
        if isinstance(value, int) and any(word in name for word in CHANGES) and "layer" not in name
    }
    for length in sorted(changes):
        if SHORT[0] < length <= longest - NEW_TOKENS + 1:
            yield SHORT[0], length - 1


def _sample(scorer: TokenScorer, lengths: Sequence[int], pad_id: int, context: Context) -> list[Rollout]:
    """Draw two of each short prompt, so that rows are copied; one of a long one, whose rows are large."""
    tokens = min(scorer.vocab_size - 1, 8)  # the few that any vocabulary has
    rows = (tuple(1 + (i * i + i // 8 + length) % tokens for i in range(length)) for length in lengths)
    engine = HFRollouts(
        scorer.model,
        params=SamplingParams(
            NucleusSampling(1.0, 1.0), 2 if lengths == SHORT else 1, NEW_TOKENS, stop_ids=frozenset(), seed=0
        ),
        pad_id=pad_id, vocab_size=scorer.vocab_size, batch_size=2 * len(lengths), autocast=context, say=lambda _: None,
    )  # fmt: skip
    return engine.sample([(position, Prompt(ids, "", "")) for position, ids in enumerate(rows)], step=0)


def _weight(scorer: TokenScorer) -> Tensor:
    """Return one that tells where the model is, and in what precision."""
    weight: Tensor = causal_lm(scorer.model).get_output_embeddings().weight
    return weight


def _name(scorer: TokenScorer) -> str:
    return type(causal_lm(scorer.model)).__name__


@contextmanager
def _in_one_line(scorer: TokenScorer, flag: str, instead: str) -> Iterator[None]:
    """Make what a model's own code raises a user's mistake; memory that runs out is none."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{flag}: {_name(scorer)} cannot be sampled from with a cache ({with_type(error)}); {instead}"
        ) from error
