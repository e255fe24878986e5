"""The documented command with a real server: as teacher, as sampler, as both, ahead of training, and dying."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import open_model
from tests.servers.vllm_server import MODEL, ROOT

COMMAND = [sys.executable, "-m", "local_distill.train_on_policy_local", "--student_model", str(MODEL), "--use_lora"]
SMALL = [
    "--batch_size", "4", "--group_size", "1", "--max_new_tokens", "16", "--max_prompt_tokens", "64", "--temperature",
    "1", "--top_p", "1", "--learning_rate", "1e-4", "--eval_every", "0", "--eval_prompts", "0", "--save_every", "1",
]  # fmt: skip
BF16_ENGINE_KL = 0.02
"""Nats a token between an engine of bf16 and training in float32; old weights are far above it."""


@pytest.fixture(scope="module")
def drifted(tmp_path_factory):
    """An adapter with which SmolLM2 no longer writes as it did."""
    files = open_model("--student_model", str(MODEL), trust_remote_code=False)
    model = add_lora(files.load(torch.float32), LoraSettings(8, 16, 0.0, "all-linear"), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def start(argv):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*COMMAND, *SMALL, *(str(word) for word in argv)], env=env, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(run, code=0, timeout=280):
    out, _ = run.communicate(timeout=timeout)
    assert run.returncode == code, out
    return out


def steps(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_the_teacher_behind_a_server_gives_the_run_that_it_gives_in_this_process(teacher_server, drifted, tmp_path):
    common = ["--init_adapter", drifted, "--loss", "reverse_kl", "--top_k", "32", "--steps", "2"]
    finished(start([*common, "--teacher_url", teacher_server.url, "--output_dir", tmp_path / "served"]))
    finished(start([*common, "--teacher_model", MODEL, "--output_dir", tmp_path / "local"]))
    ours, theirs = steps(tmp_path / "served"), steps(tmp_path / "local")
    assert ours[0]["reverse_kl"] > 0.2, "there is something to learn"
    for name in ("loss", "reverse_kl", "entropy"):
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=0.05, abs=0.02), name
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=0.15)


@pytest.mark.parametrize("overlap", [False, True])
def test_samples_come_from_the_newest_weights_or_from_those_one_update_old(vllm_server, drifted, tmp_path, overlap):
    run = tmp_path / "run"
    flags = ["--overlap"] if overlap else []
    finished(start([
        "--init_adapter", drifted, "--teacher_backend", "self", "--rollouts_url", vllm_server.url, "--loss",
        "importance_sampling", "--steps", "3", *flags, "--output_dir", run,
    ]))  # fmt: skip
    found = steps(run)
    assert [line["staleness"] for line in found] == ([0.0, 1.0, 1.0] if overlap else [0.0, 0.0, 0.0])
    # The drifted adapter is what was sampled from, not the base that the server was started with, and training agrees.
    assert all(line["engine/kl"] < BF16_ENGINE_KL for line in found), [line["engine/kl"] for line in found]
    assert all(line["engine/max_ratio"] >= 1.0 for line in found)
    assert found[0]["reverse_kl"] > 0.2
    assert not any((run / "served").iterdir()), "what was handed over is cleared away"


def wait_for_step(run, folder, step, limit=200):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        assert run.poll() is None, run.stdout.read()
        if (folder / "metrics.jsonl").exists() and len(steps(folder)) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} did not come")


def test_a_server_that_is_killed_in_the_middle_of_a_step_and_comes_back_costs_nothing_but_time(
    vllm_server, drifted, tmp_path
):
    folder = tmp_path / "run"
    run = start([
        "--init_adapter", drifted, "--teacher_backend", "self", "--rollouts_url", vllm_server.url, "--steps", "6",
        "--max_new_tokens", "48", "--output_dir", folder,
    ])  # fmt: skip
    wait_for_step(run, folder, 2)
    vllm_server.restart()
    out = finished(run)
    found = steps(folder)
    assert len(found) == 6
    assert "answers again" in out
    assert all(line["engine/kl"] < BF16_ENGINE_KL for line in found), "the adapter was sent again, not the base used"
    assert all(line["tokens"] > 0 for line in found)


def test_a_server_that_stays_away_ends_the_run_with_the_checkpoint_named(vllm_server, drifted, tmp_path):
    folder = tmp_path / "run"
    run = start([
        "--init_adapter", drifted, "--teacher_backend", "self", "--rollouts_url", vllm_server.url, "--steps", "50",
        "--server_patience", "3", "--output_dir", folder,
    ])  # fmt: skip
    wait_for_step(run, folder, 2)
    vllm_server.kill()
    try:
        out = finished(run, code=2)
    finally:
        vllm_server.start()
    line = out.strip().splitlines()[-1]
    assert line.startswith("error: --rollouts_url http://127.0.0.1")
    assert f"step-{len(steps(folder))}" in line, "and no partial batch was trained on"
    assert "Traceback" not in out
