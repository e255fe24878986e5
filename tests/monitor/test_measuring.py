"""What a step cost and what its rollouts were like."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from local_distill.monitor.measuring import StepClock, peak_memory_gib, rollout_metrics
from tests.training.test_batching import rollout

CPU = torch.device("cpu")


def test_metrics_of_rollouts():
    rollouts = [
        replace(rollout([1], [5, 6, 0]), age=2),
        rollout([1], [7] * 8, finish="length"),
        rollout([1], []),
        rollout([1], [0]),
    ]
    assert rollout_metrics(Accelerator(cpu=True), rollouts, seconds=0.5) == {
        "completion_tokens": 3.0,
        "truncated": 0.25,
        "staleness": 0.5,
        "tokens": 12.0,
        "tokens_per_second": 24.0,
    }


def test_the_clock_times_each_phase_and_the_whole_step():
    clock = StepClock(CPU)
    with clock.phase("sample"):
        time.sleep(0.05)
    time.sleep(0.02)  # between the phases, and yet in the step
    with clock.phase("train"):
        time.sleep(0.01)
    found = clock.metrics()
    assert list(found) == ["seconds/sample", "seconds/train", "seconds/step"]
    assert 0.05 <= found["seconds/sample"] < 0.25
    assert 0.01 <= found["seconds/train"] < 0.2
    assert found["seconds/step"] >= found["seconds/sample"] + found["seconds/train"] + 0.02
    assert clock.metrics()["seconds/step"] > found["seconds/step"], "it goes on until the step is over"


def test_a_clock_that_timed_nothing_knows_the_step():
    assert list(StepClock(CPU).metrics()) == ["seconds/step"]


def test_peak_memory_grows_with_what_is_held_and_stays_when_it_is_let_go():
    """In a process of its own: this one may have held more before."""
    program = (
        "import torch; from local_distill.monitor.measuring import peak_memory_gib as peak; cpu = torch.device('cpu');"
        "before = peak(cpu); held = torch.ones(2**27); most = peak(cpu); del held; print(before, most, peak(cpu))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    before, most, after = map(float, done.stdout.split())
    assert 0.02 < before < 2
    assert most - before == pytest.approx(0.5, abs=0.1)
    assert after == pytest.approx(most, abs=0.01)


def test_peak_memory_of_this_process_is_in_gib():
    assert 0.05 < peak_memory_gib(CPU) < 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_of_a_gpu_is_the_gpus():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory_gib(device)
    held = torch.ones(2**28, device=device)
    assert peak_memory_gib(device) - before == pytest.approx(1.0, abs=0.01)
    assert held.device.type == "cuda"


def test_people_are_told_of_each_phase_when_it_begins():
    told = []
    clock = StepClock(CPU, told.append)
    for name in ("sample", "score", "train"):
        with clock.phase(name):
            assert told[-1] != name
    assert told == ["sampling", "scoring", "training"]
