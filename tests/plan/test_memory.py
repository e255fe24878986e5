"""Weights, gradients and moments by arithmetic done again here; the rest from one part of the program to the other."""

import ast
import dataclasses
from pathlib import Path

import pytest
import torch

from local_distill.commands.plan import PlanSettings
from local_distill.config.builtin import BUILTIN_SAMPLERS, BUILTIN_TEACHERS
from local_distill.models.adapters import LoraSettings
from local_distill.models.files import skeleton_of
from local_distill.models.footprint import shape_of
from local_distill.plan import planned_run
from local_distill.plan.machine import GIB, Machine, cuda_libraries
from local_distill.plan.memory import Memory
from local_distill.plan.planned_run import Lengths, PlannedRun
from tests.plan.shapes import QWEN3, qwen3
from tests.tiny_models import llama_config

KNOWN = {"0.6B": 596_049_920, "1.7B": 1_720_574_976, "4B": 4_022_468_096, "8B": 8_190_735_360, "32B": 32_762_123_264}
"""Parameters that the models of the hub have."""


@pytest.mark.parametrize("name", QWEN3)
def test_parameters_of_qwen3_are_the_known_ones(name):
    assert shape_of(skeleton_of(qwen3(name), False)).parameters == KNOWN[name]


def run(processes=1, zero_stage=0, dtype=torch.bfloat16, device="cuda", lengths=(12, 20), layers=2, **settings):
    common = {"student_model": "s", "batch_size": 8, "group_size": 2, "max_new_tokens": lengths[1], **settings}
    if common.get("teacher_backend") != "self":
        common = {"teacher_model": "t", **common}
    config = PlanSettings(**common)
    teacher = llama_config(layers=layers + 1) if config.teacher_kind in ("local", "zero3") else None
    adapter = LoraSettings(4, 8, 0.0, "all-linear") if config.use_lora else None
    machine = Machine(device, processes, GIB, 0.0, "")
    return PlannedRun(
        config, llama_config(layers=layers), teacher, adapter, dtype, zero_stage, Lengths(*lengths), machine
    )


def numbers(layers):
    return shape_of(skeleton_of(llama_config(layers=layers), False)).parameters


STUDENT, TEACHER = numbers(2), numbers(3)
ADAPTER = LoraSettings(4, 8, 0.0, "all-linear").number_of_parameters(skeleton_of(llama_config(layers=2), False))


@pytest.mark.parametrize(
    ("settings", "weights", "optimizer", "gradients", "teacher"),
    [
        ({}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 2 * TEACHER),
        ({"dtype": torch.float32}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 4 * TEACHER),
        ({"use_lora": True}, 2 * STUDENT + 4 * ADAPTER, 8 * ADAPTER, 4 * ADAPTER, 2 * TEACHER),
        ({"processes": 4}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 2 * TEACHER),
        ({"processes": 4, "zero_stage": 2}, 2 * STUDENT, 3 * STUDENT, 4 * STUDENT / 4, 2 * TEACHER),
        ({"processes": 4, "teacher_ds_zero3": True}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 2 * TEACHER / 4),
        ({"use_lora": True, "teacher_backend": "self"}, 2 * STUDENT + 4 * ADAPTER, 8 * ADAPTER, 4 * ADAPTER, 0),
        ({"teacher_url": "http://x"}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 0),
        ({"teacher_offload": "cpu"}, 4 * STUDENT, 8 * STUDENT, 4 * STUDENT, 2 * 300 * 32),
    ],
)
def test_what_stands_in_training(settings, weights, optimizer, gradients, teacher):
    standing = Memory(run(**settings)).standing()
    assert standing.of("student weights") == weights
    assert standing.of("optimizer") == optimizer
    assert standing.of("gradients") == gradients
    assert standing.of("teacher weights") == teacher


def test_zero_1_holds_all_gradients_from_the_beginning_in_both_precisions():
    memory = Memory(run(processes=4, zero_stage=1))
    assert memory.sampling(1).of("gradients") == (4 + 2) * STUDENT
    assert memory.standing().of("optimizer") == 3 * STUDENT


def test_a_packed_teacher_takes_half_a_byte_a_weight_and_its_head_stays_whole():
    whole, packed = (Memory(run(**s)).standing().of("teacher weights") for s in ({}, {"teacher_quantization": "4bit"}))
    shape = shape_of(skeleton_of(llama_config(layers=3), False))
    assert whole - packed == pytest.approx((2 - 0.5) * shape.packable, rel=0.02)
    assert shape.packable == 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def test_gradients_stay_where_several_processes_share_them():
    alone, together = Memory(run()), Memory(run(processes=2))
    assert alone.sampling(2).of("gradients") == 0
    assert together.sampling(2).of("gradients") == 4 * STUDENT


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_keys_and_values_of_one_rollout_by_hand(dtype, size):
    """In the precision of the products, float32 weights or not."""
    layers, kv_heads, head_size, tokens = 2, 2, 8, 32
    for settings in ({}, {"use_lora": True}):
        found = Memory(run(dtype=dtype, **settings)).sampling(8)
        assert found.of("KV cache") == pytest.approx(8 * 2 * layers * kv_heads * head_size * size * tokens)


def test_on_a_processor_linear_layers_are_packed_while_it_samples():
    shape = shape_of(skeleton_of(llama_config(layers=2), False))
    low, exact = (Memory(run(device="cpu", dtype=d)).sampling(2) for d in (torch.bfloat16, torch.float32))
    assert low.of("weights for decoding") == pytest.approx(2 * (shape.packable + shape.head), rel=0.05)
    assert exact.of("weights for decoding") == pytest.approx(4 * (shape.packable + shape.head), rel=0.05)
    assert Memory(run(dtype=torch.float32)).sampling(2).of("weights for decoding") < 1000, "nothing, on a GPU"


def test_a_teacher_that_writes_a_share_is_decoded_with_when_it_holds_more_than_the_student():
    alone, shared = (Memory(run(device="cpu", dtype=torch.float32, **more)) for more in ({}, {"teacher_share": 0.5}))
    teacher = shape_of(skeleton_of(llama_config(layers=3), False))
    assert shared.sampling(4).of("weights for decoding") == pytest.approx(
        4 * (teacher.packable + teacher.head), rel=0.05
    )
    assert shared.sampling(4).of("KV cache") == pytest.approx(3 / 2 * alone.sampling(4).of("KV cache"))
    assert shared.training(1).bytes == alone.training(1).bytes


@pytest.mark.parametrize(
    ("settings", "copies", "engine"),
    [
        ({"rollouts": "continuous"}, 2 * STUDENT, 0),
        ({"rollouts": "continuous", "use_lora": True}, 0, 0),
        ({"rollouts": "continuous", "dtype": torch.float32}, 0, 0),
        ({"rollouts": "continuous", "processes": 2, "zero_stage": 2}, 0, 0),
        ({"rollouts": "vllm", "rollouts_memory_share": 0.25}, 0, 0.25 * GIB),
        ({"rollouts": "vllm", "rollouts_url": "http://x"}, 0, 0),
        ({"rollouts": "vllm", "device": "cpu", "dtype": torch.float32}, 0, 4 * STUDENT + 4 * GIB),
    ],
)
def test_another_sampler_says_what_it_holds(settings, copies, engine):
    memory = Memory(run(**settings))
    asleep = engine if settings.get("device") == "cpu" else 0  # on a processor it cannot sleep
    assert memory.sampling(4).of("weights for decoding") == memory.training(1).of("weights for decoding") == copies
    assert (memory.sampling(4).of("vLLM engine"), memory.training(1).of("vLLM engine")) == (engine, asleep)


def test_keys_and_values_in_pages_are_those_of_all_rollouts_on_a_processor_and_of_one_on_a_gpu():
    """32 tokens of a rollout fill a page of 32, and the next one is kept for it."""
    on_gpu, on_cpu = (Memory(run(rollouts="continuous", device=device)).sampling(4) for device in ("cuda", "cpu"))
    one_page = 2 * 2 * 2 * 8 * 2 * 32
    assert on_gpu.of("KV cache") == pytest.approx(2 * one_page)
    assert on_cpu.of("KV cache") == pytest.approx(16 * 2 * one_page)


def test_the_teachers_whole_distribution_is_held_as_hidden_states_of_every_token_of_the_step():
    sampled, whole = (Memory(run(loss=loss)).scoring(1) for loss in ("policy_gradient", "reverse_kl"))
    tokens = 8 * 2 * 20
    difference = whole.of("rollouts and scores") - sampled.of("rollouts and scores")
    assert difference == tokens * (32 * 2 - 8)


def test_activations_grow_with_rollouts_and_are_fewer_with_checkpointing():
    memory = Memory(run())
    one, two, four, six = (memory.training(n).of("activations") for n in (1, 2, 4, 6))
    assert one < two < four
    assert six - four == pytest.approx(four - two, rel=1e-6)
    assert Memory(run(gradient_checkpointing=True)).training(4).of("activations") < 0.5 * four


@pytest.mark.parametrize("settings", [{"loss": "jsd", "top_k": 5}, {"loss": "policy_gradient", "kl_discount": 0.9}])
def test_every_loss_can_be_rehearsed(settings):
    memory = Memory(run(**settings))
    assert memory.training(2).of("work") > 0
    assert not memory.not_counted


def test_a_model_whose_shapes_depend_on_values_is_planned_without_activations(monkeypatch):
    memory = Memory(run())
    monkeypatch.setattr(memory._costs, "training", lambda _: torch.ones(2).nonsense)
    phase = memory.training(1)
    assert phase.of("activations") == 0
    assert phase.of("student weights") == 4 * STUDENT
    assert "nonsense" in memory.not_counted


def test_what_is_estimated_is_no_part_of_what_is_certain():
    planned = run(processes=2)
    planned = dataclasses.replace(
        planned, machine=dataclasses.replace(planned.machine, libraries=cuda_libraries(2)), zero_stage=2
    )
    phase = Memory(planned).training(2)
    guessed = {part.name for part in phase.parts if part.estimated}
    assert {"libraries", "allocator"} < guessed
    assert phase.certain_bytes == phase.bytes - sum(phase.of(name) for name in guessed)


def test_the_heap_of_glibc_loses_half_of_what_comes_and_goes_in_training():
    on_cpu = run(device="cpu")
    glibc, other = (
        Memory(dataclasses.replace(on_cpu, machine=dataclasses.replace(on_cpu.machine, glibc=each)))
        for each in (True, False)
    )
    training = glibc.training(2)
    assert training.of("allocator") == 0.5 * (training.of("activations") + training.of("work")) > 0
    assert training.certain_bytes == other.training(2).certain_bytes
    assert [other.training(2).of("allocator"), glibc.sampling(2).of("allocator"), glibc.scoring(2).of("allocator")] == [
        0, 0, 0,
    ]  # fmt: skip


def test_the_plan_compares_no_name_of_a_backend_but_asks_what_each_states():
    names = {*BUILTIN_TEACHERS, *BUILTIN_SAMPLERS}
    for file in Path(planned_run.__file__).parent.glob("*.py"):
        compared = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Compare)]
        words = {n.value for node in compared for n in ast.walk(node) if isinstance(n, ast.Constant)}
        assert not words & names, file
