"""A student under DeepSpeed ZeRO-2 on GPUs: nothing of it is left on the host, and it resumes bit for bit."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import ROOT, assert_same_weights, environment, metrics, student_and_teacher
from tests.pretended_gpu.device import missing
from tests.process.test_distributed import finished

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(bool(missing()), reason=missing())]
SETTINGS = [
    "--batch_size", "3", "--group_size", "2", "--grad_accum", "2", "--max_new_tokens", "8", "--max_prompt_tokens",
    "100", "--learning_rate", "1e-3", "--dtype", "bf16", "--eval_prompts", "2",
]  # fmt: skip


def test_a_student_under_zero2_trains_and_resumes(tmp_path):
    pytest.importorskip("deepspeed")
    given = [*student_and_teacher(tmp_path), *SETTINGS, "--output_dir"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs = [
        [*given, str(whole), "--steps", "2"],
        [*given, str(broken), "--steps", "1"],
        [*given, str(broken), "--steps", "2", "--resume"],
    ]
    variables = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "local_distill" / "ds_zero2_bf16.json"),
        "ACCELERATE_USE_CPU": "false",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    entry = str(ROOT / "tests" / "pretended_gpu" / "entry.py")
    out = finished([*launch, entry, json.dumps(runs)], environment(**variables))
    assert "2 processes with DeepSpeed ZeRO-2, bf16, on cuda" in out
    assert_same_weights(whole / "step-2", broken / "step-2", tolerance=0.0)
    steps = [[line for line in metrics(run) if "loss" in line] for run in (whole, broken)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2
    moments = load_file(whole / "step-2" / "trainer" / "optimizer.safetensors")
    assert {float(value) for name, value in moments.items() if name.endswith(".step")} == {2.0}
    assert any(bool(value.any()) for name, value in moments.items() if name.endswith(".exp_avg"))
    assert all(value.dtype == torch.float32 for value in moments.values())
