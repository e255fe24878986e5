"""Sums and peaks of a step's numbers, over micro-batches, updates and processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from local_distill.head.chunked_loss import PEAK
from local_distill.process.distributed import sum_over_processes


@dataclass
class StepSums:
    """Sums and peaks of an update so far; everything stays on the device until ``over_processes``."""

    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, stats: Mapping[str, Tensor]) -> None:
        """Add the stats of a micro-batch, each a scalar or one number a token."""
        for name, value in stats.items():
            if name.startswith(PEAK):
                found = value.amax() if value.numel() else value.new_zeros(())
                self.totals[name] = torch.maximum(self.totals.get(name, found), found)
            else:
                self.totals[name] = self.totals.get(name, 0.0) + value.sum()

    def over_processes(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the sums over all processes, and the largest of the peaks; collective."""
        values = torch.stack([value.float() for value in self.totals.values()])
        sums = sum_over_processes(accelerator, values).tolist()
        peaks = accelerator.gather(values[None]).amax(0).tolist()
        return {
            name: peak if name.startswith(PEAK) else total
            for name, total, peak in zip(self.totals, sums, peaks, strict=True)
        }


def merge(into: dict[str, float], more: Mapping[str, float]) -> None:
    """Add the numbers of one more update."""
    for name, value in more.items():
        if name.startswith(PEAK):
            into[name] = max(into.get(name, value), value)
        else:
            into[name] = into.get(name, 0.0) + value


def per_token(totals: Mapping[str, float], tokens: float) -> dict[str, float]:
    """Return the means of the sums, NaN for no tokens; peaks as they are, under their plain names."""
    return {
        name.removeprefix(PEAK): total if name.startswith(PEAK) else total / tokens if tokens else float("nan")
        for name, total in totals.items()
    }
