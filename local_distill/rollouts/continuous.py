"""Transformers' continuous batching samples: paged keys and values, CUDA graphs, no row waits for another.

Made for GPUs. It samples from the training weights themselves; where these are float32 masters of a low precision,
from a copy in that precision, because the engine keeps its keys and values in the precision of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from local_distill.backends import MakeSampler, Opening, OpenSampler, SamplerBackend, Student
from local_distill.batch import Prompt, Rollout, ignore
from local_distill.config.train_config import TrainConfig
from local_distill.errors import RunError, UserError
from local_distill.head.sampling import SamplingParams
from local_distill.models.adapters import Adapter
from local_distill.models.files import cast, causal_lm, saved_tensors
from local_distill.models.footprint import CACHE, COPIES, WORK, DecodingBytes, Part, Parts, SamplerMemory, ToSample
from local_distill.models.pair import ModelPair
from local_distill.process.seeding import process_seed
from local_distill.rollouts.requests import requests_for
from local_distill.rollouts.student_checks import check_here

PAGE = 32
"""Tokens of one page of keys and values, on a processor."""
SETTINGS = tuple(field.name for field in fields(ContinuousBatchingConfig))
"""That the installed transformers knows. The first is the size of a page: page_size in 5.23, block_size in 5.17."""
FLASH = "auto_switch_to_flash"


def check_seeded() -> None:
    """Raise UserError where transformers' engine takes no seed or does not say what it drew with, as in 5.5."""
    if not {"seed", "return_logprobs"} <= set(SETTINGS):
        raise UserError(
            f"--rollouts continuous: the engine of transformers {transformers_version} takes no seed, needs one that "
            "does, such as that of 5.17; pip install --upgrade transformers, or use --rollouts hf"
        )


def check_student(_config: TrainConfig, pair: ModelPair, _lora: Adapter | None) -> None:
    """Refuse a head with rows that must not be drawn."""
    if pair.rows > pair.vocab_size:
        raise UserError(
            f"--rollouts continuous: the student's head has {pair.rows} rows, of which {pair.vocab_size} are tokens "
            "that the teacher has too, and this engine cannot leave the others out; use --rollouts hf"
        )


def always(run: ToSample) -> Parts:
    """Count the copy that is sampled from; an adapter's base is in the precision of the products already."""
    return (Part(COPIES, run.weights),) if run.as_masters else ()


def while_sampling(run: ToSample, at_once: int, decoding: Callable[[], DecodingBytes]) -> tuple[Parts, Parts]:
    """Count keys and values in pages: of all rollouts on a processor; a GPU's cache takes what is free, so of one."""
    _, cache, work = decoding()
    pages = -(-run.longest // PAGE) + 1
    paged = cache / at_once * (run.rollouts if run.device == "cpu" else 1) * pages * PAGE / run.longest
    return (), (Part(CACHE, paged), Part(WORK, work))


class SampledModel:
    """The engine sees the trained model in this way; one serves all engines of a run.

    model: the transformers (or peft) model, unwrapped. dtype: precision of the products. Where the weights have
    another one, they are copied, and the copy is brought up to date before it is used.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._trained = self._sampled = causal_lm(model)
        if self._trained.dtype != dtype:
            self._sampled = cast(copy.deepcopy(self._trained).requires_grad_(False), dtype)

    @contextmanager
    def newest(self) -> Iterator[PreTrainedModel]:
        """Give the model with the newest weights; the eval mode that the engine leaves behind is put right."""
        was_training = self._trained.training
        if self._sampled is not self._trained:
            with torch.no_grad():
                pairs = zip(saved_tensors(self._sampled), saved_tensors(self._trained), strict=True)
                for (_, own), (_, newest) in pairs:
                    own.copy_(newest)
        try:
            yield self._sampled
        finally:
            self._trained.train(was_training)


class ContinuousRollouts:
    """Each step is one call of ``generate_batch``.

    What is drawn depends on the seed, the step and the process, and also on which rollouts happen to share a forward
    pass: unlike HFRollouts, another number of processes draws other samples. What was drawn is reported exactly.

    process: the number of this one. Any row of the head may be drawn.
    """

    def __init__(self, model: SampledModel, *, params: SamplingParams, pad_id: int, process: int) -> None:
        self._model = model
        self._settings = GenerationConfig(
            do_sample=True,
            temperature=params.choose.temperature,
            top_p=params.choose.top_p,
            top_k=0,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=sorted(params.stop_ids) or [-1],
            pad_token_id=pad_id,
        )
        self._params = params
        self._process = process

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """Draw ``group_size`` rollouts of each (position, prompt), in that order; see RolloutEngine."""
        wanted = requests_for(prompts, step, self._params)
        inputs = [list(each.prompt.ids) for each in wanted]
        with self._model.newest() as model:
            batching = ContinuousBatchingConfig(
                return_logprobs=True,
                seed=process_seed(self._params.seed, step, self._process),
                **self._cache_size(inputs, model.device),
                # Flash attention's kernels take no float32; where transformers would switch to it, it must not.
                **({FLASH: False} if model.dtype == torch.float32 and FLASH in SETTINGS else {}),
            )
            found = model.generate_batch(inputs, self._settings, batching)
        outputs = list(found.values())
        failed = [output.error for output in outputs if output.error is not None]
        if failed or len(outputs) < len(wanted):
            reason = failed[0] if failed else "the engine stopped, its own message is above"
            lost = len(wanted) - len(outputs) + len(failed)
            raise RunError(
                f"--rollouts continuous: {lost} of {len(wanted)} rollouts failed ({reason}); use --rollouts hf"
            )
        rollouts = [
            request.rollout(output.generated_tokens, output.logprobs, self._params.stop_ids)
            for request, output in zip(wanted, outputs, strict=True)
        ]
        for rollout in rollouts:
            finished(rollout)
        return rollouts

    def _cache_size(self, inputs: Sequence[Sequence[int]], device: torch.device) -> dict[str, int]:
        """Tell the engine what it needs: nothing on a GPU, most of whose free memory it takes until it has finished.

        On a processor it would take most of the machine's: there, room for all rollouts at once.
        """
        if device.type != "cpu":
            return {}
        blocks = sum(-(-(len(ids) + self._settings.max_new_tokens) // PAGE) + 1 for ids in inputs)
        return {SETTINGS[0]: PAGE, "num_blocks": blocks, "max_batch_tokens": max(PAGE, *map(len, inputs))}


def open_continuous(opening: Opening) -> OpenSampler:
    """Sample from the student itself: there is nothing to ask before it is loaded."""

    def with_student(student: Student) -> MakeSampler:
        sampled = SampledModel(student.model, opening.dtype)
        process = opening.accelerator.process_index
        return lambda params: ContinuousRollouts(sampled, params=params, pad_id=opening.pair.pad_id, process=process)

    return with_student


BACKEND = SamplerBackend(
    check=partial(check_here, name="continuous"),
    check_machine=lambda _: check_seeded(),
    check_student=check_student,
    memory=SamplerMemory(while_sampling, always),
    open=open_continuous,
)
