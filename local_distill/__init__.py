"""On-policy distillation of language models on your own machines.

    from local_distill import TrainConfig, train

    result = train(TrainConfig(student_model="HuggingFaceTB/SmolLM2-135M-Instruct",
                               teacher_model="HuggingFaceTB/SmolLM2-1.7B-Instruct", use_lora=True))
    print(result.before.reverse_kl, "→", result.after.reverse_kl, "in", result.folder)

Names are loaded when they are asked for: ``import local_distill`` alone takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_distill.config.train_config import TrainConfig
    from local_distill.errors import UserError
    from local_distill.runs.evaluations import Completion, Evaluation, TrainResult
    from local_distill.train_on_policy_local import train

__version__ = "0.2.0"
__all__ = ["Completion", "Evaluation", "TrainConfig", "TrainResult", "UserError", "__version__", "train"]

_HOMES = {
    "Completion": "runs.evaluations",
    "Evaluation": "runs.evaluations",
    "TrainConfig": "config.train_config",
    "TrainResult": "runs.evaluations",
    "UserError": "errors",
    "train": "train_on_policy_local",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
