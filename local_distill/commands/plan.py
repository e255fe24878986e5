"""local-distill plan: does a run fit the memory, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from local_distill.commands import Command
from local_distill.config.parsing import option
from local_distill.config.places import look_for_models
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.monitor.working import working

if TYPE_CHECKING:
    from local_distill.plan.advice import Advice
    from local_distill.plan.fitting import Plan

USAGE = """\
local-distill plan --student_model MODEL --teacher_model MODEL [settings of train]
                          [--gpus N] [--gpu_memory GB] [--zero2] [--json]

examples:
  local-distill plan --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B \\
      --use_lora --gradient_checkpointing --gpu_memory 24
  local-distill plan --config examples/recipes/qwen3_4b_from_32b_4xa800.yaml \\
      --gpus 4 --gpu_memory 80 --zero2
  local-distill plan --config run.yaml                   # on this machine
"""
DOING = "reading configurations and counting the memory of each phase"

_plan = partial(option, "plan")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(TrainConfig):
    """A plan is asked of a run and a machine. Raises UserError when they contradict each other."""

    gpus: int | None = _plan(
        "GPUs of the run, one process for each. Default: 1, or with no --gpu_memory this machine's."
    )
    gpu_memory: float | None = _plan("Memory of each GPU (GB, as cards are sold). Default: this machine's memory.")
    zero2: bool = _plan(
        "The student's gradients and optimizer are sharded by DeepSpeed ZeRO-2, as accelerate_config_zero2.yaml asks.",
        False,
    )
    json: bool = _plan("Print JSON.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus is not None and self.gpus < 1:
            raise UserError(f"--gpus: {self.gpus} given, needs to be at least 1")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < 1e6:
            raise UserError(f"--gpu_memory: {self.gpu_memory:g} given, needs to be above 0 (GB of one GPU)")
        if self.gpus is not None and self.batch_size < self.gpus:
            raise UserError(
                f"--batch_size: {self.batch_size} given for {self.gpus} GPUs, needs to be at least as many; raise it"
            )


def run(settings: PlanSettings) -> int:
    """Print the plan. Returns 0 when the run fits, 1 when it does not."""
    with working(DOING):
        plan, advice = _planned(settings)
    from local_distill.monitor.terminal import open_console
    from local_distill.plan.display import as_record, show
    from local_distill.runs.jsonl import to_json

    if settings.json:
        print(to_json(as_record(plan, advice), indent=2))
    else:
        show(plan, advice, open_console())
    return 0 if plan.fits else 1


def _planned(settings: PlanSettings) -> tuple[Plan, Advice | None]:
    from local_distill.plan.advice import advise
    from local_distill.plan.fitting import make_plan
    from local_distill.plan.machine import planned_machine
    from local_distill.plan.memory import Memory
    from local_distill.plan.planned_run import open_run
    from local_distill.process.isolation import quiet_libraries

    with quiet_libraries():
        machine = planned_machine(settings.gpus, settings.gpu_memory)
        plan = make_plan(Memory(open_run(settings, machine, 2 * settings.zero2)))
        return plan, None if plan.fits else advise(plan)


COMMAND = Command(
    "plan",
    PlanSettings,
    run,
    USAGE,
    "Memory of a run, part by part, before anything is loaded.",
    DOING,
    look_for_models,
)
