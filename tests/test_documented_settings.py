"""The documented settings, each as a file: parsed, planned, and run for two steps on tiny models."""

from pathlib import Path

import pytest

from local_distill.commands import main as command
from local_distill.config.train_config import parse_config
from local_distill.train_on_policy_local import main as train

RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
BATCHES = {"1.7b": 512, "4b": 384, "8b": 256}


@pytest.mark.parametrize("size", BATCHES)
def test_the_settings_are_those_of_the_advice(size):
    found = parse_config(["--config", str(RECIPES / f"as_documented_{size}.yaml")])
    assert (found.loss, found.kl_coef, found.kl_discount) == ("policy_gradient", 1.0, 0.0)
    assert (found.temperature, found.top_p, found.max_new_tokens, found.dtype) == (0.8, 0.95, 512, "bf16")
    assert (found.batch_size, found.group_size, found.grad_accum) == (BATCHES[size], 4, 8)
    assert (found.use_lora, found.lora_r, found.learning_rate, found.weight_decay) == (True, 64, 1e-4, 0.0)
    assert (found.eval_every, found.save_every, found.teacher_kind) == (50, 200, "zero3")
    assert 20_000 <= found.steps <= 50_000


@pytest.mark.parametrize("size", BATCHES)
def test_they_are_planned_and_run(size, folders, tmp_path, capsys):
    smaller = [
        "--config", str(RECIPES / f"as_documented_{size}.yaml"), "--student_model", str(folders["student"]),
        "--teacher_model", str(folders["teacher"]), "--prompts_file", str(tmp_path / "prompts.txt"),
    ]  # fmt: skip
    (tmp_path / "prompts.txt").write_text("\n".join(f"Why is the sky {i}?" for i in range(24)))
    settings = (RECIPES / f"as_documented_{size}.yaml").read_text().replace("dataset: tulu3\n", "")
    local = tmp_path / "run.yaml"
    local.write_text(settings)
    smaller[1] = str(local)
    assert command(["plan", *smaller, "--max_new_tokens", "64", "--gpus", "2", "--gpu_memory", "80"]) == 0, "it fits"
    assert "GPU" in capsys.readouterr().out
    few = [
        "--no-teacher_ds_zero3", "--batch_size", "4", "--max_new_tokens", "4", "--steps", "2", "--dtype", "fp32",
        "--eval_prompts", "2", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert train([*smaller, *few]) == 0
    assert (tmp_path / "run" / "step-2").is_dir()
