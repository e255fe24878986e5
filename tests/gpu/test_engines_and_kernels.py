"""What samples, what attends, and what people do with a run afterwards."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from local_distill.commands import main
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts.continuous import SETTINGS
from local_distill.training.batching import collate
from tests.gpu.conftest import ON_GPU
from tests.gpu.test_whole_runs import SMALL
from tests.tiny_models import llama_config, make_model
from tests.training.test_batching import rollout

ROOT = Path(__file__).parent.parent.parent
RAGGED = [rollout([5, 6], [7, 8, 9], 0), rollout([9], [10, 11, 12, 13, 14, 15, 4, 2], 1), rollout([1, 2, 3], [4], 2)]


def test_draws_do_not_depend_on_how_many_are_decoded_at_a_time(run, pairs):
    arguments = [*pairs["tiny"], *SMALL, "--loss", "reverse_kl", "--dtype", "fp32"]
    together, alone = run("together", *arguments), run("alone", *arguments, "--sampling_batch_size", 1)
    assert len(together.metrics) == len(alone.metrics) > 3
    for ours, theirs in zip(together.metrics, alone.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for key in {"tokens", "loss", "eval/reverse_kl"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key


@pytest.mark.parametrize(("dtype", "gap"), [("fp32", 1e-4), *([("bf16", 5e-2)] if ON_GPU else [])])
def test_continuous_batching_draws_from_what_is_trained(dtype, gap, run, pairs, measured):
    """The gap between what the engine says of its draws and what scoring says: rounding, and no more."""
    if "seed" not in SETTINGS:
        pytest.skip("transformers' engine takes no seed here")
    ran = run("run", *pairs["tiny"], *SMALL, "--loss", "reverse_kl", "--rollouts", "continuous", "--dtype", dtype)
    gaps = [abs(line["engine/kl"]) for line in ran.metrics if "engine/kl" in line]
    assert len(gaps) == 3
    assert max(gaps) < gap
    measured(f"continuous batching, {dtype}: engine/kl at most {max(gaps):.1e} nats")


def test_padded_rows_are_attended_to_by_flash_kernels(device):
    """Flash attention takes no mask: with one, no other kernel being allowed, this cannot run at all on a GPU."""
    model, batch = make_model(llama_config(hidden_size=64, num_key_value_heads=4)), collate(RAGGED, 0)
    exact = TokenScorer(model, 300)(batch).logprobs
    with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        found = TokenScorer(model.to(device, torch.bfloat16), 300)(batch.to(device)).logprobs
    torch.testing.assert_close(found.cpu(), exact, rtol=0, atol=0.1)


def test_a_launcher_with_one_process(pairs, tmp_path):
    """A process group of one: NCCL's on a GPU, gloo's elsewhere."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    command = [*launch, "-m", "local_distill.train_on_policy_local", *pairs["tiny"], *SMALL, "--output_dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "false" if ON_GPU else "true"}
    done = subprocess.run(
        [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "step-3" / "manifest.json").is_file()


@pytest.mark.parametrize("adapter", [[], ["--use_lora", "--lora_r", 4]], ids=["whole", "adapter"])
def test_what_was_trained_can_be_talked_to_judged_and_exported(adapter, run, pairs, capsys, monkeypatch, tmp_path):
    folder = run("run", *pairs["tiny"], *SMALL, *adapter, "--loss", "reverse_kl").folder
    (tmp_path / "held_out.txt").write_text("why rain\nwhat is tea\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("why is the sky blue\n"))
    said = [
        ["chat", folder, *pairs["tiny"][2:], "--max_new_tokens", 6],
        [
            "eval",
            folder,
            *pairs["tiny"][2:],
            "--prompts_file",
            "held_out.txt",
            "--max_new_tokens",
            6,
            "--output",
            "judged",
        ],
        ["export", folder, "--output_dir", "exported"],
        ["report", folder],
    ]
    for words in said:
        assert main([*map(str, words)]) == 0, (words[0], capsys.readouterr())
    assert json.loads((tmp_path / "judged" / "results.json").read_text())
    assert (tmp_path / "exported" / "model.safetensors").is_file()
