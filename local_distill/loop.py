"""On-policy distillation, from top to bottom.

Sample with the student, score with the teacher, move the student towards what the teacher would have
said. Everything in here is a verb of the method; what carries it out was chosen by the entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from accelerate import Accelerator

from local_distill.batch import Prompt, Rollout, RolloutEngine, ScoredBatch, Teacher, TokenBatch
from local_distill.monitor.measuring import StepClock, peak_memory_gib, rollout_metrics
from local_distill.monitor.profiler import Profiler
from local_distill.process.distributed import on_every_process
from local_distill.process.interruption import StopRequest
from local_distill.runs.evaluations import Evaluation
from local_distill.training.batching import share_of_process
from local_distill.training.device_memory import score
from local_distill.training.learner import Learner


class Prompts(Protocol):
    """Where prompts come from."""

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of a 0-based step, the same on every process: the position in the data is one integer."""
        ...


class Evaluator(Protocol):
    """What the loop asks before, during and after training."""

    def evaluate(self, step: int) -> Evaluation | None:
        """The student after ``step`` updates, or None when nothing is held out; collective."""
        ...


class Log(Protocol):
    """Who is told: what is done now, and what came of it."""

    def doing(self, what: str) -> None: ...
    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def evaluation(self, evaluation: Evaluation) -> None: ...


class Saver(Protocol):
    """Who keeps the result."""

    def save(self, step: int) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """How far to go, and how often to evaluate and save; 0 is only at the end.

    first_step: steps done before. evaluates_first: the state before the next step is still to be evaluated.
    """

    first_step: int
    evaluates_first: bool
    steps: int
    eval_every: int
    save_every: int

    def evaluates_after(self, step: int) -> bool:
        return step == self.steps or (self.eval_every > 0 and step % self.eval_every == 0)

    def saves_after(self, step: int) -> bool:
        return step == self.steps or (self.save_every > 0 and step % self.save_every == 0)


def distil(
    accelerator: Accelerator,
    prompts: Prompts,
    engine: RolloutEngine,
    collate: Callable[[Sequence[Rollout]], list[list[TokenBatch]]],
    teacher: Teacher,
    learner: Learner,
    evaluator: Evaluator,
    saver: Saver,
    log: Log,
    schedule: Schedule,
    stop: StopRequest,
    profiler: Profiler,
) -> int:
    """Run the steps of the schedule. Returns the number of steps done when it ended or was asked to stop."""
    if schedule.evaluates_first:
        _evaluate(evaluator, log, schedule.first_step)

    for step in range(schedule.first_step, schedule.steps):
        profiler.start_step()
        clock = StepClock(accelerator.device, log.doing)
        with clock.phase("sample"):
            own = share_of_process(prompts.batch(step), accelerator.process_index, accelerator.num_processes)
            rollouts = on_every_process(partial(engine.sample, own, step, finished=teacher.prepare))
        with clock.phase("score"):
            substeps = on_every_process(partial(_score, teacher, collate(rollouts)))
        with clock.phase("train"):
            metrics = learner.update(substeps, step)
        del substeps  # with a teacher's whole distribution, as much as activations: not while the next step samples

        done = step + 1
        metrics |= clock.metrics()
        metrics |= rollout_metrics(accelerator, rollouts, metrics["seconds/step"])
        metrics |= {"peak_memory_gib": peak_memory_gib(accelerator.device)}
        on_every_process(partial(log.step, done, metrics))
        on_every_process(profiler.end_step)  # after the step was timed: a trace takes seconds to write

        stopping = stop.agreed(accelerator)
        if schedule.evaluates_after(done) and not stopping:
            _evaluate(evaluator, log, done)
        if schedule.saves_after(done) or stopping:
            log.doing("saving")
            saver.save(done)
        if stopping:
            return done
    return schedule.steps


def _score(teacher: Teacher, substeps: list[list[TokenBatch]]) -> list[list[ScoredBatch]]:
    return [[score(teacher, batch) for batch in batches] for batches in substeps]


def _evaluate(evaluator: Evaluator, log: Log, step: int) -> None:
    evaluation = evaluator.evaluate(step)
    if evaluation is not None:
        on_every_process(partial(log.evaluation, evaluation))
