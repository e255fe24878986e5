"""Tasks of lm-evaluation-harness, by its own library, on a model that is loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError, one_line
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.statistics import Estimate
from local_distill.models.files import causal_lm
from local_distill.prompts import parse_template_kwargs

PLAIN_FILTER = "none"
TaskResults = Mapping[str, Mapping[str, Estimate]]
"""What one model did: task → metric → its mean, with a standard error of NaN where the harness gives none."""
Harness = Mapping[str, TaskResults]
"""The same of all models, by their names."""


def run_tasks(
    settings: EvalSettings, model: nn.Module, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> TaskResults:
    """Put the ``--tasks`` to a model.

    The harness renders, samples and scores by its own rules; of ours it takes the chat template, the system prompt,
    the limit and the seed. Raises UserError when it does not know a task or cannot run it.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = comma_separated(settings.tasks)
    manager = TaskManager(include_path=settings.tasks_path)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UserError(
            f"--tasks: {unknown[0]} is not known to lm-evaluation-harness; `lm-eval ls tasks` lists them, --tasks_path "
            "adds a folder"
        )
    lm = HFLM(
        pretrained=causal_lm(model),
        tokenizer=tokenizer,
        device=str(device),
        batch_size=settings.sampling_batch_size,
        max_batch_size=settings.sampling_batch_size,
        chat_template_args=parse_template_kwargs(settings.chat_template_kwargs),
    )
    templated = settings.chat_template != "off" and bool(tokenizer.chat_template)
    try:
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=names,
            limit=settings.limit,
            task_manager=manager,
            apply_chat_template=templated,
            system_instruction=settings.system_prompt,
            random_seed=settings.seed,
            log_samples=False,
        )
    # Tasks are programs of their own, with data from the hub: any of it can fail in any way.
    except Exception as error:
        raise UserError(f"--tasks {settings.tasks}: lm-evaluation-harness failed: {one_line(error)}") from error
    return {task: _metrics(numbers) for task, numbers in found["results"].items()}


def _metrics(numbers: Mapping[str, Any]) -> dict[str, Estimate]:
    """Read what the harness writes: ``acc,none`` and ``acc_stderr,none``, side by side with names that are text."""
    found = {}
    for key, value in numbers.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = numbers.get(f"{metric}_stderr,{kept}")
        name = metric if kept == PLAIN_FILTER else f"{metric} ({kept})"
        found[name] = Estimate(float(value), float(error) if isinstance(error, int | float) else float("nan"))
    return found
