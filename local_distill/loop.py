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

    def evaluate(self, step: int, stop: StopRequest) -> Evaluation | None:
        """The student after ``step`` updates; collective. None when nothing is held out, or it was asked to stop."""
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
    saved_first: that state is in the run's folder.
    """

    first_step: int
    evaluates_first: bool
    saved_first: bool
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
    done = schedule.first_step
    saved = done if schedule.saved_first else None
    if schedule.evaluates_first:
        _evaluate(evaluator, log, stop, done)

    while done < schedule.steps and not stop.agreed(accelerator):
        step = done
        stop.answers(f"finishing step {step + 1}")
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

        if schedule.evaluates_after(done) and not stop.agreed(accelerator):
            _evaluate(evaluator, log, stop, done)
        if schedule.saves_after(done):
            saved = _save(saver, log, done)
    if saved != done:
        _save(saver, log, done)
    return done


def _score(teacher: Teacher, substeps: list[list[TokenBatch]]) -> list[list[ScoredBatch]]:
    return [[score(teacher, batch) for batch in batches] for batches in substeps]


def _save(saver: Saver, log: Log, step: int) -> int:
    log.doing("saving")
    saver.save(step)
    return step


def _evaluate(evaluator: Evaluator, log: Log, stop: StopRequest, step: int) -> None:
    stop.answers("leaving the evaluation and saving")
    evaluation = evaluator.evaluate(step, stop)
    if evaluation is not None:
        on_every_process(partial(log.evaluation, evaluation))
