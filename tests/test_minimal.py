"""The page that shows the whole method gives the package's numbers, and runs by itself."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from local_distill.config.train_config import parse_config
from local_distill.rollouts.hf import HFRollouts
from local_distill.train_on_policy_local import train
from tests.launching import metrics

PAGE = Path(__file__).parent.parent / "examples" / "minimal.py"
RATE = 1e-3


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(PAGE))


@pytest.mark.parametrize("loss", ["reverse_kl", "policy_gradient"])
def test_two_steps_give_the_packages_losses_and_weights(page, folders, tmp_path, monkeypatch, loss):
    sampled, sample = [], HFRollouts.sample

    def noted(self, *arguments, **more):
        rollouts = sample(self, *arguments, **more)
        sampled.append([(list(r.prompt.ids), r.completion.tolist()) for r in rollouts])
        return rollouts

    monkeypatch.setattr(HFRollouts, "sample", noted)
    words = {
        "student_model": folders["student"], "teacher_model": folders["teacher"], "loss": loss, "steps": 2,
        "batch_size": 3, "group_size": 2, "max_new_tokens": 7, "learning_rate": RATE, "dtype": "fp32",
        "eval_prompts": 0, "output_dir": tmp_path / "run",
    }  # fmt: skip
    train(parse_config([str(word) for name, value in words.items() for word in (f"--{name}", value)]))

    student, teacher = (AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("student", "teacher"))
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    optimizer = page["make_optimizer"](student, RATE)
    in_steps = sampled[-2:]  # the program tries its sampler before the first one
    found = [page["update"](student, teacher, optimizer, rollouts, page["LOSSES"][loss]) for rollouts in in_steps]

    records = [record for record in metrics(tmp_path / "run") if "loss" in record]
    assert [loss for loss, _ in found] == pytest.approx([record["loss"] for record in records], rel=1e-4)
    saved = load_file(tmp_path / "run" / "step-2" / "model.safetensors")
    ours = dict(student.named_parameters())
    off, moved = (
        torch.cat([(weight - saved[name]).abs().flatten() for name, weight in each.items() if name in saved])
        for each in (ours, before)
    )
    # Where a gradient is all but zero Adam makes a whole step of its rounding; a wrong sign or a shift moves them all.
    assert off.mean() < 1e-3 * moved.mean()


def test_it_runs_as_a_user_runs_it(folders, monkeypatch, capsys):
    words = ["--student", folders["chat"], "--teacher", folders["chat"], "--steps", 2, "--max_new_tokens", 4]
    monkeypatch.setattr(sys, "argv", ["minimal.py", *map(str, words)])
    runpy.run_path(str(PAGE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("reverse KL 0.000" in line.replace("-0.000", "0.000") for line in lines), (
        "its own teacher has nothing to say"
    )
