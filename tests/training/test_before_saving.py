"""The size of a checkpoint is known, and saving is tried, before anything is loaded."""

import copy
import json
import shutil
from collections import namedtuple

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import GenerationConfig

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import open_model
from local_distill.models.scorer import TokenScorer
from local_distill.training import checkpoint
from local_distill.training.checkpoint import Checkpointer, check_disk_space, check_saving, checkpoint_bytes
from local_distill.training.optimizer import make_updates
from tests.tiny_models import gpt2_config, llama_config, make_tokenizer, save_model

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")


BROKEN = {
    "generation settings": lambda _, generation: setattr(generation, "temperature", 0.5),  # without do_sample
    "configuration": lambda files, _: setattr(files.config, "temperature", 0.5),  # which has no place there
    "tokenizer": lambda files, _: files.tokenizer.init_kwargs.update(special={object()}),  # no JSON
}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_what_can_be_saved_passes_and_leaves_nothing(folders, tmp_path, adapter):
    files = open_model("--student_model", str(folders["gpt2"]), trust_remote_code=False)
    check_saving(files, adapter, files.generation, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_saved_is_refused_in_one_line(folders, tmp_path, break_it):
    files = open_model("--student_model", str(folders["student"]), trust_remote_code=False)
    generation = copy.deepcopy(files.generation)
    break_it(files, generation)
    with pytest.raises(UserError) as caught:
        check_saving(files, None, generation, tmp_path, 1)
    message = str(caught.value)
    assert message.startswith(f"--student_model {folders['student']}: can be read but not saved (")
    assert message.endswith("; mend its configuration, its tokenizer or its generation_config.json")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_named(folders, tmp_path):
    files = open_model("--student_model", str(folders["student"]), trust_remote_code=False)
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}/gone: cannot be written"):
        check_saving(files, None, files.generation, tmp_path / "gone", 1)


def saved_bytes(folder, model, tokenizer):
    """Bytes of all tensors in a checkpoint of the model after one update."""
    accelerator = Accelerator(cpu=True)
    updates = make_updates(accelerator, TokenScorer(model, 300), weight_decay=0.0, max_grad_norm=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    updates.apply(1e-3, loss_is_finite=True)
    folder.mkdir()
    Checkpointer(accelerator, updates, model, tokenizer, GenerationConfig(), {}, folder, keep=1).save(1)
    files = list((folder / "step-1").rglob("*.safetensors"))
    assert any(load_file(file) for file in files)
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("modules", [None, "all-linear", "one by name"])
@pytest.mark.parametrize(
    "config",
    [
        llama_config(hidden_size=128, intermediate_size=256),
        llama_config(hidden_size=128, intermediate_size=256, tie_word_embeddings=True),
        gpt2_config(n_embd=128),
    ],
    ids=["llama", "llama tied", "gpt2"],
)
def test_the_estimate_is_the_size_of_a_checkpoint(tmp_path, config, modules):
    one = "c_fc" if config.model_type == "gpt2" else "q_proj"
    lora = LoraSettings(64, 64, 0.0, one if modules == "one by name" else modules) if modules else None
    files = open_model("--student_model", str(save_model(tmp_path / "m", config, make_tokenizer())), False)
    model = add_lora(files.load(torch.bfloat16), lora, 0) if lora else files.load(torch.float32)
    found = saved_bytes(tmp_path / "run", model, files.tokenizer)
    assert checkpoint_bytes(files, lora) == pytest.approx(found, rel=0.03)


def test_the_estimate_allocates_nothing(folders, tmp_path):
    config = json.loads((folders["student"] / "config.json").read_text())
    shutil.copytree(folders["student"], tmp_path / "giant")
    (tmp_path / "giant" / "config.json").write_text(json.dumps(config | {"hidden_size": 2**20, "head_dim": 2**18}))
    files = open_model("--student_model", str(tmp_path / "giant"), False)
    assert checkpoint_bytes(files, None) > 2**43
    assert checkpoint_bytes(files, LoraSettings(2**20, 1.0, 0.0, "all-linear")) > 2**43


def test_disk_space(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(0, 0, 3_500_000_000))
    check_disk_space(tmp_path, 1_000_000_000, keep=2)
    with pytest.raises(UserError, match=r"3\.5 GB free, needs 4\.0 GB for checkpoints \(4 of 1\.0 GB\); .*--keep_"):
        check_disk_space(tmp_path, 1_000_000_000, keep=3)
    (tmp_path / "step-7").mkdir()  # a resumed run's checkpoints have their place already
    check_disk_space(tmp_path, 1_000_000_000, keep=3)
    for step in range(9):
        (tmp_path / f"step-{step}").mkdir(exist_ok=True)
    with pytest.raises(
        UserError, match=r"needs 9\.0 GB for checkpoints \(1 of 9\.0 GB\); free some, or choose another"
    ):
        check_disk_space(tmp_path, 9_000_000_000, keep=3)
