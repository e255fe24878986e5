"""Out of memory: do the same with half as much at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from local_distill.batch import ScoredBatch, Teacher, TokenBatch
from local_distill.errors import RunError
from local_distill.process.distributed import alone
from local_distill.training.batching import MicroBatches

LESS_MEMORY = "add --gradient_checkpointing or --use_lora, or lower --max_new_tokens or --max_prompt_tokens"

SAID_WITHOUT_MEMORY = (
    "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_ALLOC_FAILED", "CUSPARSE_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "HIP out of memory", "HIP error: out of memory",
    "HIPBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory",
    "Cuda failure 2 'out of memory'", "Cuda failure 'out of memory'",
)  # fmt: skip
"""Of a workspace that a library could not have, or a context that it could not make, where torch's pool took all; the
last two are NCCL's."""


class HalveMicroBatches:
    """Cuts what did not fit into halves, and bounds all later micro-batches by the size that is left.

    say: tells the user.
    """

    def __init__(self, micro_batches: MicroBatches, say: Callable[[str], None]) -> None:
        self._micro_batches = micro_batches
        self._say = say

    def smaller(self, batches: Sequence[ScoredBatch], can_start_over: bool) -> list[ScoredBatch]:
        """The same rollouts in more batches. Raises RunError when there is no way."""
        widest = max(batches, key=lambda batch: batch.tokens.input_ids.numel()).tokens
        tokens, bound = widest.input_ids.numel(), widest.input_ids.numel() // 2
        if len(widest.lengths) == 1:
            raise alone(RunError(f"training ran out of memory on a single rollout of {tokens} tokens; {LESS_MEMORY}"))
        if not can_start_over:
            raise alone(
                RunError(
                    f"--microbatch_tokens: training ran out of memory on a micro-batch of {tokens} tokens, and with "
                    f"several processes or DeepSpeed the step cannot be done again; give {bound}"
                )
            )
        release_memory()
        self._micro_batches.most_tokens = bound
        self._say(
            f"a micro-batch of {tokens} tokens did not fit the memory; this step is done again, and the next ones "
            f"begin, with at most {bound} (--microbatch_tokens {bound} saves the search)"
        )
        return [part for batch in batches for part in _within(batch, bound)]


class DidNotFitError(MemoryError):
    """A micro-batch ran out of memory where it cannot be cut; the message names the number to give."""


@contextmanager
def naming_the_number(what: str, batch: TokenBatch) -> Iterator[None]:
    """``what`` is done to the batch in here. Raises DidNotFitError where memory runs out: no RunError, for which all
    processes would have to come to the same place, and they may wait for this one inside of a sharded model."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tokens, rollouts = batch.input_ids.numel(), len(batch.lengths)
        where = f"a micro-batch of {tokens} tokens; give {tokens // 2}"
        if rollouts == 1:
            where = f"a single rollout of {tokens} tokens; lower --max_new_tokens or --max_prompt_tokens"
        raise DidNotFitError(f"--microbatch_tokens: {what} ran out of memory on {where}") from error


def score(teacher: Teacher, batch: TokenBatch) -> ScoredBatch:
    """``teacher.score``; see ``naming_the_number``."""
    with naming_the_number("scoring by the teacher", batch):
        return teacher.score(batch)


def _within(batch: ScoredBatch, bound: int) -> list[ScoredBatch]:
    """The batch, cut into halves until each is within the bound or a single rollout."""
    rows = len(batch.tokens.lengths)
    if batch.tokens.input_ids.numel() <= bound or rows == 1:
        return [batch]
    half = (rows + 1) // 2
    return [part for each in (batch.rows(0, half), batch.rows(half, rows)) for part in _within(each, bound)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no memory left; torch's allocator says so by its type, CUDA and its libraries in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in SAID_WITHOUT_MEMORY)
    )


def release_memory() -> None:
    """Give back what a failed attempt left behind; to be called when its exception is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
