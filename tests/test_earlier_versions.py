"""What version 0.1.0 left on disk is gone on with, read and exported by this one.

tests/data/run_0.1.0 was made by that version: two GPT-2s of a few thousand weights, a YAML file with five of its
settings, the run of two steps that it gave, and what the same version made of steps 3 and 4.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from local_distill import build
from local_distill.commands import main as command
from local_distill.config.train_config import parse_config
from local_distill.teachers import local
from local_distill.train_on_policy_local import main as train

DATA = Path(__file__).parent / "data" / "run_0.1.0"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of that run, where its relative paths lead to its models."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("shared", [False, True], ids=["prompts in rows", "prompts shared"])
@pytest.mark.parametrize("file", ["run/config.yaml", "run.yaml"], ids=["all settings", "no loss is named"])
def test_a_run_goes_on_as_it_would_have_then(file, shared, monkeypatch):
    if not shared:
        for module in (build, local):
            monkeypatch.setattr(module, "can_share_prompts", lambda _: False)
    assert train(["--config", file, "--output_dir", "run", "--resume", "--steps", "4"]) == 0

    ours, theirs = load_file("run/step-4/model.safetensors"), load_file("step_4.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        found = ours[name]
        if shared and name.endswith(
            "c_attn.bias"
        ):  # a bias of keys has no gradient but rounding, whose sign Adam steps
            (q, k, v), (q2, k2, v2) = found.chunk(3), weight.chunk(3)
            torch.testing.assert_close(k, k2, rtol=0, atol=0.02)
            found, weight = torch.cat([q, v]), torch.cat([q2, v2])
        # two steps move it by 0.02; another processor rounds otherwise
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-4)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line for line in lines if "loss" in line}
    for line in map(json.loads, Path("steps_3_and_4.jsonl").read_text(encoding="utf-8").splitlines()):
        for name in ("loss", "reverse_kl", "grad_norm", "entropy"):
            assert found[line["step"]][name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), (line["step"], name)


@pytest.mark.usefixtures("run")
def test_its_settings_file_still_says_what_it_said():
    settings = parse_config(["--config", "run/config.yaml"])
    assert (settings.loss, settings.temperature, settings.top_p) == ("policy_gradient", 0.8, 0.95)
    assert parse_config(["--config", "run.yaml"]).batch_size == 2


def test_it_is_reported_and_exported(run):
    assert command(["report", str(run)]) == 0
    assert "step" in (run / "report.html").read_text(encoding="utf-8")
    assert command(["export", str(run), "--dtype", "fp32", "--output_dir", "exported"]) == 0
    kept, exported = load_file("run/step-2/model.safetensors"), load_file("exported/model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in kept.items())
