"""One answer, token by token, with the teacher's opinion of each, as text that grows.

The draws are those of training: the n-th answer of a session takes the tokens that the training sampler takes for the
first rollout of the prompt at position 0 of step n, with the same seed and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from local_distill.head.divergences import Distribution, reverse_kl
from local_distill.head.sampling import SamplingParams
from local_distill.models.comparison import Comparison
from local_distill.process.seeding import rollout_stream
from local_distill.rollouts.decoding import TokenCache, next_logits

SHOWN_CHOICES = 5
"""The teacher's likeliest tokens that are kept at each position."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoding shows for a character of which tokens are still to come."""


@dataclass(frozen=True)
class Voice:
    """A model answers, or reads along.

    name: for people. model: transformers or peft, in eval mode. vocab_size: tokens over which its softmax runs.
    context_length: longest text in tokens, None where there is no limit. context: makes the context it runs in.
    """

    name: str
    model: nn.Module
    vocab_size: int
    context_length: int | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def device(self) -> torch.device:
        """Return where its weights are."""
        return next(self.model.parameters()).device

    def without_adapter(self, name: str) -> Voice:
        """Return the model that its adapter was put on: the same weights, no second model."""
        adapted: Any = self.model
        return Voice(name, self.model, self.vocab_size, self.context_length, adapted.disable_adapter)


class TextReader:
    """A voice reads one text as it grows, with a cache of all that was read."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._cache = TokenCache.of(voice.model)
        self._length = 0

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Go on with these tokens, at least one. Returns (1, V) float32 logits of the token after them."""
        self._length += len(ids)
        voice = self._voice
        new = torch.tensor([list(ids)], device=voice.device)
        mask = torch.ones(1, self._length, dtype=torch.long, device=voice.device)
        with voice.context():
            return next_logits(voice.model, new, mask, self._cache, voice.vocab_size).float()


@dataclass(frozen=True)
class Token:
    """An answer is made of tokens. compared: both models there, N = 1, on the CPU; None where nobody judges."""

    id: int
    compared: Comparison | None = None

    @property
    def reverse_kl(self) -> float | None:
        """Return the exact KL(student‖teacher) of the distributions that it was drawn from, nats at temperature 1."""
        return None if self.compared is None else float(self.compared.reverse_kl)


def answer(
    writer: Voice, prompt: Sequence[int], sampling: SamplingParams, number: int, judge: Voice | None = None
) -> Iterator[Token]:
    """Yield what ``writer`` says after ``prompt``, each token as soon as it is drawn.

    number: of the answer in its session, which decides the random draws. judge: reads along.
    """
    uniforms = rollout_stream(sampling.max_new_tokens, sampling.seed, number, 0, 0)
    uniforms = uniforms.to(writer.device, torch.float32 if writer.device.type == "mps" else torch.float64)
    readers = [TextReader(voice) for voice in (writer, judge) if voice is not None]
    new = list(prompt)
    for uniform in uniforms:
        logits = [reader.read(new) for reader in readers]
        drawn, _ = sampling.choose(logits[0], uniform[None])
        new = drawn.tolist()
        yield Token(new[0], compare_logits(logits[0], logits[-1], drawn) if judge is not None else None)
        if new[0] in sampling.stop_ids:
            return


def compare_logits(student: Tensor, teacher: Tensor, tokens: Tensor) -> Comparison:
    """Compare both models at n positions, from their logits (n, V) and the tokens (n,) that were drawn; on the CPU."""
    p, q = (Distribution.of(logits.cpu().double().log_softmax(1)) for logits in (student, teacher))
    chosen = tokens.cpu()[:, None]
    s, t = (model.logprobs.gather(1, chosen).squeeze(1) for model in (p, q))
    likeliest = q.logprobs.topk(min(SHOWN_CHOICES, q.logprobs.shape[1]))
    return Comparison(s, t, reverse_kl(p, q)[0], likeliest.indices, likeliest.values)


class TextStream:
    """Tokens become text while they come, without special tokens.

    A character that is spread over several tokens comes with the last of them. The pieces join to what decoding all
    at once gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # ids[:settled] have been told. ids[context:settled] are decoded again with what follows, for a decoder may
        # treat the beginning of a text in its own way.
        self._context = self._settled = 0

    def add(self, token: int) -> str:
        """Return what this token completes; nothing while a character is unfinished."""
        self._ids.append(token)
        text = self._text_after_settled()
        return "" if text.endswith(UNFINISHED) else self._settle(text)

    def end(self) -> str:
        """Return what is left when no token follows: half a character, as decoding shows it."""
        return self._settle(self._text_after_settled())

    def _settle(self, text: str) -> str:
        if text:
            self._context, self._settled = self._settled, len(self._ids)
        return text

    def _text_after_settled(self) -> str:
        before = self._decode(self._ids[self._context : self._settled])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
