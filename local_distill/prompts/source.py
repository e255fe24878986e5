"""Which prompts are held out, and which of the others each step gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from local_distill.batch import Prompt
from local_distill.errors import UserError
from local_distill.process.seeding import shuffled
from local_distill.prompts.raw import RawPrompts, check_share_of_wrong
from local_distill.prompts.rendering import Renderer
from local_distill.wording import counted

MOST_HELD_OUT = 16
HELD_OUT_SHARE = 4  # of a small source, one prompt in so many
ALL_WRONG = 256
"""Where the first so many rows are all wrong, no more are looked at."""
SHOWN = 5
"""Control tokens that are named."""


@dataclass(frozen=True)
class Limits:
    """A prompt may be this long (tokens). context_length: what the model can hold, None if unknown."""

    max_prompt_tokens: int
    max_new_tokens: int
    context_length: int | None = None

    def __post_init__(self) -> None:
        if self.context_length is not None and self.max_new_tokens >= self.context_length:
            raise UserError(
                f"--max_new_tokens: {self.max_new_tokens} given, but the context holds {self.context_length} tokens, "
                "prompt included; lower it"
            )

    @property
    def room(self) -> int | None:
        """Return the tokens that the context leaves for the prompt; None if unknown."""
        return None if self.context_length is None else self.context_length - self.max_new_tokens

    @property
    def longest(self) -> int:
        """Return the tokens of the longest prompt that is used."""
        return self.max_prompt_tokens if self.room is None else min(self.max_prompt_tokens, self.room)

    @property
    def reason(self) -> str:
        """Say in words what sets ``longest``."""
        if self.longest == self.max_prompt_tokens:
            return "--max_prompt_tokens"
        return f"what --max_new_tokens {self.max_new_tokens} leaves of the context of {self.context_length}"


@dataclass
class _Tally:
    """What became of the rows that were looked at."""

    looked_at: int = 0
    asks_nothing: int = 0
    repeated: int = 0
    too_long: list[int] = field(default_factory=list)  # their lengths, in tokens
    wrong: list[UserError] = field(default_factory=list)
    typed: list[list[str]] = field(default_factory=list)  # control tokens, of the prompts that spell some
    tools_unused: int = 0

    def notes(self, limits: Limits, keeps_control_tokens: bool) -> Iterator[str]:
        left_out = (
            (len(self.too_long), f"longer than {limits.longest} tokens ({limits.reason})"),
            (self.repeated, "the same as another one"),
            (self.asks_nothing, "no user message with text"),
            (len(self.wrong), f"wrong, such as {self.wrong[0]}" if self.wrong else ""),
        )
        read = f"of the {counted(self.looked_at, 'prompt')} read"
        yield from (f"{n} {read} {'is' if n == 1 else 'are'} left out: {why}" for n, why in left_out if n)
        if self.typed:
            names = " ".join(sorted({name for names in self.typed for name in names})[:SHOWN])
            kept = "as which they are kept" if keeps_control_tokens else "ordinary text, unless --keep_control_tokens"
            spell = "spells" if len(self.typed) == 1 else "spell"
            yield f"{len(self.typed)} {read} {spell} control tokens ({names}): {kept}"
        if self.tools_unused:
            have = "has" if self.tools_unused == 1 else "have"
            yield f"{self.tools_unused} {read} {have} tools, or calls of tools, that this chat template does not write"


@dataclass(frozen=True)
class PromptSource:
    """Deals the prompts of a run to its steps. ``len`` of it: the distinct prompts that it trains on.

    Training prompts are dealt one after the other, epoch after epoch, each epoch in an order of its
    own. The first epoch is in the order in which the rows were rendered, so that a run needs to
    render no more than it uses, and a longer run begins with the same batches.

    held_out: prompts to evaluate on; never in a batch. training: in the order of the first epoch.
    steps: how many batches there are. notes: things to say aloud.
    """

    held_out: tuple[Prompt, ...]
    training: tuple[Prompt, ...]
    seed: int
    batch_size: int
    steps: int
    notes: tuple[str, ...] = ()

    @classmethod
    def build(
        cls,
        raw: RawPrompts,
        renderer: Renderer,
        *,
        seed: int,
        batch_size: int,
        steps: int,
        eval_prompts: int | None,
        max_prompt_tokens: int,
        max_new_tokens: int,
        context_length: int | None,
    ) -> PromptSource:
        """Render as many prompts as the run needs, hold ``eval_prompts`` out, keep the rest to train on.

        eval_prompts: None for 16, or a quarter of a small source. A row that is no prompt, or that
        cannot be rendered, is left out. Raises UserError when half of them are such, when a written prompt cannot
        fit, and when none is left to train on.
        """
        limits = Limits(max_prompt_tokens, max_new_tokens, context_length)
        tally = _Tally()
        usable = _usable(raw, renderer, seed, limits, tally)
        if eval_prompts is None:
            found = list(islice(usable, MOST_HELD_OUT * HELD_OUT_SHARE))
            held_out = min(MOST_HELD_OUT, len(found) // HELD_OUT_SHARE)
        else:
            found, held_out = [], eval_prompts
        wanted = len(raw) if raw.must_fit else held_out + steps * batch_size
        found += islice(usable, max(0, wanted - len(found)))
        if next(usable, None) is not None:
            # There are more, which this run does not come to: it ends within the first epoch.
            found = found[:wanted]
        check_share_of_wrong(tally.wrong, tally.looked_at)
        if len(found) <= held_out:
            raise _none_to_train_on(raw.name, len(found), held_out, tally, limits)
        training = tuple(found[held_out:])
        left = counted(len(training), "prompt")
        dealt = f"{left} to train on and {held_out} held out, from the {len(raw)} of {raw.name}"
        thinking = filter(None, [renderer.thinking_note(max_new_tokens)])
        notes = (*renderer.notes, *thinking, *tally.notes(limits, renderer.keeps_control_tokens), dealt)
        return cls(tuple(found[:held_out]), training, seed, batch_size, steps, notes)

    def __len__(self) -> int:
        return len(self.training)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest prompt."""
        return max(len(prompt.ids) for prompt in (*self.training, *self.held_out))

    def batch(self, step: int) -> list[Prompt]:
        """Return the ``batch_size`` prompts of a step, 0 ≤ step < steps; the same whenever it is asked for."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        first = step * self.batch_size
        return [self._dealt(place) for place in range(first, first + self.batch_size)]

    def _dealt(self, place: int) -> Prompt:
        epoch, index = divmod(place, len(self))
        order = shuffled(len(self), self.seed, epoch) if epoch else range(len(self))
        return self.training[order[index]]


def _usable(raw: RawPrompts, renderer: Renderer, seed: int, limits: Limits, tally: _Tally) -> Iterator[Prompt]:
    """The distinct prompts that fit, in the order of the seed; rows are rendered as they are asked for."""
    # Written prompts are all looked at now, and in the file's order, so that its first mistake is what is reported.
    written = [_fitting(_render(raw, renderer, i, tally), limits) for i in range(len(raw))] if raw.must_fit else None
    seen: set[tuple[int, ...]] = set()
    for index in shuffled(len(raw), seed):
        tally.looked_at += 1
        prompt = _render(raw, renderer, index, tally) if written is None else written[index]
        if prompt is None:
            if written is None and len(tally.wrong) == tally.looked_at == ALL_WRONG:
                return
        elif len(prompt.ids) > limits.longest:
            tally.too_long.append(len(prompt.ids))
        elif prompt.ids in seen:
            tally.repeated += 1
        else:
            seen.add(prompt.ids)
            yield prompt


def _render(raw: RawPrompts, renderer: Renderer, index: int, tally: _Tally) -> Prompt | None:
    """None for a row that asks nothing, or is wrong."""
    try:
        prompt = raw[index]
        if not prompt.messages:
            tally.asks_nothing += 1
            return None
        ids = renderer.render(prompt)
    except UserError as error:
        tally.wrong.append(error)
        return None
    if typed := renderer.control_tokens_in(prompt):
        tally.typed.append(typed)
    tally.tools_unused += renderer.ignores_tools_of(prompt)
    return Prompt(ids, prompt.text, prompt.origin, prompt.answer)


def _fitting(prompt: Prompt | None, limits: Limits) -> Prompt | None:
    """The prompt, unless no setting of --max_prompt_tokens would let it fit the context: then UserError."""
    if prompt is not None and limits.room is not None and len(prompt.ids) > limits.room:
        raise UserError(
            f"--prompts_file: {prompt.origin} has {len(prompt.ids)} tokens and --max_new_tokens is "
            f"{limits.max_new_tokens}, together more than the context of {limits.context_length}; "
            "shorten the prompt or lower --max_new_tokens"
        )
    return prompt


def _none_to_train_on(name: str, usable: int, held_out: int, tally: _Tally, limits: Limits) -> UserError:
    if usable:
        return UserError(
            f"--eval_prompts: {held_out} given, but {name} has {usable} usable distinct prompts; "
            f"at least 1 must be left to train on, so give {usable - 1} or fewer"
        )
    if tally.too_long:
        by_context = limits.longest < limits.max_prompt_tokens
        return UserError(
            f"--max_prompt_tokens: {limits.max_prompt_tokens} given, and no prompt of {name} fits in {limits.longest} "
            f"tokens ({limits.reason}), the shortest has {min(tally.too_long)}; "
            f"{'lower --max_new_tokens' if by_context else 'raise it'}, or use shorter prompts"
        )
    return UserError(f"{name}: no prompt in it asks anything; needs text, or a user message with text")
