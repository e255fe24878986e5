"""A short run for trackers, told to them through the run's log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from local_distill.monitor.log import RunLog
from local_distill.runs.evaluations import Completion, Evaluation, Piece

CONFIG = {"steps": 3, "learning_rate": 1e-4, "use_lora": True, "dataset": None, "betas": (0.9, 0.95), "dir": Path("x")}
HOSTILE = "<script>alert('x')</script> | **b** [a](http://x.example) `c`"
"""What a model might write to be run, followed or laid out by who shows it."""
COMPLETION = Completion(
    prompt="Capital of France?",
    text="\x1b[31mParis \ud83d",
    tokens=3,
    finish="stop",
    reverse_kl=math.nan,
    pieces=(
        Piece("\x1b[31mParis", -0.5, -2.0, 1.5, ((" Lyon", -0.25), (HOSTILE, -1.0))),
        Piece(" \ud83d", -1.0, -0.5, -0.5),
        Piece(HOSTILE, -1.0, -math.inf, math.inf),
    ),
)
NUMBERS = {"eval/reverse_kl": 1.5, "eval/reverse_kl_se": 0.1, "eval/completion_tokens": 3.0, "eval/truncated": 0.25}
"""What ``evaluation`` is to every tracker."""


def evaluation(step: int) -> Evaluation:
    return Evaluation(
        step=step, reverse_kl=1.5, standard_error=0.1, length=3.0, truncated=0.25, completions=(COMPLETION,)
    )


def accelerator(*log_with: Any) -> Accelerator:
    """One that no earlier one shares its state with."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, log_with=list(log_with) or None, project_dir="nowhere")


def run(log: RunLog, first: int = 1, last: int = 3) -> None:
    with log:
        if first == 1:
            log.evaluation(evaluation(0))
        for step in range(first, last + 1):
            log.step(step, {"reverse_kl": 1 / step, "loss": math.nan, "seconds/sample": 1.5})
        log.evaluation(evaluation(last))


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
