"""local-distill plan: does a run fit the memory, from configurations alone."""

from __future__ import annotations

from local_distill.commands.command import Command
from local_distill.plan.plan_config import PlanSettings

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


def run(settings: PlanSettings) -> int:
    """Print the plan. Returns 0 when the run fits, 1 when it does not."""
    from local_distill.monitor.terminal import open_console
    from local_distill.plan.advice import advise
    from local_distill.plan.display import as_record, show
    from local_distill.plan.fitting import make_plan
    from local_distill.plan.memory import Memory
    from local_distill.plan.opening import open_run
    from local_distill.process.isolation import quiet_libraries
    from local_distill.runs.jsonl import to_json

    with quiet_libraries():
        plan = make_plan(Memory(open_run(settings)))
        advice = None if plan.fits else advise(plan)
    if settings.json:
        print(to_json(as_record(plan, advice), indent=2))
    else:
        show(plan, advice, open_console())
    return 0 if plan.fits else 1


COMMAND = Command("plan", PlanSettings, run, USAGE, "Memory of a run, part by part, before anything is loaded.")
