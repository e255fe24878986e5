"""Checkpoints are whole or not there: written aside, sealed, verified, pruned last."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from local_distill.errors import RunError, UserError
from local_distill.models.scorer import TokenScorer
from local_distill.runs.checkpoints import check_same_run, find_checkpoint, last_saved, open_checkpoint, set_aside_newer
from local_distill.training.checkpoint import Checkpointer, moments_of
from local_distill.training.optimizer import make_updates
from tests.models.test_scorer import V
from tests.tiny_models import llama_config, make_model, make_tokenizer


@pytest.fixture
def saver(tmp_path):
    """(checkpointer, model, updates) with two updates' worth of optimizer state."""
    accelerator = Accelerator(cpu=True)
    model = make_model(llama_config())
    updates = make_updates(accelerator, TokenScorer(model, V), weight_decay=0.0, max_grad_norm=1.0)
    for seed in range(2):
        gen = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=gen)
        updates.apply(1e-2, loss_is_finite=True)
    checkpointer = Checkpointer(
        accelerator, updates, model, make_tokenizer(), GenerationConfig(eos_token_id=[0, 2]), {"seed": 0}, tmp_path, 2
    )
    return checkpointer, model, updates


def steps(folder: Path):
    return sorted(f.name for f in folder.iterdir())


def test_model_tokenizer_and_stop_tokens_load_as_any_other(saver, tmp_path):
    checkpointer, model, _ = saver
    checkpointer.save(3)
    folder = tmp_path / "step-3"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == make_tokenizer().get_vocab()
    assert loaded.generation_config.eos_token_id == [0, 2]
    suffixes = {f.suffix for f in folder.rglob("*") if f.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}, "nothing that needs a pickle"


def test_optimizer_state_comes_back_bit_for_bit(saver, tmp_path):
    checkpointer, _, updates = saver
    checkpointer.save(3)
    saved, state = open_checkpoint(tmp_path / "step-3"), updates.optimizer_state()
    assert saved.step == 3
    assert saved.settings == {"seed": 0}
    restored = moments_of(saved)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert any(value.abs().max() > 0 for name, value in restored.items() if name.endswith("exp_avg_sq"))


def test_old_ones_go_only_after_the_new_one_is_there(saver, tmp_path, monkeypatch):
    checkpointer, _, _ = saver
    for step in (1, 2, 3):
        checkpointer.save(step)
    assert steps(tmp_path) == ["step-2", "step-3"]

    def fails(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("local_distill.training.checkpoint.save_torch_state_dict", fails)
    with pytest.raises(RunError, match=r"step-4: cannot be written \(No space left on device\); free some space"):
        checkpointer.save(4)
    assert steps(tmp_path) == ["step-2", "step-3"], "what was half written is cleared away: it takes room"
    assert find_checkpoint(tmp_path)[0].step == 3
    monkeypatch.undo()
    for leftover in (".partial-step-4", ".discarded-step-1"):  # of a run that was killed
        (tmp_path / leftover).mkdir()
    (tmp_path / ".partial-step-9").touch()
    checkpointer.save(5)
    assert steps(tmp_path) == ["step-3", "step-5"]


def test_saving_a_step_again_replaces_it(saver, tmp_path):
    checkpointer, model, _ = saver
    checkpointer.save(1)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    checkpointer.save(1)
    assert steps(tmp_path) == ["step-1"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def flip_a_byte(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a flipped bit in the weights": lambda f: flip_a_byte(f / "model.safetensors"),
    "a flipped bit in the optimizer": lambda f: flip_a_byte(f / "trainer" / "optimizer.safetensors"),
    "a truncated file": lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100),
    "a missing file": lambda f: (f / "tokenizer.json").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a manifest of garbage": lambda f: (f / "manifest.json").write_text("{"),
    "a manifest of the wrong shape": lambda f: (f / "manifest.json").write_text("[1]"),
    "no state": lambda f: (f / "trainer" / "state.json").unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found_and_the_newest_whole_one_is_used_instead(saver, tmp_path, how):
    checkpointer, _, _ = saver
    checkpointer.save(1)
    checkpointer.save(2)
    DAMAGE[how](tmp_path / "step-2")
    with pytest.raises(UserError, match=r"--resume .*step-2: (damaged|not a checkpoint)") as caught:
        open_checkpoint(tmp_path / "step-2")
    assert "\n" not in str(caught.value)
    checkpoint, notes = find_checkpoint(tmp_path)
    assert checkpoint.step == 1
    assert len(notes) == 1
    assert "step-2" in notes[0]
    DAMAGE[how](tmp_path / "step-1")
    with pytest.raises(UserError, match=r"--resume: no checkpoint in .* is whole"):
        find_checkpoint(tmp_path)


def test_nothing_to_resume(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="--resume: no checkpoint in"):
            find_checkpoint(folder)
    assert "no checkpoint yet" in last_saved(tmp_path)


def test_another_run_is_refused(saver, tmp_path):
    checkpointer, _, _ = saver
    checkpointer.save(1)
    checkpoint = open_checkpoint(tmp_path / "step-1")
    check_same_run(checkpoint, {"seed": 0})
    with pytest.raises(UserError, match=r"--seed: 1 given, but .*step-1 was made with 0"):
        check_same_run(checkpoint, {"seed": 1})


def test_going_back_sets_newer_ones_aside_without_losing_them(saver, tmp_path):
    checkpointer, _, _ = saver
    checkpointer.save(1)
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-10")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-9")
    renamed = set_aside_newer(tmp_path, 9)
    assert [path.name.startswith("superseded-step-10-") for path in renamed] == [True]
    assert (renamed[0] / "model.safetensors").is_file()
    assert str(tmp_path / "step-9") in last_saved(tmp_path)


def test_manifest_names_every_file_with_its_size(saver, tmp_path):
    checkpointer, _, _ = saver
    checkpointer.save(1)
    folder = tmp_path / "step-1"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    found = {f.relative_to(folder).as_posix(): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    del found["manifest.json"]
    assert {name: entry["bytes"] for name, entry in listed.items()} == found
