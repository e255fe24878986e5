"""The next batch is sampled while this one trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, runtime_checkable

from local_distill.batch import Prompt, Rollout, ignore
from local_distill.process.distributed import on_every_process

Numbered = Sequence[tuple[int, Prompt]]


@runtime_checkable
class ServedEngine(Protocol):
    """An engine outside of this process is sent weights, and draws, at two times."""

    def refresh(self) -> None:
        """Send it the newest weights; collective."""
        ...

    def draw(self, prompts: Numbered, step: int, finished: Callable[[Rollout], None] = ignore) -> list[Rollout]:
        """Sample with the weights that it has; from any thread."""
        ...


class OverlappedRollouts:
    """Batch k + 1 is drawn while batch k trains, so with the weights from before that update: one step old.

    Every rollout says how many updates old it is when it is handed over (``age``); importance sampling against what
    it was drawn with corrects for that.

    prompts_of: this process's (position, prompt) of a step, None past the last. version: updates made so far.
    """

    def __init__(
        self, engine: ServedEngine, prompts_of: Callable[[int], Numbered | None], version: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._prompts_of = prompts_of
        self._version = version
        self._background = ThreadPoolExecutor(1, "sampling ahead")
        self._ahead: tuple[int, int, Future[list[Rollout]]] | None = None

    def sample(self, prompts: Numbered, step: int, finished: Callable[[Rollout], None] = ignore) -> list[Rollout]:
        """Return the rollouts of ``step``, drawn ahead or now, and begin the next step's; see RolloutEngine."""
        drawn_at, rollouts = self._version(), None
        if self._ahead is not None and self._ahead[0] == step:
            _, drawn_at, future = self._ahead
            self._ahead = None
            # Agreed on before the weights go out, where a process that failed would be waited for.
            rollouts = on_every_process(future.result)
        self._engine.refresh()
        if rollouts is None:
            rollouts = self._engine.draw(prompts, step, finished)
        following = self._prompts_of(step + 1)
        if following is not None:
            begun = self._background.submit(self._engine.draw, following, step + 1, finished)
            self._ahead = (step + 1, self._version(), begun)
        age = self._version() - drawn_at
        return [replace(rollout, age=age) for rollout in rollouts]

    def close(self) -> None:
        """Wait for what is being drawn and forget it."""
        self._background.shutdown(wait=True, cancel_futures=True)
