"""What a run holds besides weights, gradients and moments is found by running its code on tensors without contents.

The tensors are torch's fake ones: they have a shape, and what the code would hold is counted tensor by tensor. They say
that they are on the CPU, on any machine: so the attention that is counted is the processor's, which keeps what the
GPU's fused kernels keep (queries, keys, values, the output and one number a row).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from threading import Lock
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # where torch's manual finds them: no public name
from torch.utils._python_dispatch import TorchDispatchMode  # the same
from transformers import masking_utils

from local_distill.batch import (
    HeadStates,
    SampledLogprobs,
    ScoredBatch,
    TeacherSignal,
    TeacherView,
    TokenBatch,
    TopLogprobs,
)
from local_distill.head.logprobs import Head, TopTokens, chunks_of_device, read_tokens, read_top_tokens
from local_distill.head.sampling import NucleusSampling
from local_distill.inputs import loss_of
from local_distill.models.files import causal_lm, recompute_activations
from local_distill.models.footprint import DecodingBytes
from local_distill.models.reach import freeze_towers
from local_distill.models.scorer import TokenScorer, head_of
from local_distill.plan.planned_run import PlannedRun
from local_distill.rollouts.decoding import TokenCache, next_logits
from local_distill.rollouts.packing import packed_weights
from local_distill.teachers.student_base import BaseOfStudent

T = TypeVar("T")
P = ParamSpec("P")
Body: TypeAlias = tuple[float, float]

DEVICE = torch.device("cpu")
"""All tensors of a rehearsal say that they are here."""
Rehearsed: TypeAlias = dict[object, Any]
"""What was found in rehearsals of the same models: runs that differ in other settings share it."""


class StorageCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Storages that are made while it is on are counted from their first tensor to their last.

    now: bytes of those that there are. peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._there: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.prim.device.default:
            return func(*args)
        self._count((args, kwargs), new=False)  # what was there before, weights and inputs, may come out as a view
        out = _run(func, args, kwargs or {})
        self._count(out, new=True)
        return out

    def forget_peak(self) -> None:
        """Look for the most from here on."""
        self.peak = self.now

    def _count(self, tensors: Any, new: bool) -> None:
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            place = id(storage)  # the same as long as the storage is there; fake ones have no address
            if place not in self._there:
                size = storage.nbytes() if new else 0
                self._there.add(place)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._there.discard(place)
        self.now -= size


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for each in found:
            yield from _tensors(each)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
        # What is read from a tensor without contents, such as whether a rare case has come: no.
        return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
    if func is torch.ops.mkldnn._reorder_linear_weight.default:
        return args[0].clone()  # in another order, as large as before
    return func(*args, **kwargs)


class Stage:
    """A stage is where a rehearsal happens: a model's tensors and those of its inputs come from the same one.

    device: the kind of device that is planned for, ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._fake = FakeTensorMode()

    def model(self, skeleton: nn.Module, trained: torch.dtype, frozen: torch.dtype) -> nn.Module:
        """Make the skeleton's weights fake, in place: in one precision what is trained, in another what is not."""
        made: dict[int, nn.Parameter] = {}  # once for a weight that is tied
        with self._fake:
            for module in skeleton.modules():
                for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                    if id(weight) not in made:
                        dtype = trained if weight.requires_grad else frozen
                        made[id(weight)] = _fake_parameter(weight, dtype)
                    setattr(module, name, made[id(weight)])
                for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
                    setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        return skeleton

    def rehearse(self, act: Callable[Concatenate[StorageCount, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``act`` says of the storages that it makes."""
        with self._fake, chunks_of_device(self._device), _no_packed_rows(), StorageCount() as storages:
            return act(storages, *args, **kwargs)


def _fake_parameter(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    dtype = dtype if weight.is_floating_point() else weight.dtype
    return nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=weight.requires_grad)


_PATCHING = Lock()


@contextmanager
def _no_packed_rows() -> Iterator[None]:
    """Let transformers find no packed rows in fake tensors.

    Positions without contents tell it nothing, so it would give every row a mask as if several texts were packed in
    it, which here are never. Real tensors, another thread's, are looked at as ever; and one rehearsal waits for the
    other, or the one that ends last would put back what it had found of the first.
    """
    with _PATCHING:
        find = masking_utils.find_packed_sequence_indices

        def find_in_real(position_ids: Tensor) -> Any:
            return None if isinstance(position_ids, FakeTensor) else find(position_ids)

        masking_utils.find_packed_sequence_indices = find_in_real
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = find


class TrainingBytes(NamedTuple):
    """A micro-batch takes so many bytes. kept: by forward, for backward. work: head, loss and backward, at most."""

    kept: float = 0.0
    work: float = 0.0


class Costs:
    """The phases of a run are rehearsed for what they cost.

    Each is rehearsed for 2 and for 3 rollouts, and more grow in proportion; one alone is rehearsed as well, for it has
    no padding, and attention no mask. Samples are the student's own.
    """

    def __init__(self, run: PlannedRun, rehearsed: Rehearsed) -> None:
        config, self._run, self._stage = run.config, run, Stage(run.machine.device)
        self._loss, self._choose = loss_of(config), NucleusSampling(config.temperature, config.top_p)
        self._low_precision = not run.zero_stage and run.dtype != torch.float32  # by autocast from float32 weights
        self._on_cpu = run.machine.device == "cpu"
        self._vocab_size, self._top_k, self._lengths = run.vocab_size, config.loss_top_k or 0, run.lengths
        self._known, self._own = rehearsed, object()
        of_any = (run.dtype, run.vocab_size, run.lengths, run.machine.device)
        self._as_student = (*of_any, repr(run.adapter), bool(run.zero_stage))
        self._as_trained = (*self._as_student, config.gradient_checkpointing)
        self._as_teacher = of_any if run.teacher is not None else self._as_student

    @cached_property
    def _student(self) -> TokenScorer:
        """Make the student, with its adapter."""
        run, skeleton = self._run, self._run.skeleton(self._run.student)
        freeze_towers(skeleton)
        student = run.adapter.put_shapes_on(skeleton) if run.adapter else skeleton
        self._stage.model(student, run.dtype if run.zero_stage else torch.float32, run.dtype)
        if run.config.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the name is on its way out
                recompute_activations(student)
        for parameter in student.parameters():
            if parameter.requires_grad:  # gradients are counted apart: here, each is gone when it is made
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        return TokenScorer(student, run.vocab_size)

    @cached_property
    def _teacher(self) -> Any:
        """Make the teacher: none if it is elsewhere, the student for its own base."""
        run = self._run
        if run.teacher is None:
            return BaseOfStudent(self._student) if run.teacher_memory.is_student else None
        frozen = self._stage.model(run.skeleton(run.teacher).requires_grad_(False), run.dtype, run.dtype)
        return TokenScorer(frozen, run.vocab_size).eval()

    def sampling(self, rollouts: int, group_size: int, by_teacher: bool = False) -> DecodingBytes:
        """Rehearse our own loop, ``rollouts`` at a time; each prompt is read once for its ``group_size`` rollouts."""
        group_size, scope = min(group_size, rollouts), self._as_teacher if by_teacher else self._as_student
        two, three = (self._found(scope, self._decode, by_teacher, rows) for rows in (2, 3))
        copies, cached = two.copies, _in_proportion(rollouts, two.cache, three.cache)
        decoding = _in_proportion(rollouts, two.work, three.work)
        read = (self._found(scope, self._prefill, by_teacher, prompts, group_size) for prompts in (2, 3))
        reading = _in_proportion(rollouts / group_size, *read)
        return DecodingBytes(copies, cached, max(0.0, max(decoding, reading) - copies - cached))

    def scoring(self, rollouts: int) -> float:
        """Return the most bytes while a micro-batch goes through the teacher."""
        if self._run.teacher is None and not self._run.teacher_memory.is_student:
            return 0.0
        kept, peak = self._body(self._as_teacher, self._score_body, rollouts)
        return max(peak, kept + self._found(self._own, self._score_head, rollouts * self._lengths.completion))

    def training(self, rollouts: int) -> TrainingBytes:
        """Rehearse a micro-batch of so many of the longest rollouts."""
        kept, peak = self._body(self._as_trained, self._train_body, rollouts)
        forward, backward = self._found(self._own, self._train_head, rollouts * self._lengths.completion)
        return TrainingBytes(kept, max(forward, peak - kept + backward))

    def training_head(self, rollouts: int) -> TrainingBytes:
        """Rehearse head and loss alone, of a model whose body cannot be."""
        return TrainingBytes(0.0, max(self._found(self._own, self._train_head, rollouts * self._lengths.completion)))

    def answers(self) -> float:
        """Return the bytes of a completion token's scores, which all are held from scoring to the end of training."""
        batch = 4 + 4 * 8  # the sampler's log-prob, three indices and the mask
        return batch + self._found(self._own, self._signal_bytes, 1)

    def _found(
        self, scope: object, act: Callable[Concatenate[StorageCount, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Rehearse ``act``, once for the same arguments and all that its bytes depend on, ``scope``."""
        key = (scope, act.__name__, args)
        if key not in self._known:
            _ = self._student, self._teacher  # made before anything is counted
            self._known[key] = self._stage.rehearse(act, *args, **kwargs)
        return cast(T, self._known[key])

    def _body(self, scope: object, act: Callable[[StorageCount, int], Body], rollouts: int) -> Body:
        """Return what ``act`` finds, (kept, peak), for any number of rollouts."""
        if rollouts <= 2:
            return self._found(scope, act, rollouts)
        pairs = zip(self._found(scope, act, 2), self._found(scope, act, 3), strict=True)
        kept, peak = (_in_proportion(rollouts, two, three) for two, three in pairs)
        return kept, peak

    def _train_body(self, storages: StorageCount, rows: int) -> Body:
        """Return (bytes that forward keeps, most of them while it and backward run), head and loss left out."""
        self._student.train()
        with self._autocast():
            loss = self._student(self._batch(rows), _sum_of_states)
        kept = storages.now
        loss.backward()
        return kept, storages.peak

    def _train_head(self, storages: StorageCount, tokens: int) -> tuple[float, float]:
        """Return (most bytes in forward, most in backward) of head and loss, the hidden states left out."""
        head = head_of(causal_lm(self._student.model), self._vocab_size)
        hidden = torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype, requires_grad=True)
        read = self._loss.reading(self._scored(tokens), 0)
        before = storages.now
        with self._autocast():
            total, _ = read(hidden, head, torch.zeros(tokens, dtype=torch.long))
        forward = storages.peak - before
        storages.forget_peak()
        total.backward()  # type: ignore[no-untyped-call]
        return forward, storages.peak - before

    @torch.no_grad()
    def _score_body(self, storages: StorageCount, rows: int) -> Body:
        states = self._teacher.states(self._batch(rows))
        kept, peak = storages.now, storages.peak
        del states
        return kept, peak

    @torch.no_grad()
    def _score_head(self, storages: StorageCount, tokens: int) -> float:
        if self._loss.needs == TeacherView.whole_distribution:
            return 0.0
        states, before = self._states(tokens), storages.now
        targets = torch.zeros(tokens, dtype=torch.long)
        readings: list[object] = [read_tokens(states.hidden, states.head, targets)]  # all are there until the end
        if self._loss.needs == TeacherView.top_tokens:
            readings.append(read_top_tokens(states.hidden, states.head, self._top_k))
        return storages.peak - before

    def _signal_bytes(self, storages: StorageCount, tokens: int) -> float:
        before, signal = storages.now, self._signal(tokens)
        made = storages.now - before
        del signal  # only now
        return made

    def _prefill(self, storages: StorageCount, by_teacher: bool, prompts: int, group_size: int) -> float:
        """Return the most bytes while prompts are read, and their keys and values given to each rollout of a group."""
        with self._decoding(by_teacher) as writer:
            cache, logits = self._read_prompts(writer, prompts, self._lengths.prompt)
            copies = torch.zeros(prompts * group_size, dtype=torch.long)
            cache.take_rows(copies)
            self._choose(logits[copies], torch.zeros(len(copies), dtype=torch.float64))
            return storages.peak

    def _decode(self, storages: StorageCount, by_teacher: bool, rows: int) -> DecodingBytes:
        """Draw the last token, when keys and values are longest; ``work`` is with the copies and the cache."""
        with self._decoding(by_teacher) as writer:
            cache, last = self._read_prompts(writer, rows, self._lengths.whole - 1)
            copies = storages.now - cache.nbytes - last.untyped_storage().nbytes()
            storages.forget_peak()
            logits = self._next_logits(writer, torch.zeros(rows, 1, dtype=torch.long), self._lengths.whole, cache)
            self._choose(logits, torch.zeros(rows, dtype=torch.float64))
            return DecodingBytes(copies, cache.nbytes, storages.peak)

    def _read_prompts(self, writer: nn.Module, rows: int, length: int) -> tuple[TokenCache, Tensor]:
        cache = TokenCache.of(writer)
        return cache, self._next_logits(writer, torch.zeros(rows, length, dtype=torch.long), length, cache)

    def _next_logits(self, writer: nn.Module, ids: Tensor, length: int, cache: TokenCache) -> Tensor:
        """Return the logits after new tokens ``ids``, (rows, n), of texts that have ``length`` tokens with them."""
        mask = torch.ones(len(ids), length, dtype=torch.long)
        return next_logits(writer, ids, mask, cache, self._vocab_size)

    @contextmanager
    def _decoding(self, by_teacher: bool) -> Iterator[nn.Module]:
        self._student.eval()
        writer = (self._teacher if by_teacher else self._student).model
        packed = packed_weights(writer) if self._on_cpu else nullcontext()
        with torch.no_grad(), self._autocast(), packed:
            yield writer

    def _autocast(self) -> AbstractContextManager[Any]:
        """Count fp16 as bf16, which is as large."""
        return torch.autocast(DEVICE.type, torch.bfloat16) if self._low_precision else nullcontext()

    def _batch(self, rows: int) -> TokenBatch:
        ids = torch.zeros(rows, self._lengths.whole, dtype=torch.long)
        tokens = rows * self._lengths.completion
        places = torch.zeros(tokens, dtype=torch.long)
        mask = cast(Tensor, None) if rows == 1 else torch.ones_like(ids)  # a mask of ones alone is dropped by attention
        lengths = (self._lengths.completion,) * rows
        return TokenBatch(ids, mask, places, places, torch.zeros(tokens), lengths)

    def _scored(self, tokens: int) -> ScoredBatch:
        """Make what the loss is given besides the student."""
        numbers, places = torch.zeros(tokens), torch.zeros(tokens, dtype=torch.long)
        batch = TokenBatch(places[None], places[None], places, places, numbers, (tokens,))
        return ScoredBatch(batch, self._signal(tokens))

    def _signal(self, tokens: int) -> TeacherSignal:
        if self._loss.needs == TeacherView.whole_distribution:
            return self._states(tokens)
        logprobs, entropy = torch.zeros(tokens), torch.zeros(tokens)
        if self._loss.needs == TeacherView.tokens:
            return SampledLogprobs(logprobs, entropy)
        top = TopTokens(torch.zeros(tokens, self._top_k, dtype=torch.long), torch.zeros(tokens, self._top_k + 1))
        return TopLogprobs(logprobs, entropy, top=top)

    def _states(self, tokens: int) -> HeadStates:
        head = head_of(causal_lm(self._teacher.model), self._vocab_size)
        return HeadStates(torch.empty(tokens, head.weight.shape[1], dtype=head.weight.dtype), head)


def _in_proportion(rollouts: float, two: float, three: float) -> float:
    """Return what so many rollouts take, from what 2 and what 3 of them do."""
    return max(0.0, two + (rollouts - 2) * (three - two))


def _sum_of_states(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Stand for a loss, at no cost."""
    del head, targets
    return hidden.sum()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
