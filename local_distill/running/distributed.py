"""The few words that processes have to say to each other."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from local_distill.errors import RunError, UserError

T = TypeVar("T")


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Element by element, over all processes; collective."""
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return total


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set anywhere; collective."""
    return bool(sum_over_processes(accelerator, torch.tensor([float(flag)]))[0] > 0)


def most_anywhere(accelerator: Accelerator, number: int) -> int:
    """The largest of the processes' numbers; collective."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def gather_lists(accelerator: Accelerator, items: list[T]) -> list[T]:
    """Every process's items, in the order of the processes; collective."""
    gathered: list[T] = gather_object(items) if accelerator.num_processes > 1 else items
    return gathered


def on_main_process(accelerator: Accelerator, ask: Callable[[], T]) -> T:
    """Run ``ask`` on the main process and give its answer to all; a UserError is raised on all. Collective."""
    answer: list[T | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except UserError as error:
            answer[0] = error
    broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]  # type: ignore[return-value]


def on_every_process(ask: Callable[[], T]) -> T:
    """Run ``ask`` on every process; a UserError of one is raised on all, which else would wait. Collective."""
    answer: list[T] = []
    own: UserError | None = None
    try:
        answer.append(ask())
    except UserError as error:
        own = error
    said = [(platform.node(), isinstance(own, RunError), str(own) if own else "")]
    everybody = gather_object(said) if PartialState().num_processes > 1 else said
    if own is not None:
        raise own
    for process, (machine, during_run, text) in enumerate(everybody):
        if text:
            raise (RunError if during_run else UserError)(f"{text} (process {process}, on {machine})")
    return answer[0]
