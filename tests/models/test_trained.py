"""A model is found wherever it is, with what belongs to it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from local_distill.errors import UserError
from local_distill.models.trained import open_trained
from local_distill.runs.manifest import seal

IDS = torch.arange(1, 13)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_is_its_last_step_unless_another_is_asked_for(runs, kind):
    last, first = open_trained("MODEL", str(runs / kind)), open_trained("MODEL", str(runs / kind), step="1")
    assert (last.run, last.step, first.step) == (runs / kind, 2, 1)
    assert not torch.equal(logits(last.load(torch.float32)), logits(first.load(torch.float32)))
    same = open_trained("MODEL", str(runs / kind / "step-2"))
    assert (same.run, same.step) == (last.run, last.step)
    assert torch.equal(logits(last.load(torch.float32)), logits(same.load(torch.float32)))


def test_the_best_step_is_the_one_with_the_lowest_held_out_reverse_kl(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    lines = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    scores = {0: 0.1, 1: 1.0, 2: 2.0}  # step 0 has no checkpoint
    (run / "completions.jsonl").write_text(
        "".join(json.dumps({**line, "reverse_kl": scores[line["step"]]}) + "\n" for line in lines)
    )
    assert open_trained("MODEL", str(run), step="best").step == 1
    (run / "completions.jsonl").unlink()
    with pytest.raises(UserError, match="none is best"):
        open_trained("MODEL", str(run), step="best")


def test_an_adapter_merged_gives_what_it_gives_beside_its_base(runs, folders):
    trained = open_trained("MODEL", str(runs / "lora"))
    assert trained.adapter is not None
    beside, merged = logits(trained.load(torch.float32)), logits(trained.merged(torch.float32))
    base = logits(AutoModelForCausalLM.from_pretrained(folders["student"]))
    assert (beside - base).abs().max() > 1e-3, "an adapter that does nothing shows nothing"
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=0.0)
    assert not any(p.requires_grad for p in trained.load(torch.float32).parameters())


def test_an_adapter_that_was_trained_elsewhere_names_its_base(runs, tmp_path, folders):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(runs / "lora" / "step-2" / name, folder / name)
    elsewhere = open_trained("MODEL", str(folder))
    assert (elsewhere.run, elsewhere.step, elsewhere.files.path) == (None, None, str(folders["student"]))
    here = open_trained("MODEL", str(runs / "lora"))
    assert torch.equal(logits(elsewhere.load(torch.float32)), logits(here.load(torch.float32)))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say what model it was trained on"):
        open_trained("MODEL", str(folder))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_was_saved_with_a_step_belongs_to_it(runs, kind, tmp_path):
    """Its stop tokens, above all: a student may have been trained to stop on its teacher's."""
    step = shutil.copytree(runs / kind, tmp_path / kind) / "step-2"
    settings = json.loads((step / "generation_config.json").read_text())
    stops = open_trained("MODEL", str(step)).files.generation.eos_token_id
    assert stops == settings["eos_token_id"]
    (step / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0, 7]}))
    assert open_trained("MODEL", str(step)).files.generation.eos_token_id == [0, 7]


def test_a_plain_model_folder_is_a_model(folders):
    trained = open_trained("MODEL", str(folders["student"]))
    assert (trained.adapter, trained.run, trained.step) == (None, None, None)
    found = trained.load(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    weights = load_file(folders["student"] / "model.safetensors")
    assert torch.equal(found.lm_head.weight, weights["lm_head.weight"].bfloat16())


@pytest.mark.parametrize(
    ("where", "step", "message"),
    [
        ("full", "7", r"step 7 is not there; choose from 1, 2, last and best"),
        ("full/step-1", "2", r"not a run, so it has no step 2"),
        ("nothing", "last", r"no such folder"),
        ("full/step-1/trainer", "last", r"has no config\.json"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(runs, where, step, message):
    with pytest.raises(UserError, match=rf"^MODEL .*{message}"):
        open_trained("MODEL", str(runs / where), step=step)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_that_lost_what_trained_it_is_a_model_still(runs, kind, tmp_path, capsys):
    run = shutil.copytree(runs / kind, tmp_path / "run")
    expected = logits(open_trained("MODEL", str(run)).load(torch.float32))
    shutil.rmtree(run / "step-2" / "trainer")
    found = open_trained("MODEL", str(run))
    assert capsys.readouterr().err.endswith(
        f"\nMODEL {run / 'step-2'}: trainer/state.json is missing, so it cannot be gone on with; its model is used\n"
    )
    assert (found.run, found.step) == (run, 2)
    assert torch.equal(logits(found.load(torch.float32)), expected)


def test_a_step_without_its_model_names_the_one_to_use(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    (run / "step-2" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"step-2: damaged, model\.safetensors is missing; use .*/step-1, or"):
        open_trained("MODEL", str(run))
    (run / "step-2" / "config.json").unlink()
    with pytest.raises(UserError, match=r"step-2: no whole checkpoint, it has lost its model .*; use .*/step-1$"):
        open_trained("MODEL", str(run))
    shutil.rmtree(run / "step-1")
    with pytest.raises(UserError, match=r"no other step of this run is kept$"):
        open_trained("MODEL", str(run))
    shutil.rmtree(run / "step-2")
    with pytest.raises(UserError, match=r"^MODEL .*run: a run without a checkpoint"):
        open_trained("MODEL", str(run))


def test_a_hub_name_that_cannot_be_reached_is_said_in_one_line():
    with pytest.raises(UserError, match=r"^MODEL some/model: its configuration cannot be loaded"):
        open_trained("MODEL", "some/model")


def test_an_adapter_finds_its_base_from_another_folder(run_command, folders, tmp_path, monkeypatch):
    """A base that was given relative to where the run was made."""
    shutil.copytree(folders["student"], tmp_path / "models" / "a")
    models = ["--student_model", "models/a", "--teacher_model", folders["teacher"], "--use_lora", "--lora_r", "2"]
    small = ["--steps", "1", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--eval_prompts", "0"]
    code, _, err = run_command([*models, *small, "--output_dir", "run"])
    assert (code, err) == (0, ""), err
    expected = logits(open_trained("RUN", "run").load(torch.float32))
    other = tmp_path / "other" / "models" / "a"
    shutil.copytree(folders["teacher"], other)  # the same name there is another model
    monkeypatch.chdir(tmp_path / "other")
    run = tmp_path / "run"
    assert torch.equal(logits(open_trained("RUN", str(run)).load(torch.float32)), expected)
    state = run / "step-1" / "trainer" / "state.json"
    without = {name: value for name, value in json.loads(state.read_text()).items() if name != "made_in"}
    state.write_text(json.dumps(without))  # as older runs have it
    seal(run / "step-1")
    shutil.rmtree(other)
    with pytest.raises(UserError, match=r"the model under this adapter, models/a, is neither .*where the run was made"):
        open_trained("RUN", str(run))
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(open_trained("RUN", str(run)).load(torch.float32)), expected)
