"""Every phase: a run gives on this device what it gives on a processor, again the same, and goes on as if unbroken."""

import pytest
import torch

from tests.gpu.conftest import ON_GPU
from tests.pretended_gpu.device import missing

SMALL = [
    "--steps", 3, "--batch_size", 3, "--group_size", 2, "--max_new_tokens", 16, "--max_prompt_tokens", 90,
    "--learning_rate", "1e-3", "--temperature", 1, "--top_p", 1, "--eval_prompts", 3, "--eval_every", 2,
    "--save_every", 2,
]  # fmt: skip
RUNS = {
    "sampled tokens": ["--loss", "policy_gradient", "--kl_discount", "0.9"],
    "several updates a step": ["--loss", "ppo", "--num_substeps", 2, "--temperature", "0.7", "--top_p", "0.9"],
    "whole distribution": ["--loss", "reverse_kl", "--gradient_checkpointing"],
    "top tokens": ["--loss", "forward_kl", "--top_k", 16, "--grad_accum", 3],
    "adapter": ["--loss", "jsd", "--use_lora", "--lora_r", 4],
    "own base": ["--loss", "reverse_kl", "--use_lora", "--teacher_backend", "self"],
    "teacher in host memory": ["--loss", "reverse_kl", "--teacher_offload", "cpu"],
}
PRECISIONS = [["--dtype", "fp32"], ["--dtype", "bf16"], ["--dtype", "bf16", "--use_lora"]]


def teacher_of(arguments, pairs):
    """The pair as arguments; a student that is its own teacher has no other."""
    return pairs["tiny"][:2] if "self" in arguments else pairs["tiny"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_one_on_a_processor(name, run, pairs, measured):
    arguments = [*teacher_of(RUNS[name], pairs), *SMALL, *RUNS[name], "--dtype", "fp32"]
    here, there = run("here", *arguments).metrics, run("there", *arguments, on_cpu=True).metrics
    assert len(here) == len(there) > 0
    furthest = 0.0
    for ours, theirs in zip(here, there, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-4, nan_ok=True), (ours["step"], key)
        furthest = max(furthest, abs(ours.get("reverse_kl", 0.0) - theirs.get("reverse_kl", 0.0)))
    measured(f"{name}: reverse KL of the processor's run to {furthest:.1e} nats in every step")


@pytest.mark.parametrize("precision", PRECISIONS, ids=" ".join)
@pytest.mark.usefixtures("deterministic")
def test_resuming_is_exact_and_the_same_seed_gives_the_same_run(precision, run, pairs):
    arguments = [*pairs["tiny"], *SMALL, "--loss", "reverse_kl", *precision]
    whole = run("whole", *arguments, "--steps", 4)
    run("parts", *arguments, "--steps", 2)
    parts = run("parts", *arguments, "--steps", 4, "--resume")
    assert parts.metrics == whole.metrics
    ours, theirs = parts.tensors(4), whole.tensors(4)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.endswith("exp_avg") and bool(value.any()) for name, value in ours.items())


@pytest.mark.parametrize("precision", PRECISIONS, ids=" ".join)
def test_a_student_that_is_its_teacher_learns_nothing_and_is_drawn_from_as_it_is_scored(
    precision, run, pairs, measured
):
    """Contract 1; in bf16 the student's float32 masters are rounded by autocast where the teacher's weights are."""
    ran = run("same", *pairs["same"], *SMALL, "--loss", "reverse_kl", *precision)
    steps = [line for line in ran.metrics if "reverse_kl" in line]
    exact = "fp32" in precision
    assert all(abs(line["reverse_kl"]) < (1e-6 if exact else 1e-2) for line in steps)
    assert all(abs(line["engine/kl"]) < (1e-5 if exact else 5e-2) for line in steps if "engine/kl" in line)
    worst = max(abs(line["reverse_kl"]) for line in steps)
    measured(f"{' '.join(precision)}: reverse KL of a model from itself at most {worst:.1e} nats")


def test_models_are_on_the_device(run, pairs, device, measured):
    ran = run("one", *pairs["tiny"], *SMALL, "--dtype", "fp32")
    assert any(f"on {device.type}" in line for line in ran.said)
    if ON_GPU:
        measured(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")


@pytest.mark.skipif(bool(missing()) and not ON_GPU, reason="a processor has no fp16 training")
def test_fp16_goes_on_until_its_loss_scale_has_settled(run, pairs):
    """It begins at 65,536 and is halved by each update that overflows: six in a row are no divergence."""
    large = ["--loss", "policy_gradient", "--kl_coef", 64, "--eval_prompts", 0, "--steps", 13, "--save_every", 0]
    large += ["--batch_size", 1, "--max_new_tokens", 4]
    ran = run("run", *pairs["tiny"], *SMALL, *large, "--dtype", "fp16", "--use_lora", "--learning_rate", "1e-4")
    skipped = [int(line["skipped"]) for line in ran.metrics]
    assert skipped[:6] == [1] * 6
    assert skipped[-1] == 0
