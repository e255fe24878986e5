"""What a step cost and what its rollouts were like."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch.profiler import record_function

from local_distill.batch import Rollout
from local_distill.process.distributed import sum_over_processes

PHASE = "phase: "
"""What the names of phases begin with in a profile."""
IN_WORDS = {"sample": "sampling", "score": "scoring", "train": "training"}
"""What people are told while a phase lasts."""


class StepClock:
    """The seconds of each phase of a step are measured here, as metrics ``seconds/<phase>``.

    doing: told of each phase, in words, when it begins.
    """

    def __init__(self, device: torch.device, doing: Callable[[str], None] = lambda _: None) -> None:
        self._device = device
        self._doing = doing
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside, to the end of its work on the device."""
        self._doing(IN_WORDS.get(name, name))
        start = time.perf_counter()
        with record_function(PHASE + name):
            yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # once a phase: what was queued in it belongs to it
        self._phases[name] = time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Return the seconds of the phases, and of the whole step so far."""
        phases = {f"seconds/{name}": seconds for name, seconds in self._phases.items()}
        return {**phases, "seconds/step": time.perf_counter() - self._start}


def rollout_metrics(accelerator: Accelerator, rollouts: Sequence[Rollout], seconds: float) -> dict[str, float]:
    """Return lengths and speed over the rollouts of all processes; collective."""
    tokens_of_each = [len(r.completion) for r in rollouts]
    counts = [
        len(rollouts), sum(tokens_of_each), sum(r.finish == "length" for r in rollouts), sum(r.age for r in rollouts)
    ]  # fmt: skip
    sums = sum_over_processes(accelerator, torch.tensor(counts, dtype=torch.float32))
    number, tokens, truncated, age = sums.tolist()
    return {
        "completion_tokens": tokens / number,
        "truncated": truncated / number,
        "staleness": age / number,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held: on the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _peak_resident_bytes() / 2**30


def _peak_resident_bytes() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak
    # On Linux getrusage begins with the memory of whoever started this process; the kernel's own record does not.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return (own or [peak])[0] * 2**10
