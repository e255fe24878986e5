"""What fits, how much at a time, and which change is named: on real arithmetic of small models."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from local_distill.plan.advice import REMEDIES, Change, advise
from local_distill.plan.fitting import as_set, bounds, largest, make_plan
from local_distill.plan.memory import Memory
from tests.plan.test_memory import run

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("limit", range(12))
def test_the_largest_that_fits_is_found(limit):
    assert largest(lambda n: n <= limit, 10) == min(limit, 10)


def on(memory_bytes, **settings):
    planned = run(**settings)
    return dataclasses.replace(planned, machine=dataclasses.replace(planned.machine, memory=memory_bytes))


@cache
def fullest(**settings):
    """Bytes of the fullest phase with one rollout at a time."""
    return max(phase.bytes for phase in Memory(run(**settings)).phases(1, 1))


def test_what_is_said_to_fit_fits_and_one_more_does_not():
    needed = fullest()
    plan = make_plan(Memory(on(needed * 2)))
    assert plan.fits
    memory = Memory(plan.run)
    assert 1 <= plan.most_rows < bounds(plan.run)[0]
    assert max(memory.training(plan.most_rows).bytes, memory.scoring(plan.most_rows).bytes) <= plan.available
    assert max(memory.training(plan.most_rows + 1).bytes, memory.scoring(plan.most_rows + 1).bytes) > plan.available


def test_a_gpu_begins_with_what_fits_and_a_processor_with_what_is_set():
    on_gpu = make_plan(Memory(on(fullest() * 1.5)))
    assert on_gpu.rows == on_gpu.most_rows < as_set(on_gpu.run)[0]
    on_cpu = make_plan(Memory(on(fullest(device="cpu") * 1.5, device="cpu")))
    assert on_cpu.rows == as_set(on_cpu.run)[0] > on_cpu.most_rows
    assert not on_cpu.fits


def test_a_gpu_begins_with_the_rollouts_that_fit_at_a_time():
    five = Memory(run(lengths=(12, 400))).sampling(5).bytes
    plan = make_plan(Memory(on(five * 1.001, lengths=(12, 400))))
    assert plan.rollouts == plan.most_rollouts == 5 < as_set(plan.run)[1]


def test_how_much_at_a_time_follows_from_the_settings():
    # 8 prompts of 2 rollouts of 32 tokens
    assert as_set(run()) == (16, 16)
    assert as_set(run(microbatch_tokens=100)) == (3, 16)
    assert as_set(run(microbatch_tokens=5)) == (1, 16)
    assert as_set(run(grad_accum=4, sampling_batch_size=5)) == (4, 5)
    assert as_set(run(processes=2, num_substeps=2)) == (4, 8)
    assert as_set(run(device="cpu", lengths=(500, 600))) == (1, 16)


def test_nothing_is_advised_against_what_is_not_the_trouble():
    flags = [str(c) for remedy in REMEDIES if (c := remedy(Change((), run(gradient_checkpointing=True))))]
    assert flags == ["--use_lora", "--teacher_quantization 4bit", "--teacher_offload cpu"]
    flags = [str(c) for remedy in REMEDIES if (c := remedy(Change((), run(processes=2, loss="reverse_kl"))))]
    assert flags == [
        "--gradient_checkpointing", "--use_lora", "--teacher_ds_zero3 --top_k 64", "accelerate_config_zero2.yaml"
    ]  # fmt: skip
    flags = [str(c) for remedy in REMEDIES if (c := remedy(Change((), run(device="cpu", use_lora=True))))]
    assert flags == ["--gradient_checkpointing"]


def test_the_page_on_memory_lists_the_remedies_in_the_order_in_which_they_are_tried():
    text = (ROOT / "docs" / "out_of_memory.md").read_text(encoding="utf-8")
    names = ["--gradient_checkpointing", "--use_lora", "--teacher_ds_zero3", "--teacher_quantization 4bit",
             "--teacher_offload cpu", "ZeRO-2 for the student", "a smaller teacher"]  # fmt: skip
    places = [text.index(name) for name in names]
    assert places == sorted(places)


LONG = {"layers": 3, "lengths": (30, 90), "batch_size": 2, "group_size": 1}
"""A run of which activations take much."""
ADAPTER = {"lora_r": 4, "lora_alpha": 8}


def test_the_first_change_that_is_enough_is_named_and_its_plan_fits():
    checkpointed = fullest(**LONG, gradient_checkpointing=True)
    assert checkpointed < 0.9 * fullest(**LONG)
    advice = advise(make_plan(Memory(on(checkpointed * 1.01, **LONG))))
    assert str(advice.change) == "--gradient_checkpointing"
    assert advice.plan.fits


def test_smaller_micro_batches_are_advised_first_where_they_are_enough():
    needed = fullest()
    advice = advise(make_plan(Memory(on(needed * 1.5, microbatch_tokens=16 * 32))))
    assert str(advice.change).startswith("--microbatch_tokens")
    assert advice.plan.fits


def test_changes_are_taken_together_where_one_is_not_enough():
    together = fullest(**LONG, **ADAPTER, gradient_checkpointing=True, use_lora=True)
    advice = advise(make_plan(Memory(on(together * 1.02, **LONG, **ADAPTER))))
    assert str(advice.change).startswith("--gradient_checkpointing --use_lora")
    assert advice.plan.fits


def test_where_nothing_helps_the_teacher_that_would_is_named():
    best = fullest(gradient_checkpointing=True, use_lora=True, device="cpu")
    advice = advise(make_plan(Memory(on(best * 0.98, gradient_checkpointing=True, use_lora=True, device="cpu"))))
    assert advice.change is None
    teacher = Memory(run()).teacher.shape.parameters
    assert 0.5 * teacher < advice.teacher < teacher
    assert "would" in advice.in_words()


def test_where_even_without_a_teacher_it_is_too_much_none_is_named():
    advice = advise(make_plan(Memory(on(1000.0, dtype=torch.float32))))
    assert advice.change is None
    assert advice.teacher is None
