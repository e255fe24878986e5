"""The data that flows through one step, and the protocols of the parts that pass it on.

prompt → rollout → token batch → teacher signal → update. Everything here is born complete and
never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # who reads the files of a run need not wait for torch
    import torch
    from torch import Tensor

    from local_distill.head.logprobs import Head, TopTokens
    from local_distill.shared_prompts import SharedPrompts


@dataclass(frozen=True)
class Prompt:
    """What the student continues.

    ids: rendered token ids, chat template and generation prompt included.
    text: the words that were rendered, for people to read.
    origin: where it was read, for messages: ``prompts.txt:7``, ``deepmath[1204]``.
    answer: the reference answer where the data set has one; kept, never shown to a model.
    """

    ids: tuple[int, ...]
    text: str
    origin: str
    answer: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt, as the student's own policy drew it.

    position: the prompt's place in the step's global batch, 0 ≤ position < batch_size.
    completion: (T,) int64 on the CPU; the stop token included when there is one.
    sampler_logprobs: (T,) float32 on the CPU, nats; m_t, the log-probability with which each
        token was really drawn, temperature and top-p included.
    finish: "stop" when a stop token ended it, "length" when max_new_tokens did.
    age: updates that the student has made since it was drawn.
    """

    prompt: Prompt
    position: int
    completion: Tensor
    sampler_logprobs: Tensor
    finish: Literal["stop", "length"]
    age: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """Rollouts laid out for one forward pass; N is the number of completion tokens among them.

    Rows are padded on the right. Completion tokens are addressed by flat position, so there is no
    mask to get wrong: what is not in ``predictors`` does not train.

    input_ids: (B, L) int64, prompt then completion then padding.
    attention_mask: (B, L) int64, 1 on real tokens.
    predictors: (N,) int64, index into the flattened (B·L) hidden states of the position that
        predicts each completion token: the shift by one is in here, and only in here.
    targets: (N,) int64, the completion tokens, rollout after rollout.
    sampler_logprobs: (N,) float32 nats, m_t.
    lengths: completion tokens of each of the B rollouts; sums to N.
    shared: the same rollouts with each prompt once, where that saves; models that can read those instead.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predictors: Tensor
    targets: Tensor
    sampler_logprobs: Tensor
    lengths: tuple[int, ...]
    shared: SharedPrompts | None = None

    @property
    def num_tokens(self) -> int:
        """N, the completion tokens in this batch."""
        return sum(self.lengths)

    @property
    def tokens_read(self) -> int:
        """Tokens that go through a model, padding included."""
        return self.shared.num_tokens if self.shared else self.input_ids.numel()

    def rows(self, start: int, end: int) -> TokenBatch:
        """Rollouts ``start`` to ``end`` alone, without the padding that only the others needed."""
        tokens = self.tokens_of(start, end)
        mask = self.attention_mask[start:end]
        old, new = mask.shape[1], int(mask.sum(1).max())
        places = self.predictors[tokens]
        return TokenBatch(
            input_ids=self.input_ids[start:end, :new],
            attention_mask=mask[:, :new],
            predictors=(places // old - start) * new + places % old,
            targets=self.targets[tokens],
            sampler_logprobs=self.sampler_logprobs[tokens],
            lengths=self.lengths[start:end],
            shared=self.shared and self.shared.rows(start, end, new),
        )

    def tokens_of(self, start: int, end: int) -> slice:
        """Where the completion tokens of rollouts ``start`` to ``end`` stand among the N."""
        before = sum(self.lengths[:start])
        return slice(before, before + sum(self.lengths[start:end]))

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch with its tensors on ``device``."""
        return TokenBatch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            sampler_logprobs=self.sampler_logprobs.to(device),
            lengths=self.lengths,
            shared=self.shared and self.shared.to(device),
        )


class TeacherView(IntEnum):
    """How much of a teacher's distribution is given, or needed; one who gives more gives the less as well."""

    tokens = 1
    top_tokens = 2
    whole_distribution = 3


@dataclass(frozen=True)
class SampledLogprobs:
    """What a teacher thinks of the tokens that were sampled.

    logprobs: (N,) float32 nats, q_t, temperature 1, aligned with ``TokenBatch.targets``. entropy: (N,) nats, of the
        distributions that those stand in, where the teacher can tell.
    """

    logprobs: Tensor
    entropy: Tensor | None = None

    def of(self, part: slice) -> SampledLogprobs:
        """Return what there is of some of the tokens."""
        return SampledLogprobs(self.logprobs[part], None if self.entropy is None else self.entropy[part])


@dataclass(frozen=True)
class TopLogprobs(SampledLogprobs):
    """The same, and at each position the teacher's likeliest tokens."""

    top: TopTokens = field(kw_only=True)

    def of(self, part: slice) -> TopLogprobs:
        """Return what there is of some of the tokens."""
        sampled = super().of(part)
        return TopLogprobs(sampled.logprobs, sampled.entropy, top=self.top.of(part))


@dataclass(frozen=True)
class HeadStates:
    """What a model's whole distribution at every position is computed from, a chunk at a time.

    hidden: (N, H) before the head, aligned with ``TokenBatch.targets``. head: that head.
    """

    hidden: Tensor
    head: Head

    def of(self, part: slice) -> HeadStates:
        """Return what there is of some of the tokens."""
        return HeadStates(self.hidden[part], self.head)


TeacherSignal = SampledLogprobs | HeadStates
"""A teacher's opinion of a batch, in one of three forms; see TeacherView."""
Signal = TypeVar("Signal", bound=TeacherSignal)


@dataclass(frozen=True)
class ScoredBatch:
    """A token batch with the teacher's opinion of it.

    old_logprobs: (N,) float32 nats, of the student before its first update of the step, where ratios are taken
        against those and not against what the tokens were drawn with.
    """

    tokens: TokenBatch
    signal: TeacherSignal
    old_logprobs: Tensor | None = None

    @property
    def behaviour(self) -> Tensor:
        """b_t (N,): the log-probs that ratios are taken against."""
        return self.tokens.sampler_logprobs if self.old_logprobs is None else self.old_logprobs

    def signal_as(self, kind: type[Signal]) -> Signal:
        """Return the signal in the form that a loss needs. Raises TypeError where the teacher gave another."""
        if not isinstance(self.signal, kind):
            raise TypeError(f"the teacher gave {type(self.signal).__name__}, the loss needs {kind.__name__}")
        return self.signal

    def rows(self, start: int, end: int) -> ScoredBatch:
        """Rollouts ``start`` to ``end`` alone."""
        part = self.tokens.tokens_of(start, end)
        old = None if self.old_logprobs is None else self.old_logprobs[part]
        return ScoredBatch(self.tokens.rows(start, end), self.signal.of(part), old)


def ignore(rollout: Rollout) -> None:
    """Do nothing with a finished rollout, where nobody waits for it."""
    del rollout


class RolloutEngine(Protocol):
    """How the student samples."""

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """``group_size`` rollouts of each (position, prompt), in that order.

        The random draws depend on the seed, the step, the position and the place in the group
        alone: not on which other prompts are in the call, nor on the process that makes it.

        finished: told of each rollout as soon as it is complete, from any thread; of the same one again where
        sampling had to be repeated.
        """
        ...


class Teacher(Protocol):
    """How sampled tokens are scored."""

    def prepare(self, rollout: Rollout) -> None:
        """This rollout will be scored soon: a teacher elsewhere can begin with it. From any thread."""
        ...

    def score(self, batch: TokenBatch) -> ScoredBatch:
        """The batch, on the training device, with the teacher's opinion of every completion token.

        With a sharded teacher this is collective: every process makes the same number of calls.
        """
        ...
