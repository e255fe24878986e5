"""local-distill eval: how good a model is, and how much better than another."""

from __future__ import annotations

from local_distill.commands import Command
from local_distill.config.places import look_by_place
from local_distill.eval.eval_config import EvalSettings

USAGE = r"""
local-distill eval MODEL [MODEL ...] [settings]

examples:
  local-distill eval runs/mine --teacher_model Qwen/Qwen3-4B --prompts_file prompts.txt
  local-distill eval Qwen/Qwen3-0.6B runs/mine --dataset gsm8k,math500 --limit 200     # before and after, paired
  local-distill eval runs/mine --dataset aime24 --samples 16 --temperature 0.6 --top_p 0.95 --max_new_tokens 8192
  local-distill eval runs/mine --dataset questions.jsonl --answers exact --prompt_template '{question} One word.'
  local-distill eval runs/mine --dataset gsm8k --rollouts_url http://localhost:8000    # vLLM serves runs/mine
  local-distill eval runs/mine --tasks ifeval,mmlu                                     # lm-evaluation-harness
""".lstrip()
DESCRIPTION = (
    "Verified answers and held-out reverse KL, with standard errors. Several MODELs are compared with the first, "
    "paired by question. Stopped, it goes on where it was when it is started again with the same --output."
)


def run(settings: EvalSettings) -> int:
    """Evaluate. Returns the exit code."""
    from local_distill.eval.evaluate import evaluate  # it imports torch, which takes seconds
    from local_distill.process.isolation import quiet_libraries

    with quiet_libraries():
        return evaluate(settings)


COMMAND = Command("eval", EvalSettings, run, USAGE, DESCRIPTION, first=look_by_place)
