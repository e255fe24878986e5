"""Sampling from the training weights themselves, with any transformers causal LM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from local_distill.backends import MakeSampler, Opening, OpenSampler, SamplerBackend
from local_distill.batch import Prompt, Rollout, ignore
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import TrainFields
from local_distill.errors import RunError
from local_distill.head.sampling import SamplingParams
from local_distill.models.adapters import Adapter
from local_distill.models.footprint import CACHE, COPIES, WORK, DecodingBytes, Part, Parts, SamplerMemory, ToSample
from local_distill.models.pair import ModelPair
from local_distill.process.interruption import give_up_if_asked
from local_distill.process.seeding import rollout_stream
from local_distill.rollouts.decoding import TokenCache, evaluating, next_logits
from local_distill.rollouts.packing import packed_weights
from local_distill.rollouts.student_checks import OTHER_ENGINE, check_has_cache, check_here
from local_distill.training.device_memory import is_out_of_memory, release_memory


def while_sampling(run: ToSample, at_once: int, decoding: Callable[[], DecodingBytes]) -> tuple[Parts, Parts]:
    """Count what the loop holds at its last token, as rehearsed."""
    del run, at_once
    copies, cache, work = decoding()
    return (Part(COPIES, copies),), (Part(CACHE, cache), Part(WORK, work))


@dataclass(frozen=True)
class _Row:
    """One rollout to be made: whose it is, and its own random numbers."""

    position: int
    prompt: Prompt
    uniforms: Tensor


class HFRollouts:
    """Batched decoding that pays for what it uses.

    Each prompt is read once, however large its group; a rollout that has stopped leaves the batch;
    there is no second copy of the weights, so nothing to keep in step with the training.

    model: the transformers (or peft) model, unwrapped. autocast: makes the context in which it runs;
    the model is called past its training wrapper, which would otherwise set the precision.
    vocab_size: tokens that may be drawn.
    batch_size: most rollouts decoded at a time; never changes a result; halved when memory runs out.
    say: tells the user.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        params: SamplingParams,
        pad_id: int,
        vocab_size: int,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:
        self._model = model
        self._params = params
        self._stop_ids = torch.tensor(sorted(params.stop_ids))
        self._pad_id = pad_id
        self._vocab_size = vocab_size
        self._batch_size = batch_size
        self._autocast = autocast
        self._say = say

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """``group_size`` rollouts of each (position, prompt), in that order; see RolloutEngine."""
        params = self._params
        rows = [
            _Row(position, prompt, rollout_stream(params.max_new_tokens, params.seed, step, position, member))
            for position, prompt in prompts
            for member in range(params.group_size)
        ]
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt.ids))
        done: dict[int, Rollout] = {}
        with torch.no_grad(), self._autocast(), evaluating(self._model), packed_weights(self._model):
            while left := order[len(done) :]:
                part = left[: self._batch_size]
                decoded = self._decode_or_give_up([rows[i] for i in part], finished)
                if decoded is None:  # each row has its own random numbers, so half as many at a time draw the same
                    self._batch_size = self._half(len(part))
                else:
                    done.update(zip(part, decoded, strict=True))
        return [done[i] for i in range(len(rows))]

    def _decode_or_give_up(self, rows: list[_Row], finished: Callable[[Rollout], None]) -> list[Rollout] | None:
        """``_decode``, or None when it ran out of memory."""
        try:
            return self._decode(rows, finished)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return None
            raise

    def _half(self, rows: int) -> int:
        """How many rollouts to decode at a time after ``rows`` of them did not fit."""
        if rows == 1:
            raise RunError(
                "sampling ran out of memory on a single rollout; lower --max_new_tokens or --max_prompt_tokens"
            )
        release_memory()
        self._say(
            f"sampling {rows} rollouts at a time did not fit the memory; from here on --sampling_batch_size {rows // 2}"
        )
        return rows // 2

    def _decode(self, rows: list[_Row], finished: Callable[[Rollout], None]) -> list[Rollout]:
        """One batch from the prompts to the last stop."""
        device = next(self._model.parameters()).device
        stop_ids = self._stop_ids.to(device)
        uniforms = torch.stack([row.uniforms for row in rows]).to(
            device, torch.float32 if device.type == "mps" else torch.float64
        )
        tokens = torch.zeros(len(rows), self._params.max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(rows), self._params.max_new_tokens, device=device)
        done: dict[int, Rollout] = {}

        def finish(which: Tensor, length: int, reason: Literal["stop", "length"]) -> None:
            for i in which.tolist():
                drawn, drawn_with = (each[i, :length].to("cpu", copy=True) for each in (tokens, logprobs))
                done[i] = Rollout(rows[i].prompt, rows[i].position, drawn, drawn_with, reason)
                finished(done[i])

        alive = torch.arange(len(rows), device=device)
        cache, mask, logits = self._prefill([row.prompt for row in rows], device)
        for t in range(self._params.max_new_tokens):
            give_up_if_asked()
            chosen, chosen_logprobs = self._params.choose(logits, uniforms[alive, t])
            tokens[alive, t], logprobs[alive, t] = chosen, chosen_logprobs
            ends = torch.isin(chosen, stop_ids)
            if bool(ends.any()):
                finish(alive[ends], t + 1, "stop")
                going = (~ends).nonzero().squeeze(1)
                alive, chosen, mask = alive[going], chosen[going], mask[going]
                if len(alive) == 0:
                    break
                cache.take_rows(going)
            if t + 1 < self._params.max_new_tokens:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                logits = next_logits(self._model, chosen[:, None], mask, cache, self._vocab_size)
        finish(alive, self._params.max_new_tokens, "length")
        return [done[i] for i in range(len(rows))]

    def _prefill(self, prompts: list[Prompt], device: torch.device) -> tuple[TokenCache, Tensor, Tensor]:
        """Read each distinct prompt once, then give every row its copy of what was read.

        Returns the cache, the attention mask (rows, L) and the logits of the first new token (rows, V).
        """
        distinct = list(dict.fromkeys(prompt.ids for prompt in prompts))
        length = max(len(ids) for ids in distinct)
        # Padded on the left: the newest token must be the last column of every row.
        padding = [length - len(ids) for ids in distinct]
        rows = zip(padding, distinct, strict=True)
        input_ids = torch.tensor([[self._pad_id] * p + list(ids) for p, ids in rows], device=device)
        mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long().to(device)
        cache = TokenCache.of(self._model)
        logits = next_logits(self._model, input_ids, mask, cache, self._vocab_size)
        if len(distinct) < len(prompts):
            place = {ids: i for i, ids in enumerate(distinct)}
            copies = torch.tensor([place[prompt.ids] for prompt in prompts], device=device)
            cache.take_rows(copies)
            mask, logits = mask[copies], logits[copies]
        return cache, mask, logits


def check(config: TrainFields) -> None:
    """Refuse what only a sampler elsewhere can do."""
    check_here(config, "hf")


def check_student(config: TrainConfig, pair: ModelPair, lora: Adapter | None) -> None:
    """Refuse a student without keys and values to keep."""
    del config, lora
    check_has_cache(pair.student, OTHER_ENGINE)


def sampling_with(model: nn.Module, opening: Opening) -> MakeSampler:
    """Make engines of our own loop that sample with a model of the run: the student, or the teacher."""
    return lambda params: HFRollouts(
        model,
        params=params,
        pad_id=opening.pair.pad_id,
        vocab_size=opening.pair.vocab_size,
        batch_size=opening.config.sampling_batch_size,
        autocast=opening.accelerator.autocast,
        say=opening.say,
    )


def open_hf(opening: Opening) -> OpenSampler:
    """Sample from the student itself: there is nothing to ask before it is loaded."""
    return lambda student: sampling_with(student.model, opening)


BACKEND = SamplerBackend(
    check=check,
    check_student=check_student,
    memory=SamplerMemory(while_sampling, own_loop=True),
    open=open_hf,
)
