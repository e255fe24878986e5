"""What forward keeps for backward, by trying it; and where it does not fit, the same with half as much at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from local_distill.batch import ScoredBatch, Teacher, TokenBatch
from local_distill.errors import RunError
from local_distill.head.logprobs import Head
from local_distill.models.files import causal_lm
from local_distill.models.scorer import TokenScorer
from local_distill.process.distributed import alone
from local_distill.training.batching import MicroBatches

ENOUGH_TOKENS = {"cuda": 16_384}
"""Tokens that fill a device's arithmetic units: more at a time is no faster, only larger and with more padding."""
ENOUGH_TOKENS_ELSEWHERE = 1024
"""The same on a processor."""

PROBES = (64, 128)
"""Tokens of the two rollouts that are counted: what they have in common does not grow with the tokens."""

LESS_MEMORY = "add --gradient_checkpointing or --use_lora, or lower --max_new_tokens or --max_prompt_tokens"

SAID_WITHOUT_MEMORY = (
    "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_ALLOC_FAILED", "CUSPARSE_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "HIP out of memory", "HIP error: out of memory",
    "HIPBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory",
    "Cuda failure 2 'out of memory'", "Cuda failure 'out of memory'",
)  # fmt: skip
"""Words of an error about a workspace that a library could not have, or a context that it could not make, where
torch's pool took all; the last two are NCCL's."""


Cuttable = TypeVar("Cuttable", TokenBatch, ScoredBatch)


class Kept(NamedTuple):
    """Bytes that forward keeps for backward. fixed: however few tokens. per_token: for each that goes in."""

    fixed: float
    per_token: float


def activation_bytes(scorer: TokenScorer) -> Kept:
    """Count what forward keeps for backward in two real forward passes.

    Exact for what autograd saves, whatever the architecture, the adapter and the precision. What does not grow with
    the tokens are, under autocast, the weights in the products' precision. With gradient checkpointing: the input of
    every layer, and all of one layer.
    """
    network = causal_lm(scorer.model)
    checkpointed = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    was_training = network.training
    scorer.train()
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False
        short, long = (_saved_bytes(scorer, tokens) for tokens in PROBES)
    finally:
        scorer.train(was_training)
        for module in checkpointed:
            module.gradient_checkpointing = True
    per_token = (long - short) / (PROBES[1] - PROBES[0])
    fixed = max(0.0, short - PROBES[0] * per_token)
    if not checkpointed:
        return Kept(fixed, per_token)
    text = network.config.get_text_config()
    layers = text.num_hidden_layers
    return Kept(fixed / layers, per_token / layers + layers * text.hidden_size * 4)


def _saved_bytes(scorer: TokenScorer, tokens: int) -> int:
    """Return the bytes that autograd keeps of one rollout."""
    device = next(scorer.parameters()).device
    ids = torch.arange(tokens, device=device)[None] % scorer.vocab_size
    zeros = torch.zeros(tokens - 1, device=device)
    places = torch.arange(tokens - 1, device=device)
    return bytes_kept(scorer, TokenBatch(ids, torch.ones_like(ids), places, ids[0, 1:], zeros, (tokens - 1,)))


def bytes_kept(scorer: TokenScorer, batch: TokenBatch) -> int:
    """Sum the bytes of the distinct tensors that autograd keeps of a forward pass, the weights left out."""
    sizes: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in scorer.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that is kept for its own gradient would hold on to itself for ever

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = scorer(batch, _sum)  # while it lives, no storage is used twice
    del kept
    return sum(sizes.values())


def _sum(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Stand in for a loss and cost nothing: the head's own memory is counted apart."""
    del head, targets
    return hidden.float().sum()


class SmallerMicroBatches:
    """Micro-batches that did not fit are cut in two, and all later ones bounded by the size that is left.

    say: tells the user.
    """

    def __init__(self, micro_batches: MicroBatches, say: Callable[[str], None]) -> None:
        self._micro_batches = micro_batches
        self._say = say

    def cut(self, batches: Sequence[ScoredBatch], can_start_over: bool) -> list[ScoredBatch]:
        """Return the same rollouts in more batches. Raises RunError when there is no way."""
        widest = max(batches, key=lambda batch: batch.tokens.tokens_read).tokens
        tokens = widest.tokens_read
        if len(widest.lengths) == 1:
            raise alone(RunError(f"training ran out of memory on a single rollout of {tokens} tokens; {LESS_MEMORY}"))
        # A half of the rollouts has the whole of a prompt that they share.
        bound = max(half.tokens_read for half in _halves(widest)) if widest.shared else tokens // 2
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
    """Do ``what`` to the batch in here. Raises DidNotFitError where memory runs out: no RunError, for which all
    processes would have to come to the same place, and they may wait for this one inside of a sharded model."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tokens, rollouts = batch.tokens_read, len(batch.lengths)
        where = f"a micro-batch of {tokens} tokens; give {tokens // 2}"
        if rollouts == 1:
            where = f"a single rollout of {tokens} tokens; lower --max_new_tokens or --max_prompt_tokens"
        raise DidNotFitError(f"--microbatch_tokens: {what} ran out of memory on {where}") from error


def score(teacher: Teacher, batch: TokenBatch) -> ScoredBatch:
    """Let the teacher score the batch; see ``naming_the_number`` for where memory runs out."""
    with naming_the_number("scoring by the teacher", batch):
        return teacher.score(batch)


def _within(batch: ScoredBatch, bound: int) -> list[ScoredBatch]:
    """Cut the batch in two until each part is within the bound or a single rollout."""
    rows = len(batch.tokens.lengths)
    if batch.tokens.tokens_read <= bound or rows == 1:
        return [batch]
    return [part for each in _halves(batch) for part in _within(each, bound)]


def _halves(batch: Cuttable) -> tuple[Cuttable, Cuttable]:
    rows = len((batch.tokens if isinstance(batch, ScoredBatch) else batch).lengths)
    return batch.rows(0, (rows + 1) // 2), batch.rows((rows + 1) // 2, rows)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no memory left; torch's allocator says so by its type, CUDA and its libraries in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in SAID_WITHOUT_MEMORY)
    )


def release_memory() -> None:
    """Give back the memory that a failed attempt left behind; to be called when its exception is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
