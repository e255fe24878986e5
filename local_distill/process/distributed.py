"""The few words that processes have to say to each other."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch.distributed import distributed_c10d

from local_distill.errors import RunError, UserError, with_type

T = TypeVar("T")


def runs_on_cuda() -> bool:
    """Return whether a run that starts here takes a GPU: there is one, and the launch did not ask for processors."""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


@contextmanager
def processes_meet(patience: timedelta) -> Iterator[None]:
    """Let the processes of one launch find each other. patience: how long one is waited for, wherever that is.

    Given here, where the group is made. DeepSpeed makes groups of its own out of it, for which torch has defaults: ten
    minutes where they are NCCL's.
    """
    names = ("default_pg_timeout", "default_pg_nccl_timeout")
    before = {name: getattr(distributed_c10d, name) for name in names}
    try:
        for name in names:
            setattr(distributed_c10d, name, patience)
        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=patience)
        yield
    finally:
        for name, value in before.items():
            setattr(distributed_c10d, name, value)


@contextmanager
def losing_others() -> Iterator[None]:
    """Raise RunError where another process has ended, or did not come for as long as it was waited for."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
            raise
        if "out of memory" in str(error):  # what NCCL lacks for itself on this device
            raise
        who = f"process {PartialState().process_index} on {platform.node()}"
        said = with_type(error, 200)
        raise alone(RunError(f"{who}: another one has ended or does not answer, see what it wrote ({said})")) from error


def alone(error: UserError) -> UserError:
    """Mark the error as one that this process alone must say, and return it; see UserError."""
    error.alone = True
    return error


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, element by element; collective."""
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return total


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any process; collective."""
    return bool(sum_over_processes(accelerator, torch.tensor([float(flag)]))[0] > 0)


def reduce_max(accelerator: Accelerator, number: int) -> int:
    """Return the largest of the processes' numbers; collective."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def gather_lists(accelerator: Accelerator, items: list[T]) -> list[T]:
    """Return every process's items, in the order of the processes; collective."""
    gathered: list[T] = gather_object(items) if accelerator.num_processes > 1 else items
    return gathered


def on_main_process(accelerator: Accelerator | PartialState, ask: Callable[[], T]) -> T:
    """Run ``ask`` on the main process and give its answer to all. Collective; ``ask`` is not.

    A UserError is raised on all; of any other error, which the main process raises, the others raise a RunError.
    """
    answer: list[T | UserError | None] = [None]
    unforeseen: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except UserError as error:
            answer[0] = error
        except Exception as error:
            unforeseen = error
            answer[0] = RunError(f"{with_type(error, None)} (process 0, on {platform.node()})")
    broadcast_object_list(answer)
    if unforeseen is not None:
        raise unforeseen
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]  # type: ignore[return-value]


def on_every_process(ask: Callable[[], T]) -> T:
    """Run ``ask`` on every process; a UserError or OSError of one ends all, which else would wait. Collective.

    Where ``ask`` is collective too, it raises those only where all processes have come to the same place.
    """
    answer: list[T] = []
    own: UserError | OSError | None = None
    try:
        answer.append(ask())
    except (UserError, OSError) as error:
        own = error
    text = "" if own is None else str(own) if isinstance(own, UserError) else with_type(own, None)
    said = [(platform.node(), isinstance(own, (RunError, OSError)), text)]
    everybody = gather_object(said) if PartialState().num_processes > 1 else said
    if own is not None:
        raise own
    for process, (machine, during_run, text) in enumerate(everybody):
        if text:
            raise (RunError if during_run else UserError)(f"{text} (process {process}, on {machine})")
    return answer[0]
