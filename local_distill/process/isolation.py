"""A run inside somebody else's process, such as a notebook: what it changes for all is put back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from local_distill.process.distributed import losing_others, processes_meet


@contextmanager
def one_run(patience: timedelta) -> Iterator[None]:
    """Run in processes that have met, and leave each as it was. patience: how long one waits for another.

    Raises RunError where another process has ended, or did not come.
    """
    with process_left_as_found(), processes_meet(patience), losing_others():
        yield


@contextmanager
def process_left_as_found() -> Iterator[None]:
    """Run with accelerate's state unset, quiet libraries and random numbers of its own; then all is as before.

    What stays: glibc's allocator settings (launch.py), and environment variables that libraries set.
    """
    with ExitStack() as undo:
        undo.callback(gc.collect)  # models are parts of cycles; the next run wants their memory
        met = torch.distributed.is_available() and torch.distributed.is_initialized()  # processes meet only once
        for state in (AcceleratorState, GradientState) if met else (PartialState, AcceleratorState, GradientState):
            undo.enter_context(_set_aside(state._shared_state))
        undo.enter_context(quiet_libraries())
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        gpus = range(torch.cuda.device_count()) if in_use else ()
        undo.enter_context(torch.random.fork_rng(gpus))
        yield


@contextmanager
def _set_aside(shared: dict[str, Any]) -> Iterator[None]:
    """Leave aside accelerate's one state for the process, in which another precision cannot be asked for."""
    found = dict(shared)
    shared.clear()
    try:
        yield
    finally:
        shared.clear()
        shared.update(found)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let libraries tell errors alone, show no bars, and, DeepSpeed, not say which accelerator it does not find."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
