"""The teacher writes some of a step's completions, and the student learns at the teacher's prefixes as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from local_distill.batch import Prompt, Rollout, RolloutEngine, ignore
from local_distill.process.seeding import shuffled


class MixedRollouts:
    """The prompts of a step are dealt to two engines: the student's own, and one that samples with the teacher.

    share: of a 0-based step, how much of its prompts the teacher continues. batch_size: prompts of a step, over all
    processes. Who continues which prompt depends on the seed and the step alone, not on the process that asks.
    """

    def __init__(
        self, student: RolloutEngine, teacher: RolloutEngine, share: Callable[[int], float], batch_size: int, seed: int
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._share = share
        self._batch_size = batch_size
        self._seed = seed

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """``group_size`` rollouts of each (position, prompt), in that order; see RolloutEngine."""
        taught = self.taught(step)
        students = [each for each in prompts if each[0] not in taught]
        teachers = [each for each in prompts if each[0] in taught]
        rollouts = self._student.sample(students, step, finished)
        rollouts += [_of_teacher(each) for each in self._teacher.sample(teachers, step, finished)]
        place = {position: i for i, (position, _) in enumerate(prompts)}
        return sorted(rollouts, key=lambda rollout: place[rollout.position])  # keeps the order within a group

    def taught(self, step: int) -> frozenset[int]:
        """Return the positions of a step that the teacher continues."""
        count = round(self._share(step) * self._batch_size)
        return frozenset(shuffled(self._batch_size, self._seed, step + 1)[:count])


def falling_share(share: float, steps: int | None) -> Callable[[int], float]:
    """Return the teacher's share of a 0-based step: the same all the time, or falling evenly to 0 over ``steps``."""
    return lambda step: share if steps is None else share * max(0.0, 1 - step / steps)


def _of_teacher(rollout: Rollout) -> Rollout:
    """Take away what it was drawn with: no ratio and no mismatch of the student's sampler is to be taken of it."""
    return replace(rollout, sampler_logprobs=torch.full_like(rollout.sampler_logprobs, math.nan))
