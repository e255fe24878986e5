"""The race's judge against the plainest formulas, and a short race of this program's own contenders."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import race, race_judge
from tests.launching import environment

COMPLETION = ([5, 6, 7], [8, 9, 0])


@pytest.fixture(scope="module")
def models(folders):
    return tuple(AutoModelForCausalLM.from_pretrained(folders[name]).eval() for name in ("student", "teacher"))


def test_the_divergence_is_the_sum_over_the_vocabulary_at_each_token_of_the_completion(models):
    found = race_judge.divergence(*models, COMPLETION)
    for t in range(3):
        prefix = torch.tensor([[5, 6, 7, 8, 9, 0][: 3 + t]])
        with torch.no_grad():
            p, q = (model(prefix).logits[0, -1].double().softmax(-1) for model in models)
        assert found[t].item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    assert race_judge.divergence(models[0], models[0], COMPLETION).abs().max() < 1e-9


def test_means_are_over_tokens_and_errors_over_completions():
    mean, error = race_judge.per_token([torch.tensor([1.0, 3.0]), torch.tensor([2.0]), torch.tensor([2.0, 2.0])])
    assert (mean, error) == (2.0, 0.0)
    mean, error = race_judge.per_token([torch.tensor([1.0]), torch.tensor([3.0])])
    assert (mean, error) == (2.0, pytest.approx(1.0))  # as of two numbers: √2 / √2
    assert race_judge.repeated([[1, 2, 3, 4, 1, 2, 3, 4, 1]]) == pytest.approx(2 / 6)
    assert race_judge.up_to(0, [4, 0, 5, 0]) == [4, 0]


def test_a_race_ends_with_its_budget_and_keeps_its_numbers(folders, tmp_path, monkeypatch, capsys):
    start = subprocess.run

    def in_this_process(command, **more):
        """The judge in this process, by the same words."""
        if command[:2] != [sys.executable, race_judge.__file__]:
            return start(command, **more)
        monkeypatch.setattr("sys.argv", command[1:])
        race_judge.main()
        return SimpleNamespace(stdout=capsys.readouterr().out)

    words = ["--student", str(folders["chat"]), "--teacher", str(folders["chat"]), "--tokens", "60", "--seeds", "1",
             "--batch", "2", "--new_tokens", "6", "--held_out", "3", "--only", "ours, two"]  # fmt: skip
    monkeypatch.setattr(race.subprocess, "run", in_this_process)
    monkeypatch.setattr("sys.argv", ["race.py", str(tmp_path), *words])
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    race.main()
    kept = json.loads((tmp_path / "race.json").read_text())
    (run,) = kept["runs"]
    assert run["tokens"] >= 60
    assert abs(kept["start"]["reverse_kl"]) < 1e-9, "the student is its own teacher"
    assert run["contender"] == "ours, two epochs"
    assert "| ours, two epochs |" in capsys.readouterr().out
