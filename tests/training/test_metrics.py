"""Sums are summed, peaks are not, over micro-batches, updates and processes."""

import math

import pytest
import torch
from accelerate import Accelerator

from local_distill.head.chunked_loss import PEAK
from local_distill.training.metrics import StepSums, merge, per_token


def test_micro_batches_sum_and_peaks_keep_the_largest():
    sums = StepSums()
    sums.add({"kl": torch.tensor([1.0, 2.0]), PEAK + "ratio": torch.tensor([5.0, 7.0]), "loss": torch.tensor(0.5)})
    sums.add({"kl": torch.tensor([3.0]), PEAK + "ratio": torch.tensor([6.0]), "loss": torch.tensor(0.25)})
    sums.add({"kl": torch.empty(0), PEAK + "ratio": torch.empty(0), "loss": torch.tensor(0.0)})  # nothing to train on
    found = sums.over_processes(Accelerator(cpu=True))
    assert found == {"kl": 6.0, PEAK + "ratio": 7.0, "loss": 0.75}


def test_updates_merge_and_means_are_over_all_their_tokens():
    totals: dict[str, float] = {}
    merge(totals, {"kl": 6.0, PEAK + "ratio": 7.0})
    merge(totals, {"kl": 2.0, PEAK + "ratio": 3.0})
    assert per_token(totals, 4.0) == {"kl": 2.0, "ratio": 7.0}
    assert math.isnan(per_token({"kl": 0.0}, 0.0)["kl"])


@pytest.mark.parametrize("negative", [-1.0, -3.0])
def test_a_peak_may_be_negative(negative):
    totals: dict[str, float] = {}
    merge(totals, {PEAK + "x": negative})
    assert totals == {PEAK + "x": negative}
