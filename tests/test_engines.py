"""Whole runs with other teachers and samplers than the usual ones: the flag reaches the part, and the part the run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_distill.models.adapters import LoraSettings, add_lora
from tests.tiny_models import llama_config, make_model

SMALL = [
    "--batch_size", "4", "--group_size", "2", "--max_new_tokens", "12", "--max_prompt_tokens", "100",
    "--eval_prompts", "4", "--temperature", "1", "--top_p", "1",
]  # fmt: skip


def metrics(run: Path):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def drifted(tmp_path):
    """An adapter that has taken its student far from where it began."""
    model = add_lora(make_model(llama_config(layers=1), seed=1), LoraSettings(4, 8, 0.0, "all-linear"), seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "drifted")
    return tmp_path / "drifted"


def test_a_new_adapter_has_nothing_to_learn_from_its_own_base(folders, run_command, tmp_path):
    """Contract 1, the identity, with one model in memory."""
    argv = ["--student_model", folders["student"], "--teacher_backend", "self", "--use_lora", "--loss", "reverse_kl"]
    code, out, err = run_command([*argv, *SMALL, "--steps", "2", "--output_dir", "run"])
    assert code == 0, err
    assert "teacher   itself without its adapter\n" in out
    assert all(abs(line["reverse_kl"]) < 1e-6 for line in metrics(tmp_path / "run") if "loss" in line)


@pytest.mark.parametrize("loss", ["reverse_kl", "policy_gradient"])
def test_what_an_adapter_forgot_is_learned_from_the_base_and_resumes(folders, drifted, run_command, tmp_path, loss):
    argv = [
        "--student_model", folders["student"], "--teacher_backend", "self", "--use_lora", "--init_adapter", drifted,
        "--loss", loss, "--learning_rate", "1e-2", *SMALL,
    ]  # fmt: skip
    code, _, err = run_command([*argv, "--steps", "8", "--output_dir", "whole"])
    assert code == 0, err
    evaluations = [line["eval/reverse_kl"] for line in metrics(tmp_path / "whole") if "eval/reverse_kl" in line]
    assert evaluations[0] > 0.1
    if loss == "reverse_kl":
        assert evaluations[-1] < 0.7 * evaluations[0]
    run_command([*argv, "--steps", "3", "--output_dir", "broken"])
    code, _, err = run_command(["--config", "broken/config.yaml", "--resume", "--steps", "8"])
    assert code == 0, err
    ours, theirs = (load_file(tmp_path / run / "step-8" / "adapter_model.safetensors") for run in ("broken", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_base_is_the_teacher_that_a_second_copy_of_it_would_be(folders, drifted, run_command, tmp_path):
    common = ["--student_model", folders["student"], "--use_lora", "--init_adapter", drifted, *SMALL, "--steps", "2"]
    common += ["--loss", "reverse_kl"]
    assert run_command([*common, "--teacher_backend", "self", "--output_dir", "own"])[0] == 0
    assert run_command([*common, "--teacher_model", folders["student"], "--output_dir", "second"])[0] == 0
    for own, second in zip(metrics(tmp_path / "own"), metrics(tmp_path / "second"), strict=True):
        for name in ("reverse_kl", "loss", "grad_norm", "eval/reverse_kl"):
            if name in second:
                assert own[name] == pytest.approx(second[name], rel=1e-5, abs=1e-6), name


def test_an_offloaded_teacher_gives_the_run_of_one_in_memory(folders, run_command, tmp_path):
    argv = ["--student_model", folders["student"], "--teacher_model", folders["teacher"], *SMALL, "--steps", "2"]
    for name, flags in {"plain": [], "offloaded": ["--teacher_offload", "cpu"]}.items():
        code, _, err = run_command([*argv, *flags, "--loss", "reverse_kl", "--output_dir", name])
        assert code == 0, err
    ours, theirs = (load_file(tmp_path / run / "step-2" / "model.safetensors") for run in ("offloaded", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_init_adapter_of_another_model_is_one_line(folders, drifted, run_command):
    weights = load_file(drifted / "adapter_model.safetensors")
    save_file(
        {name: torch.cat([value, value]) for name, value in weights.items()}, drifted / "adapter_model.safetensors"
    )
    argv = ["--student_model", folders["student"], "--teacher_backend", "self", "--use_lora", "--init_adapter", drifted]
    code, _, err = run_command([*argv, *SMALL, "--output_dir", "run"])
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("error: --init_adapter")
