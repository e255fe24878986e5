"""Real runs in two processes: contract 3 (world-size invariance), sharded teachers and students, and no hanging."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from local_distill.runs.records import read_evaluations
from tests.launching import (
    ENTRY,
    ROOT,
    SETTINGS,
    assert_same_numbers,
    assert_same_weights,
    environment,
    free_port,
    metrics,
    student_and_teacher,
)

pytestmark = pytest.mark.distributed
DEEPSPEED_ON_CPU = [str(ROOT / "tests" / "deepspeed_on_cpu.py")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return student_and_teacher(tmp_path_factory.mktemp("models"))


def launch(arguments, *, processes=2, entry=ENTRY, variables=None):
    """torchrun with gloo; a run that hangs is killed and fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return finished([*command, *entry, *arguments], environment(**(variables or {})))


def finished(command, env):
    """What the command printed; it must end well, and by itself."""
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory):
    """The run in one process that all others are held against."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    launch([*models, *SETTINGS, "--steps", "3", "--output_dir", str(folder)], processes=1)
    return folder


@pytest.fixture(scope="module")
def together(models, tmp_path_factory):
    """The same in two processes."""
    folder = tmp_path_factory.mktemp("together") / "run"
    out = launch([*models, *SETTINGS, "--steps", "3", "--output_dir", str(folder)])
    assert "2 processes with data parallelism" in out
    return folder


def test_two_processes_give_the_run_of_one(models, alone, together):
    assert_same_numbers(metrics(together), metrics(alone))
    # Adam turns rounding in tiny gradients into steps of the learning rate: three of 1e-3 are the most it can do.
    assert_same_weights(together / "step-3", alone / "step-3", tolerance=3e-3)
    ours, theirs = (load_file(run / "step-3" / "model.safetensors") for run in (together, alone))
    start = load_file(Path(models[1]) / "model.safetensors")
    assert max((theirs[n] - start[n]).abs().max() for n in start) > 2e-3
    assert max((ours[n] - theirs[n]).abs().mean() for n in start) < 2e-5


def test_two_processes_read_the_completions_of_one_token_by_token(alone, together):
    """Before training, when the weights are the same: which process had which prompt does not show."""
    ours, theirs = (read_evaluations(run / "completions.jsonl")[0].completions for run in (together, alone))
    assert [c.prompt for c in ours] == [c.prompt for c in theirs]
    assert_same_pieces(ours, theirs)


def assert_same_pieces(ours, theirs):
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a.pieces, b.pieces, strict=True)]
    assert len(pairs) > 20
    for a, b in pairs:
        assert a.text == b.text
        assert (a.student, a.teacher) == pytest.approx((b.student, b.teacher), abs=1e-4)
        assert len(a.top) == 5
        assert [p for _, p in a.top] == pytest.approx([p for _, p in b.top], abs=1e-4)
        assert a.top[0][0] == b.top[0][0]


def test_a_run_of_two_processes_resumes_bit_for_bit(models, together, tmp_path):
    broken = ["--output_dir", str(tmp_path / "broken")]
    launch([*models, *SETTINGS, *broken, "--steps", "1"])
    launch([*models, *SETTINGS, *broken, "--steps", "3", "--resume"])
    assert_same_weights(together / "step-3", tmp_path / "broken" / "step-3", tolerance=0.0)
    assert metrics(together) == [line for line in metrics(tmp_path / "broken") if is_due(line)]


def is_due(line):
    """Not the evaluation at the end of the first part, which the whole run does not make."""
    return line["step"] != 1 or "loss" in line


def test_a_teacher_sharded_by_zero3_beside_a_ddp_student_gives_the_same_run(models, alone, tmp_path):
    pytest.importorskip("deepspeed")
    folder = tmp_path / "run"
    launch([*models, *SETTINGS, "--steps", "3", "--teacher_ds_zero3", "--output_dir", str(folder)])
    steps = [[line for line in metrics(run) if "loss" in line] for run in (folder, alone)]
    assert_same_numbers(*steps)
    assert_same_pieces(*(read_evaluations(run / "completions.jsonl")[0].completions for run in (folder, alone)))
    # A sharded teacher is judged by its log-probs of the sampled tokens, a whole one by its whole distribution.
    sampled, exact = ([line for line in metrics(run) if "loss" not in line] for run in (folder, alone))
    for ours, theirs in zip(sampled, exact, strict=True):
        assert abs(ours["eval/reverse_kl"] - theirs["eval/reverse_kl"]) < 4 * ours["eval/reverse_kl_se"]


def test_a_teacher_sharded_by_zero3_without_a_launcher_is_a_group_of_one(models, alone, tmp_path):
    pytest.importorskip("deepspeed")
    arguments = [*models, *SETTINGS, "--steps", "3", "--teacher_ds_zero3", "--output_dir", str(tmp_path / "run")]
    assert "1 process, " in finished([sys.executable, *ENTRY, *arguments], environment())
    assert_same_numbers(*([line for line in metrics(run) if "loss" in line] for run in (tmp_path / "run", alone)))


def test_a_teacher_sharded_by_zero3_gives_its_top_tokens(models, tmp_path):
    pytest.importorskip("deepspeed")
    loss = ["--loss", "jsd", "--top_k", "5", "--steps", "2", "--eval_prompts", "0"]
    launch([*models, *SETTINGS, *loss, "--output_dir", str(tmp_path / "whole")], processes=1)
    launch([*models, *SETTINGS, *loss, "--teacher_ds_zero3", "--output_dir", str(tmp_path / "sharded")])
    assert_same_numbers(metrics(tmp_path / "sharded"), metrics(tmp_path / "whole"))


def test_a_student_under_zero2_trains_saves_and_resumes_bit_for_bit(models, tmp_path):
    pytest.importorskip("deepspeed")
    variables = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "local_distill" / "ds_zero2_bf16.json"),
        "ACCELERATE_USE_CPU": "false",
    }

    def run(folder, steps, *more):
        return launch(
            [*models, *SETTINGS, "--dtype", "bf16", "--steps", steps, "--output_dir", str(folder), *more],
            entry=DEEPSPEED_ON_CPU,
            variables=variables,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "2 processes with DeepSpeed ZeRO-2, bf16" in run(whole, "3")
    run(broken, "1")
    run(broken, "3", "--resume")
    assert_same_weights(whole / "step-3", broken / "step-3", tolerance=0.0)
    assert metrics(whole) == [line for line in metrics(broken) if is_due(line)]
    masters = load_file(whole / "step-3" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in masters.values())
    assert any((w != w.bfloat16().float()).any() for w in masters.values()), "the fp32 masters, not their bf16 copies"

    both = ["--teacher_ds_zero3", "--loss", "reverse_kl", "--top_k", "5"]
    assert "2 processes with DeepSpeed ZeRO-2, bf16" in run(tmp_path / "both", "2", *both)
    assert all(0 < line["reverse_kl"] < 50 for line in metrics(tmp_path / "both") if "loss" in line)

    plain = tmp_path / "plain"
    launch([*models, *SETTINGS, "--dtype", "bf16", "--steps", "3", "--output_dir", str(plain)])
    # bf16 weights sample other tokens than bf16 autocast over fp32 weights does, so the runs differ; but a gradient
    # that is summed over the processes where it should be averaged, or divided once too often, is off by two.
    pairs = zip(metrics(whole), metrics(plain), strict=True)
    ratios = [ours["grad_norm"] / theirs["grad_norm"] for ours, theirs in pairs if "loss" in ours]
    assert 0.7 < sum(ratios) / len(ratios) < 1.4


def test_the_documented_launch_starts_two_processes(models, alone, tmp_path):
    """`accelerate launch` with the shipped file, made to take processors for GPUs."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    config = ["--config_file", "local_distill/accelerate_config_multi_gpu.yaml"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, f"--main_process_port={free_port()}"]
    out = finished([*command, *ENTRY, *models, *SETTINGS, "--steps", "3", "--output_dir", str(tmp_path / "run")], env)
    assert "2 processes with data parallelism" in out
    assert_same_numbers(metrics(tmp_path / "run"), metrics(alone))
