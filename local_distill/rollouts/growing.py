"""Completions grow over a run: short ones first, for early tokens decide the later ones and cost least to sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from local_distill.batch import Prompt, Rollout, RolloutEngine, ignore


class GrowingRollouts:
    """Each step is sampled by an engine for completions of that step's length.

    make: an engine for completions of at most so many tokens. longest: of a 0-based step.
    """

    def __init__(self, make: Callable[[int], RolloutEngine], longest: Callable[[int], int]) -> None:
        self._make = make
        self._longest = longest
        self._made: tuple[int, RolloutEngine] | None = None

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """``group_size`` rollouts of each (position, prompt), in that order; see RolloutEngine."""
        longest = self._longest(step)
        if self._made is None or self._made[0] != longest:
            self._made = longest, self._make(longest)
        return self._made[1].sample(prompts, step, finished)


def growing_length(first: int, last: int, steps: int) -> Callable[[int], int]:
    """Return the longest completion of a 0-based step: from ``first`` evenly to ``last``, at the last of ``steps``."""
    return lambda step: last if step >= steps - 1 else first + (last - first) * step // (steps - 1)
