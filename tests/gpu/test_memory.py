"""What is held, what was foretold, and what happens when it is too much."""

import json

import pytest
import torch

from local_distill.commands import main
from tests.gpu.conftest import ON_GPU, SHAPE

GIB = 2**30
FITS = [
    "--steps", 2, "--batch_size", SHAPE.rollouts, "--group_size", 1, "--max_new_tokens", SHAPE.completion,
    "--max_prompt_tokens", SHAPE.prompt, "--chat_template", "off", "--eval_prompts", 0, "--save_every", 0,
    "--temperature", 1, "--top_p", 1, "--learning_rate", "1e-4",
]  # fmt: skip
ONE_MICRO_BATCH = ["--microbatch_tokens", 2 * SHAPE.rollouts * (SHAPE.prompt + SHAPE.completion)]
"""As many tokens as all rollouts have, and more."""


def halved(ran, what):
    return [line for line in ran.said if "did not fit the memory" in line and what in line]


def test_out_of_memory_in_training_is_halved_and_changes_nothing(run, pairs, prompts, memory):
    """The allocator itself is told to give no more than 0.6 of what the run takes."""
    arguments = [
        *pairs["larger"], *FITS, *ONE_MICRO_BATCH, "--prompts_file", prompts, "--loss", "policy_gradient", "--dtype",
        "fp32", "--sampling_batch_size", 2,
    ]  # fmt: skip
    with memory.watched() as peak:
        free = run("free", *arguments)
    assert not halved(free, "micro-batch")
    with memory.limited(int(0.6 * peak.bytes)):
        short = run("short", *arguments)
    assert halved(short, "micro-batch"), short.said
    for ours, theirs in zip(short.metrics, free.metrics, strict=True):
        for key in ("reverse_kl", "loss", "grad_norm", "tokens"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), (ours["step"], key)
    for name, weight in short.tensors(2).items():
        assert (weight.float() - free.tensors(2)[name].float()).abs().mean() < 1e-5, name


def test_out_of_memory_in_sampling_is_halved_and_draws_the_same(run, pairs, prompts, memory):
    """All rollouts at a time take more than training one of an adapter does; a quarter of them at a time do not."""
    arguments = [
        *pairs["larger"], *FITS, "--prompts_file", prompts, "--loss", "policy_gradient", "--dtype", "fp32", "--steps",
        1, "--use_lora", "--lora_r", 2, "--microbatch_tokens", 1, "--group_size", 4, "--max_new_tokens", 8,
    ]  # fmt: skip
    all_rollouts = 4 * SHAPE.rollouts
    with memory.watched() as in_parts:
        run("in parts", *arguments, "--sampling_batch_size", all_rollouts // 8)
    with memory.watched() as together:
        free = run("together", *arguments, "--sampling_batch_size", all_rollouts)
    assert together.bytes > 1.1 * in_parts.bytes, "too little to show anything"
    with memory.limited((in_parts.bytes + together.bytes) // 2):
        short = run("short", *arguments, "--sampling_batch_size", all_rollouts)
    assert halved(short, "sampling"), short.said
    for ours, theirs in zip(short.metrics, free.metrics, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["reverse_kl"] == pytest.approx(theirs["reverse_kl"], rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ["--loss", "reverse_kl", "--dtype", "fp32"],
        ["--loss", "reverse_kl", "--dtype", "bf16"],
        ["--loss", "policy_gradient", "--dtype", "bf16", "--use_lora"],
        ["--loss", "reverse_kl", "--dtype", "bf16", "--gradient_checkpointing"],
    ],
    ids=" ".join,
)
def test_the_plan_foretells_the_peak(settings, run, pairs, prompts, memory, measured, capsys):
    arguments = [*pairs["larger"], *FITS, *ONE_MICRO_BATCH, "--prompts_file", prompts, *settings]
    foretold = most_counted(arguments, capsys)
    with memory.watched() as peak:
        run("run", *arguments)
    measured(f"{' '.join(settings)}: {foretold / GIB:.2f} GiB foretold, {peak.bytes / GIB:.2f} measured")
    assert foretold == pytest.approx(peak.bytes, rel=0.15)


def most_counted(arguments, capsys):
    """Bytes of the fullest phase of the plan, without what is only estimated: of another kind than tensors."""
    capsys.readouterr()
    main(["plan", *map(str, arguments), "--json"])
    plan = json.loads(capsys.readouterr().out)
    counted = ((size for part, size in p.items() if part not in plan["estimated"]) for p in plan["phases"].values())
    return max(sum(sizes) for sizes in counted)


@pytest.mark.skipif(not ON_GPU, reason="only of a GPU is the free memory looked at")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_micro_batches_are_as_large_as_the_free_memory_allows(dtype, run, pairs, prompts, memory, measured, capsys):
    """Most of the GPU is taken by something else: what is left holds about a third of the rollouts at a time."""
    arguments = [*pairs["larger"], *FITS, "--prompts_file", prompts, "--loss", "reverse_kl", "--dtype", dtype]
    least, most = (
        most_counted([*arguments, "--microbatch_tokens", tokens], capsys) for tokens in (1, ONE_MICRO_BATCH[1])
    )
    left = int(least + 0.35 * (most - least)) + GIB // 4  # cuBLAS's workspace, and memory in pieces
    torch.cuda.empty_cache()
    taken = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")
    with memory.watched() as peak:
        ran = run("run", *arguments)
    del taken
    measured(f"{dtype}: {peak.bytes / GIB:.2f} of {left / GIB:.2f} GiB taken where the size was found")
    assert not halved(ran, "micro-batch"), ran.said
    assert least + 0.1 * (most - least) < peak.bytes < left
